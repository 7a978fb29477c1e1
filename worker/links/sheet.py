"""The CSV of a crosswalk: lines of cells in, lines with names and typed keys out, and back. Pure but for the file.

Messages name lines and columns by number, never what stands in a cell: where the header is missing, the first cell of
a file is a patient's.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from worker.errors import LedgerError
from worker.ledger.crosswalk import LinkRow
from worker.ledger.values import Key

__all__ = ["Line", "Sheet", "SheetInvalid", "write"]

WHOLE = ":int"  # at the end of a key's column: its keys are JSON numbers
_PLAIN = ("reference", "identifier", "type", "collection", "slot")
_KEY, _PARENT = "key.", "parent."
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_REFERENCE = re.compile(r"[A-Z][A-Za-z]{1,63}/(?!\.{1,2}$)[A-Za-z0-9.-]{1,64}", re.ASCII)
_LONGEST_KEY, _LONGEST_SLOT = 200, 120  # the ledger's columns
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class SheetInvalid(LedgerError):
    """The file is not a CSV of links: nothing of it was taken."""


class CellRefused(Exception):
    """One line has a cell that cannot be what its column says."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file: which resource, which record. `trouble` says why it is none."""

    number: int
    reference: str = ""
    identifier: tuple[str, str] = ("", "")  # system, value
    type: str = ""
    collection: str = ""
    slot: str = ""
    keys: Mapping[str, Key] = field(default_factory=dict, repr=False)
    parents: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One file, whose header is known to be good. Its lines are read anew each time, one at a time."""

    path: Path
    columns: tuple[str, ...]
    delimiter: str

    @classmethod
    def open(cls, path: Path, key_names: Iterable[str]) -> Sheet:
        """Read a file's header; `key_names` are those of all collections, for columns without "key.".

        Raises:
            SheetInvalid: names line and column.
        """
        first = next(_text(path), "")
        delimiter = next((each for each in ",;\t" if each in first), ",")
        header = next(csv.reader([first], delimiter=delimiter), [])
        names = frozenset(key_names)
        columns = tuple(_column(number, cell, names) for number, cell in enumerate(header, 1))
        _check(columns)
        return cls(path, columns, delimiter)

    def lines(self) -> Iterator[Line]:
        """Yield the lines below the header.

        Raises:
            SheetInvalid: a line cannot be read, or has another number of cells than the header.
        """
        rows = csv.reader(_text(self.path), delimiter=self.delimiter, strict=True)
        try:
            next(rows, None)
            for row in rows:
                if any(cell.strip() for cell in row):
                    yield self._line(rows.line_num, row)
        except csv.Error:
            raise SheetInvalid(f"line {rows.line_num}: not CSV: a quotation mark or line end is out of place") from None

    def _line(self, number: int, row: Sequence[str]) -> Line:
        if len(row) != len(self.columns):
            first = min(len(row), len(self.columns)) + 1
            much = "a cell more than the header has" if len(row) > len(self.columns) else "this cell is missing"
            raise SheetInvalid(f"line {number}, column {first}: {much}")
        try:
            return _read(number, self.columns, row)
        except CellRefused as refusal:
            return Line(number, trouble=str(refusal))


def _text(path: Path) -> Iterator[str]:
    """Yield a file's lines as text; each is decoded alone, so that its number can be told."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield _decoded(number, raw)
    except OSError as error:
        raise SheetInvalid(f"{path} cannot be read: {error.strerror}") from None


def _decoded(number: int, raw: bytes) -> str:
    if number == 1 and raw.startswith(_WIDE):
        raise SheetInvalid("line 1: the file is UTF-16: save it as CSV in UTF-8")
    given = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
    try:
        text = given.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SheetInvalid(f"line {number}, byte {error.start + 1}: not UTF-8: save the file as CSV in UTF-8") from None
    if "\0" in text:
        raise SheetInvalid(f"line {number}: a NUL is in it: this is no text file")
    return text


def _column(number: int, cell: str, key_names: frozenset[str]) -> str:
    """Name a column in full. Never says what stood there: it may be a value, if the header is missing."""
    name = cell.strip()
    if name in _PLAIN or (name.startswith((_KEY, _PARENT)) and name.partition(".")[2].removesuffix(WHOLE)):
        return name
    if name.removesuffix(WHOLE) in key_names:
        return _KEY + name
    known = ", ".join([*_PLAIN, "key.NAME", "parent.NAME", *sorted(key_names)])
    raise SheetInvalid(f"line 1, column {number}: the header should name columns out of {known}")


