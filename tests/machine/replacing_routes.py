"""The machine's other clinic: it cannot change a problem or a number, and brings a deleted patient back.

Problems are deleted and made anew, numbers are made anew before the old one goes, and a problem follows its patient.
"""

from __future__ import annotations

from dataclasses import replace

from tests.machine import clinic_routes
from worker.legacy import Call, Replace
from worker.mapping import Phase, route
from worker.mapping.r4 import Condition, Patient, Practitioner

patients = replace(clinic_routes.patients, undelete=Call("POST /patients/{id}/undelete"))
problems = replace(clinic_routes.problems, update=Replace())
numbers = replace(clinic_routes.numbers, update=Replace(create_first=True))

patient = route(Patient, to=patients, phase=Phase.LIVE, restored="undelete")(clinic_routes.patient.function)
problem = route(Condition, to=problems, phase=Phase.LIVE, moved="replace")(clinic_routes.problem.function)
practitioner = route(Practitioner, to=numbers, phase=Phase.LIVE)(clinic_routes.practitioner.function)
