"""Encounter → the clinic's visits, under the patient. A planned one is an appointment; no visit is ever deleted."""

from worker.legacy import Find, Listing, Unsupported
from worker.mapping import Absent, Context, Phase, Result, Table, WriteBack, join, link, pick, required, route
from worker.mapping.r4 import Encounter, Period, Practitioner
from worker.mapping.systems import ICD10CM, SNOMED
from worker.mappings.clinic import clinic

visits = clinic.collection(
    "visit",
    keys=("id",),
    identity=("external_id",),
    create="POST /patients/{patient.uuid}/visits",
    read="GET /patients/{patient.uuid}/visits/{id}",
    update="PUT /patients/{patient.uuid}/visits/{id}",
    delete=Unsupported("the clinic never deletes a visit: strike it out by hand"),
    find=Find(
        "GET /patients/{patient.uuid}/visits?external_id={external_id}&per_page=50", match=("external_id",), page="page"
    ),
    list=Listing("GET /patients/{patient.uuid}/visits?per_page=50", under={"patient": "Patient"}, page="page"),
)

KIND = Table(
    {
        "AMB": "OFFICE", "VR": "VIDEO", "HH": "HOME", "EMER": "HOSPITAL", "IMP": "HOSPITAL", "ACUTE": "HOSPITAL",
        "NONAC": "HOSPITAL", "OBSENC": "HOSPITAL", "SS": "HOSPITAL", "PRENC": "OFFICE",
    }
)  # fmt: skip
STATUS = Table({"arrived": "open", "triaged": "open", "in-progress": "open", "onleave": "open", "finished": "closed"})
BY_PHONE = "185317003"  # SNOMED CT: Medplum's class has no word for it but "virtual"

ID = WriteBack("https://clinic.example.com/visit-id")


@route(Encounter, to=visits, phase=Phase.LIVE, identifier=ID)
def visit(e: Encounter, ctx: Context) -> Result:
    if e.status == "planned":
        return Absent("a planned visit is an appointment")
    if e.status in {"cancelled", "entered-in-error"}:
        return Absent("it did not take place")
    period = e.period or Period()
    there = [each.individual for each in e.participant or [] if each.individual]
    return {
        "patient": link(e.subject),
        "started": required(ctx.datetime(period.start)),
        "ended": ctx.datetime(period.end),
        "kind": "PHONE" if pick.has_code(e.type, BY_PHONE) else required(KIND(e.class_fhir.code)),
        "reason": join([pick.text(reason, SNOMED, ICD10CM) for reason in e.reasonCode or []], sep="; "),
        "provider_id": link(pick.reference(there, Practitioner), "id"),
        "status": STATUS(e.status),
        "external_id": ctx.fhir_id,
    }
