"""The example mappings, each against its fixture pairs: `--update` writes the right-hand sides."""

from __future__ import annotations

from worker.mapping.pairs import pairs
from worker.mappings.condition import problem
from worker.mappings.patient import patient
from worker.mappings.practitioner import provider

FIXTURES = "../../fixtures/mappings"

test_practitioner = pairs(provider, f"{FIXTURES}/practitioner")
test_patient = pairs(patient, f"{FIXTURES}/patient")
test_condition = pairs(problem, f"{FIXTURES}/condition")
