"""The CSV of a crosswalk: what its header may say, how cells become keys, and how a bad file is told without values."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from worker.ledger.crosswalk import LinkRow
from worker.links import Line, Sheet, SheetInvalid
from worker.links.sheet import columns_of, write

CANARY = "Quarksberg"
KEY_NAMES = ("number", "uuid", "id")


def lines(folder: Path, content: str | bytes) -> list[Line]:
    """Read a file with this content."""
    path = folder / "links.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(Sheet.open(path, KEY_NAMES).lines())


def refusal(folder: Path, content: str | bytes) -> str:
    """Tell why a file is not taken; no message may hold what stands in a cell."""
    with pytest.raises(SheetInvalid) as refused:
        lines(folder, content)
    assert CANARY not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return str(refused.value)


def test_keys_keep_the_json_type_that_their_column_names(tmp_path: Path) -> None:
    """A column ending in :int holds JSON numbers, every other one text, leading zeros included."""
    [line] = lines(tmp_path, "reference,number:int,key.uuid\nPatient/p1,17,0017\n")
    assert line == Line(2, "Patient/p1", type="Patient", keys={"number": 17, "uuid": "0017"})


def test_a_line_names_its_place(tmp_path: Path) -> None:
    """Collection, slot and parents come from their columns; empty cells say nothing."""
    [line] = lines(tmp_path, "reference,collection,slot,id,parent.patient\nCondition/c1,problem,left,7,Patient/p1\n")
    assert (line.collection, line.slot, line.parents) == ("problem", "left", {"patient": "Patient/p1"})


def test_an_identifier_is_system_and_value(tmp_path: Path) -> None:
    """An identifier is parted at the first bar, and its system is compulsory."""
    good, bad, doubtful = lines(
        tmp_path, "identifier,type,uuid\nurn:mrn|a,Patient,u1\na,Patient,u2\nurn:x|a|b,Patient,u3\n"
    )
    assert good.identifier == ("urn:mrn", "a")
    assert "system|value" in bad.trouble
    assert "system|value" in doubtful.trouble


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separators_of_spreadsheets_are_understood(tmp_path: Path, separator: str) -> None:
    """Commas, semicolons and tabs part cells, and a byte order mark is no part of the first name."""
    text = "\n".join(separator.join(row) for row in (("reference", "uuid"), ("Patient/p1", "a")))
    [line] = lines(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert line.keys == {"uuid": "a"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{CANARY},u1\n", "line 1, column 1: the header"),
        (f"reference,{CANARY}\nPatient/p1,1\n", "line 1, column 2: the header"),
        ("", "line 1: one of the columns reference and identifier"),
        ("reference,identifier,uuid\n", "line 1: one of the columns"),
        ("reference,slot\n", "line 1: no column holds a key"),
        ("reference,uuid,uuid\n", "line 1, column 3: the same name"),
        (f"reference,uuid\nPatient/p1,u1\nPatient/p2,{CANARY},x\n", "line 3, column 3: a cell more"),
        ("reference,uuid\nPatient/p1\n", "line 2, column 2: this cell is missing"),
        (f'reference,uuid\nPatient/p1,"{CANARY}" x\n', "line 2: not CSV"),
        (f"reference,uuid\nPatient/p1,{CANARY}é\n".encode("latin-1"), "line 2, byte 22: not UTF-8"),
        ("reference,uuid\n".encode("utf-16"), "line 1: the file is UTF-16"),
        ("reference,uuid\nPatient/p1,a\0b\n", "line 2: a NUL"),
    ],
)
def test_a_bad_file_is_told_by_line_and_column(tmp_path: Path, content: str | bytes, words: str) -> None:
    """A file that is no CSV of links is refused as a whole, with the place and without a value."""
    assert words in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("17", ""),
        ("-3", ""),
        ("017", "column 2: not a whole number"),
        ("1.0", "column 2: not a whole number"),
        (CANARY, "column 2: not a whole number"),
    ],
)
def test_a_number_is_a_number(tmp_path: Path, cell: str, words: str) -> None:
    """What is no plain whole number is refused in a number's column: another spelling would be another key."""
    [line] = lines(tmp_path, f"reference,number:int\nPatient/p1,{cell}\n")
    assert words in line.trouble
    assert bool(line.trouble) is bool(words)
    assert CANARY not in line.trouble


@pytest.mark.parametrize("cell", [" u1", "..", "a\u200bb", "u" * 201])
def test_a_key_that_could_not_stand_in_a_path_is_refused(tmp_path: Path, cell: str) -> None:
    """Spaces around a key, dots alone, signs that nobody sees and endless text are no keys."""
    [line] = lines(tmp_path, f"reference,uuid\nPatient/p1,{cell}\n")
    assert line.trouble.startswith("column 2:")


def test_a_line_that_is_refused_leaves_its_neighbours(tmp_path: Path) -> None:
    """A wrong cell refuses its own line alone; empty lines are none."""
    first, second = lines(tmp_path, "reference,uuid\npatient p1,u1\n\nPatient/p2,u2\n")
    assert "like Patient/1f0c" in first.trouble
    assert (second.number, second.reference, second.trouble) == (4, "Patient/p2", "")


def test_what_is_given_out_is_taken_again(tmp_path: Path) -> None:
    """An export read back says the same of each link: keys with their types, slot, collection and parents."""
    rows = [
        LinkRow(1, "Patient/p1", "", "patient", {"number": 17, "uuid": '0;"a,b'}, {}),
        LinkRow(2, "Condition/c1", "left", "problem", {"number": "017"}, {"patient": "Patient/p1"}),
    ]
    out = io.StringIO()
    write(rows, columns_of(rows), out)
    read = lines(tmp_path, out.getvalue())
    assert [(line.reference, line.slot, line.collection, line.keys, line.parents) for line in read] == [
        (row.reference, row.slot, row.collection, row.keys, row.parents) for row in rows
    ]
