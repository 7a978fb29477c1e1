"""What is promised of mappings: that they are short, and that a second API's survive what the first one's do."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from statistics import mean

import pytest

from tests.acceptance.legacies import PRACTICE
from worker.mapping.pairs import survives_damage

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "mappings"
TYPES = {"practitioner": "provider", "patient": "patient", "appointment": "appointment", "condition": "diagnosis"}
CASES = [(kind, case) for kind in TYPES for case in sorted((FIXTURES / kind).glob("*.fhir.json"))]


def without_imports(path: Path) -> int:
    """Count the lines of a module that are no import and not blank."""
    source = path.read_text(encoding="utf-8")
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {line for node in imports for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return sum(1 for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in imported)


def test_the_examples_average_at_most_45_lines_a_type() -> None:
    """Declaration and mapping together, without imports."""
    modules = [path for path in (ROOT / "worker" / "mappings").glob("*.py") if path.stem not in ("__init__", "clinic")]
    assert len(modules) == 7
    assert mean(map(without_imports, modules)) <= 45


def test_the_second_api_and_four_mappings_are_one_file_of_at_most_200_lines() -> None:
    """Imports, comments and blank lines included."""
    module = ROOT.joinpath(*PRACTICE.routes.split(".")).with_suffix(".py")
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.fixture(scope="module")
def practice() -> object:
    """Import the second API's mappings for a practice that nobody calls."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PRACTICE.site.items():
            patch.setenv(f"REVERSE_SYNC_SITE_PRACTICE_{name}", value.format(url="http://practice.example.com"))
        return importlib.import_module(PRACTICE.routes)


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}-{case.stem}" for kind, case in CASES])
def test_the_second_apis_mappings_answer_or_refuse_whatever_is_missing(practice: object, kind: str, case: Path) -> None:
    """Each element left out once, each date cut to month and year, of all that the clinic's mappings are tried with."""
    survives_damage(getattr(practice, TYPES[kind]), case)
