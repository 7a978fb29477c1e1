"""All mutants."""

from __future__ import annotations

from tests.machine.mutants.catch_up import CATCH_UP_MUTANTS
from tests.machine.mutants.models import MODEL_MUTANTS
from tests.machine.mutants.rest import OTHER_MUTANTS
from tests.machine.mutants.writes import WRITE_MUTANTS

MUTANTS = (*MODEL_MUTANTS, *WRITE_MUTANTS, *OTHER_MUTANTS, *CATCH_UP_MUTANTS)
