"""The machine's other clinic: it cannot change a problem or a number, and brings a deleted patient back.

Problems are deleted and made anew, numbers are made anew before the old one goes, and a problem follows its patient.
"""

from __future__ import annotations

from tests.machine import clinic_routes
from worker.legacy import Find, LegacyApi, Replace
from worker.mapping import Phase, route
from worker.mapping.r4 import Condition, Patient, Practitioner

legacy = LegacyApi("replacing", base_url="http://legacy.invalid", auth=None, zone="UTC", items="items")

patients = legacy.collection(
    "patient",
    keys=("id",),
    create="POST /patients",
    update="PUT /patients/{id}",
    delete="DELETE /patients/{id}",
    undelete="POST /patients/{id}/undelete",
    find=Find("GET /patients?ref={ref}", match=("ref",)),
)
problems = legacy.collection(
    "problem",
    keys=("id",),
    create="POST /patients/{patient.id}/problems",
    update=Replace(),
    delete="DELETE /patients/{patient.id}/problems/{id}",
    find=Find("GET /patients/{patient.id}/problems", match=("ref",)),
)
numbers = legacy.collection(
    "number",
    keys=("id",),
    create="POST /numbers",
    read="GET /numbers/{id}",
    update=Replace(create_first=True),
    delete="DELETE /numbers/{id}",
    find=Find("GET /numbers?ref={ref}&use={use}", match=("ref", "use")),
    identity=("ref", "use"),
)

patient = route(Patient, to=patients, phase=Phase.LIVE, restored="undelete")(clinic_routes.patient.function)
problem = route(Condition, to=problems, phase=Phase.LIVE, moved="replace")(clinic_routes.problem.function)
practitioner = route(Practitioner, to=numbers, phase=Phase.LIVE)(clinic_routes.practitioner.function)