def _check(columns: Sequence[str]) -> None:
    twice = [number for number, name in enumerate(columns, 1) if name in columns[: number - 1]]
    if twice:
        raise SheetInvalid(f"line 1, column {twice[0]}: the same name as an earlier column")
    if ("reference" in columns) == ("identifier" in columns):
        raise SheetInvalid("line 1: one of the columns reference and identifier is needed, and not both")
    if not any(name.startswith(_KEY) for name in columns):
        raise SheetInvalid("line 1: no column holds a key: key.NAME, or key.NAME:int where the API gives a number")


def _read(number: int, columns: Sequence[str], row: Sequence[str]) -> Line:
    cells = {name: cell for name, cell in zip(columns, row, strict=True) if cell != ""}
    keys: dict[str, Key] = {}
    parents: dict[str, str] = {}
    for place, (name, cell) in enumerate(zip(columns, row, strict=True), 1):
        if cell == "":
            continue
        if name.startswith(_KEY):
            key = name.removeprefix(_KEY).removesuffix(WHOLE)
            if key in keys:
                raise CellRefused(f"column {place}: a second value of the key {key}")
            keys[key] = _key(place, cell, whole=name.endswith(WHOLE))
        elif name.startswith(_PARENT):
            parents[name.removeprefix(_PARENT)] = _reference(place, cell)
    if "reference" in columns:
        reference, identifier = _reference(columns.index("reference") + 1, cells.get("reference", "")), ("", "")
    else:
        reference, identifier = "", _identifier(columns.index("identifier") + 1, cells.get("identifier", ""))
    slot = cells.get("slot", "")
    if len(slot) > _LONGEST_SLOT:
        raise CellRefused(f"column {columns.index('slot') + 1}: longer than {_LONGEST_SLOT} characters")
    type_ = reference.partition("/")[0] or cells.get("type", "")
    if "type" in cells and cells["type"] != type_:
        raise CellRefused(f"column {columns.index('type') + 1}: not the type of the reference")
    return Line(number, reference, identifier, type_, cells.get("collection", ""), slot, keys, parents)


def _key(place: int, cell: str, *, whole: bool) -> Key:
    if whole and not _NUMBER.fullmatch(cell):
        raise CellRefused(f"column {place}: not a whole number, as its column says")
    if cell != cell.strip() or not cell.isprintable() or cell in {".", ".."} or len(cell) > _LONGEST_KEY:
        raise CellRefused(f"column {place}: spaces around it, signs that cannot be printed, dots alone, or too long")
    return int(cell) if whole else cell


def _reference(place: int, cell: str) -> str:
    if not _REFERENCE.fullmatch(cell):
        raise CellRefused(f"column {place}: should be a reference like Patient/1f0c")
    return cell


def _identifier(place: int, cell: str) -> tuple[str, str]:
    system, bar, value = cell.partition("|")
    if not (system and bar and value) or cell != cell.strip() or "|" in value:
        raise CellRefused(f"column {place}: should be system|value, without another | (else name the reference)")
    return system, value


# giving out


def write(rows: Iterable[LinkRow], columns: Sequence[str], out: TextIO) -> None:
    """Write links as lines that `Sheet` takes again."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells: dict[str, Any] = {"reference": row.reference, "collection": row.collection, "slot": row.slot}
        cells |= {_key_column(name, key): key for name, key in row.keys.items()}
        cells |= {_PARENT + name: reference for name, reference in row.parents.items()}
        writer.writerow([cells.get(name, "") for name in columns])


def columns_of(rows: Iterable[LinkRow]) -> tuple[str, ...]:
    """Name the columns that links need: one for each key, two where it is a number here and text there."""
    keys: dict[str, None] = {}
    parents: dict[str, None] = {}
    for row in rows:
        keys.update(dict.fromkeys(_key_column(name, key) for name, key in row.keys.items()))
        parents.update(dict.fromkeys(_PARENT + name for name in row.parents))
    return ("reference", "collection", "slot", *sorted(keys), *sorted(parents))


def _key_column(name: str, key: Key) -> str:
    return f"{_KEY}{name}{WHOLE if isinstance(key, int) else ''}"
