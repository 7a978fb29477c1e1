"""The example mappings, each against its fixture pairs: `--update` writes the right-hand sides."""

from __future__ import annotations

from worker.mapping.pairs import pairs
from worker.mappings.appointment import appointment
from worker.mappings.condition import problem
from worker.mappings.encounter import visit
from worker.mappings.medication_request import prescription
from worker.mappings.observation import vital
from worker.mappings.patient import patient
from worker.mappings.practitioner import provider

FIXTURES = "../../fixtures/mappings"

test_practitioner = pairs(provider, f"{FIXTURES}/practitioner")
test_patient = pairs(patient, f"{FIXTURES}/patient")
test_encounter = pairs(visit, f"{FIXTURES}/encounter")
test_appointment = pairs(appointment, f"{FIXTURES}/appointment")
test_condition = pairs(problem, f"{FIXTURES}/condition")
test_medication_request = pairs(prescription, f"{FIXTURES}/medication_request")
test_observation = pairs(vital, f"{FIXTURES}/observation")
