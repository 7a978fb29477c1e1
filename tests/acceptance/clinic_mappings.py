"""The example's routes for tests that kill: the clinic acts within two seconds or never, and one mapping is careless.

A killed stand-in never does what it has not done, so a write without an answer has to wait seconds instead of minutes.
"""

from __future__ import annotations

from dataclasses import replace

from tests.acceptance.times import DEADLINE_S, LANDS_WITHIN_S
from worker.legacy import Answer, Outcome
from worker.mapping import Context, Phase, Result, route
from worker.mapping.r4 import Condition, MedicationRequest, Patient, Practitioner
from worker.mappings import condition as conditions
from worker.mappings import medication_request as medication_requests
from worker.mappings import patient as patients
from worker.mappings import practitioner as practitioners
from worker.mappings.clinic import clinic

api = replace(
    clinic,
    deadline_s=DEADLINE_S,
    lands_within_s=LANDS_WITHIN_S,
    means={Answer(200, has="error.code"): Outcome.REFUSED},
)


@route(Patient, to=replace(patients.patients, api=api), phase=Phase.LIVE)
def patient(p: Patient, ctx: Context) -> Result:
    if p.active is False:  # the carelessness: an error that tells all that it knows
        raise ValueError(f"the clinic has no form for {p.model_dump_json()}")
    mapped = patients.patient.function(p, ctx)
    return {**mapped} if isinstance(mapped, dict) else mapped


provider = route(Practitioner, to=replace(practitioners.providers, api=api), phase=Phase.LIVE)(
    practitioners.provider.function
)
problem = route(Condition, to=replace(conditions.problems, api=api), phase=Phase.LIVE)(conditions.problem.function)
prescription = route(
    MedicationRequest, to=replace(medication_requests.prescriptions, api=api), phase=Phase.LIVE, moved="replace"
)(medication_requests.prescription.function)
