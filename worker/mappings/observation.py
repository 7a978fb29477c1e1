"""Observation → the clinic's vitals: one row for each measurement, so a blood pressure is two."""

from worker.legacy import Find, Listing
from worker.mapping import Absent, Context, Phase, Record, Result, Skip, Table, link, pick, required, route
from worker.mapping.r4 import Observation
from worker.mapping.systems import LOINC
from worker.mappings.clinic import clinic

vitals = clinic.collection(
    "vital",
    keys=("id",),
    create="POST /patients/{patient.uuid}/vitals",
    read="GET /patients/{patient.uuid}/vitals/{id}",
    update="PUT /patients/{patient.uuid}/vitals/{id}",
    delete="DELETE /patients/{patient.uuid}/vitals/{id}",
    find=Find(
        "GET /patients/{patient.uuid}/vitals?code={code}&taken_at={taken_at}&per_page=50",
        match=("code", "taken_at"),
        page="page",
    ),
    list=Listing("GET /patients/{patient.uuid}/vitals?per_page=50", under={"patient": "Patient"}, page="page"),
    gone={},  # a deleted row can be read no more
)

BLOOD_PRESSURE = ("85354-9", "55284-4")
PARTS = {"8480-6": "BP_SYS", "8462-4": "BP_DIA"}
UNIT = Table({"mm[Hg]": "mmHg"})


@route(Observation, to=vitals, phase=Phase.LIVE, moved="replace")
def vital(o: Observation, ctx: Context) -> Result:
    if not pick.has_code([o.code], *BLOOD_PRESSURE):
        return Absent("of all observations the clinic keeps blood pressures alone")  # this one may have been one before
    if o.status in {"cancelled", "entered-in-error"}:
        return Absent("it was taken back")
    if o.status == "registered":
        return Skip("there is no result yet")
    values = [(pick.code(part.code, LOINC) or "", part.valueQuantity) for part in o.component or []]
    records = [
        Record(
            code,
            {
                "patient": link(o.subject),
                "code": PARTS[code],
                "value": required(value.value),
                "unit": required(UNIT(value.code)),
                "taken_at": required(ctx.datetime(o.effectiveDateTime or o.effectiveInstant)),
            },
        )
        for code, value in values
        if code in PARTS and value is not None
    ]
    return records or Absent("it says no value")
