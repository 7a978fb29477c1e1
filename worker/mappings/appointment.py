"""Appointment → the clinic's appointment book: one row for one patient, by the clock on the wall, never rubbed out."""

from worker.legacy import Call, Find, Listing
from worker.mapping import (
    Absent,
    Context,
    Phase,
    Result,
    Table,
    Unsupported,
    WriteBack,
    first,
    join,
    link,
    pick,
    required,
    route,
)
from worker.mapping.r4 import Appointment, Patient, Practitioner
from worker.mappings.clinic import clinic

appointments = clinic.collection(
    "appointment",
    keys=("id",),
    identity=("external_id",),
    create="POST /appointments",
    read="GET /appointments/{id}",
    update="PUT /appointments/{id}",
    delete=Call("PUT /appointments/{id}", send={"status": "cancelled"}),
    undelete="PUT /appointments/{id}",
    find=Find("GET /appointments?external_id={external_id}&per_page=50", match=("external_id",), page="page"),
    list=Listing("GET /appointments?per_page=50", page="page"),
)

STATUS = Table(
    {"booked": "booked", "arrived": "arrived", "checked-in": "arrived", "fulfilled": "arrived", "noshow": "noshow"}
)
NOT_BOOKED = {"proposed", "pending", "waitlist", "cancelled", "entered-in-error"}

ID = WriteBack("https://clinic.example.com/appointment-id")


@route(Appointment, to=appointments, phase=Phase.LIVE, restored="undelete", identifier=ID)
def appointment(a: Appointment, ctx: Context) -> Result:
    if a.status in NOT_BOOKED:
        return Absent("nothing is booked")
    actors = [each.actor for each in a.participant if each.actor]
    patients = pick.references_to(actors, Patient)
    if len(patients) > 1:
        return Unsupported("a row of the appointment book is for one patient")
    return {
        "patient_number": required(link(first(patients), "number")),
        "provider_id": link(pick.reference(actors, Practitioner), "id"),
        "starts": required(ctx.datetime(a.start)),
        "minutes": required(a.end) - required(a.start),
        "reason": join([pick.text(reason) for reason in a.reasonCode or []], sep="; ") or join(a.description),
        "status": STATUS(a.status),
        "external_id": ctx.fhir_id,
    }
