"""The example clinic's patients as they are, with room for every thread of both workers.

The example declares the 24 calls at a time that the sandbox clinic takes. The benchmark asks what the service can do,
not what a clinic allows; the tutorial knows no such limit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from worker.mapping import Phase, route
from worker.mapping.r4 import Patient
from worker.mappings import patient as example
from worker.mappings.clinic import clinic

CALLS: Final = 64

patient = route(Patient, to=replace(example.patients, api=replace(clinic, concurrency=CALLS)), phase=Phase.LIVE)(
    example.patient.function
)
