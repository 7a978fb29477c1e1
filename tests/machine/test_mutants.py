"""Keeps the list of mutants true to the code: a mutant whose text is gone proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine.mutants.listed import MUTANTS
from tests.machine.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
MODELS = {"M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M8b", "M9"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.name))
def test_a_mutant_can_be_made(mutant: Mutant) -> None:
    """The text that it takes out stands in one place of its file, and the result is still Python."""
    for edit in mutant.edits:
        assert edit.places(ROOT) == 1, f"{edit.file}: {edit.old}"
        source = (ROOT / edit.file).read_text(encoding="utf-8").replace(edit.old, edit.new)
        if edit.file.endswith(".py"):
            compile(source, edit.file, "exec")


def test_every_mutant_of_the_model_and_every_section_is_listed() -> None:
    """M1 to M9 of the checked model are there, and a mutant for each section of the protocol; names are told apart."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert set(names) >= MODELS
    sections = {
        section.rstrip("abcdefghijkl,:") for mutant in MUTANTS for section in mutant.rule.split(":")[0].split(", ")
    }
    assert sections >= {str(number) for number in range(1, 14)}


def test_every_test_that_is_asked_exists() -> None:
    """Each mutant names tests that are there."""
    for asked in {asked for mutant in MUTANTS for asked in mutant.asked}:
        file, _, name = asked.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), asked
