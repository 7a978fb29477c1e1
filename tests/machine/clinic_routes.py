"""The routes of the machine: patients, problems under a patient's path, and a practitioner's numbers, each a slot.

A module of its own, because the project loads routes by a module's name, and checks them when it does.
"""

from __future__ import annotations

from worker.legacy import Find, LegacyApi
from worker.mapping import Absent, Context, Phase, Record, Result, link, required, route
from worker.mapping.r4 import Condition, Patient, Practitioner

legacy = LegacyApi("legacy", base_url="http://legacy.invalid", auth=None, zone="UTC", items="items")

patients = legacy.collection(
    "patient",
    keys=("id",),
    create="POST /patients",
    update="PUT /patients/{id}",
    delete="DELETE /patients/{id}",
    find=Find("GET /patients?ref={ref}", match=("ref",)),
)
problems = legacy.collection(
    "problem",
    keys=("id",),
    create="POST /patients/{patient.id}/problems",
    update="PUT /patients/{patient.id}/problems/{id}",
    delete="DELETE /patients/{patient.id}/problems/{id}",
    find=Find("GET /patients/{patient.id}/problems", match=("ref",)),
)
numbers = legacy.collection(
    "number",
    keys=("id",),
    create="POST /numbers",
    read="GET /numbers/{id}",
    update="PUT /numbers/{id}",
    delete="DELETE /numbers/{id}",
    find=Find("GET /numbers?ref={ref}&use={use}", match=("ref", "use")),
    identity=("ref", "use"),
)


@route(Patient, to=patients, phase=Phase.LIVE)
def patient(p: Patient, ctx: Context) -> Result:
    if p.active is False:
        return Absent("not active")
    return {
        "ref": ctx.fhir_id,
        "word": required(p.name[0].family if p.name else None),
        "sees": link(p.link[0].other, "id") if p.link else None,
    }


@route(Condition, to=problems, phase=Phase.LIVE)
def problem(c: Condition, ctx: Context) -> Result:
    return {
        "patient": link(c.subject),
        "ref": ctx.fhir_id,
        "of": c.subject.reference,
        "word": required(c.code.text if c.code else None),
    }


@route(Practitioner, to=numbers, phase=Phase.LIVE)
def practitioner(p: Practitioner, ctx: Context) -> Result:
    return [
        Record(str(each.use), {"ref": ctx.fhir_id, "use": each.use, "word": each.value}) for each in p.telecom or ()
    ]
