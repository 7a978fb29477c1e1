"""What a mutant is: a rule, and the text without which it does not hold. Pure but for reading and writing a copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MACHINE = "tests/machine/test_machine.py::test_whatever_happens_the_legacy_copy_converges"
REPLACING = "tests/machine/test_machine.py::test_where_records_are_replaced_and_brought_back_the_copy_converges"
FREEZING = "tests/machine/test_machine.py::test_a_freeze_on_the_way_to_the_socket_is_mended"

TAKEN = "tests/machine/test_found.py::test_a_delete_that_froze_on_its_way_and_takes_a_newer_record_is_made_good"
FROZEN = "tests/machine/test_found.py::test_a_write_that_froze_on_its_way_is_mended_by_its_own_answer"


@dataclass(frozen=True, slots=True)
class Edit:
    """One place in the code, and what stands there instead."""

    file: str
    old: str
    new: str

    def places(self, root: Path) -> int:
        """Count where the old text stands: it has to be one place."""
        file = root / self.file
        return file.read_text(encoding="utf-8").count(self.old) if file.exists() else 0

    def apply(self, root: Path) -> None:
        file = root / self.file
        file.write_text(file.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule taken away. `asked` are the tests that should notice, in the order in which they are asked."""

    name: str
    rule: str  # the section of docs/protocol.md, and the rule in a few words
    edits: tuple[Edit, ...]
    asked: tuple[str, ...] = (MACHINE,)
