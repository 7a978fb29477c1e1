"""Tables from FHIR codes to a legacy system's own. An unknown code is refused unless the table states a default."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Final, Generic, TypeVar

from worker.errors import RoutesInvalid, Unmappable

COLUMNS = 2
NO_TARGET = frozenset({"unmatched", "disjoint"})

V = TypeVar("V")


class Refuse(Enum):
    """The type of REFUSE."""

    REFUSE = "refuse"


REFUSE: Final = Refuse.REFUSE


class Table(Generic[V]):
    """Rows from code to value, callable; rows may be tuples.

    Args:
        rows: the values by code.
        default: for codes without a row; None leaves the field empty. Without one such a code is refused.
        fold: whether case and outer spaces do not matter, as for words that people type; FHIR's own codes want it off.
    """

    def __init__(self, rows: Mapping[str, V], *, default: V | Refuse | None = REFUSE, fold: bool = False) -> None:
        self._fold = fold
        self._rows = {self._folded(code): value for code, value in rows.items()}
        self._default = default

    @classmethod
    def read(cls, path: str | Path, *, default: str | Refuse | None = REFUSE, fold: bool = False) -> Table[str]:
        """Read a table from a CSV file of two columns, code and value, with a line of titles.

        Args:
            path: the file; a relative one is taken from the file of the module that reads it.
            default: as for a table.
            fold: as for a table.

        Raises:
            RoutesInvalid: names file and line.
        """
        file = _beside_caller(path)
        rows: dict[str, str] = {}
        for number, line in enumerate(_lines(file), start=1):
            if number == 1 or not any(line):
                continue
            if len(line) != COLUMNS or not line[0].strip():
                raise RoutesInvalid(f"{file.name}:{number}: a line is a code and a value")
            if line[0] in rows:
                raise RoutesInvalid(f"{file.name}:{number}: this code has a line already")
            rows[line[0]] = line[1]
        return Table(rows, default=default, fold=fold)

    @classmethod
    def from_concept_map(cls, path: str | Path, *, default: str | Refuse | None = REFUSE) -> Table[str]:
        """Read a table from a FHIR ConceptMap in JSON: from each element's code to its first equivalent target's.

        Raises:
            RoutesInvalid: it is no ConceptMap, or maps one code twice.
        """
        file = _beside_caller(path)
        rows: dict[str, str] = {}
        for source, target in _concepts(file):
            if rows.setdefault(source, target) != target:
                raise RoutesInvalid(f"{file.name}: a code is mapped to two: say which by keeping one")
        return Table(rows, default=default)

    def __call__(self, code: str | None) -> V | None:
        """Look a code up; None stays None. Raises Unmappable for a code without a row, unless a default is stated."""
        if code is None:
            return None
        folded = self._folded(code)
        if folded in self._rows:
            return self._rows[folded]
        if self._default is REFUSE:
            raise Unmappable("a code that the table does not have")
        return self._default

    def __repr__(self) -> str:
        return f"Table({dict(sorted(self._rows.items()))!r}, default={self._default!r}, fold={self._fold})"

    def _folded(self, code: str) -> str:
        return code.strip().casefold() if self._fold else code


def _beside_caller(path: str | Path) -> Path:
    """Take a relative path from the file of the module that asked two calls above."""
    return Path(sys._getframe(2).f_globals["__file__"]).parent / path


def _lines(file: Path) -> list[list[str]]:
    try:
        return list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error):
        pass
    raise RoutesInvalid(f"{file.name} cannot be read as CSV in UTF-8")


def _concepts(file: Path) -> Iterator[tuple[str, str]]:
    try:
        concept_map = json.loads(file.read_text(encoding="utf-8"))
        for group in concept_map["group"]:
            for element in group["element"]:
                targets = [target for target in element.get("target", ()) if target.get("equivalence") not in NO_TARGET]
                if targets:
                    yield str(element["code"]), str(targets[0]["code"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise RoutesInvalid(f"{file.name} is not a FHIR ConceptMap in JSON") from None


_STATES = {
    "AL": "Alabama", "AK": "Alaska", "AZ": "Arizona", "AR": "Arkansas", "CA": "California", "CO": "Colorado",
    "CT": "Connecticut", "DE": "Delaware", "DC": "District of Columbia", "FL": "Florida", "GA": "Georgia",
    "HI": "Hawaii", "ID": "Idaho", "IL": "Illinois", "IN": "Indiana", "IA": "Iowa", "KS": "Kansas", "KY": "Kentucky",
    "LA": "Louisiana", "ME": "Maine", "MD": "Maryland", "MA": "Massachusetts", "MI": "Michigan", "MN": "Minnesota",
    "MS": "Mississippi", "MO": "Missouri", "MT": "Montana", "NE": "Nebraska", "NV": "Nevada", "NH": "New Hampshire",
    "NJ": "New Jersey", "NM": "New Mexico", "NY": "New York", "NC": "North Carolina", "ND": "North Dakota",
    "OH": "Ohio", "OK": "Oklahoma", "OR": "Oregon", "PA": "Pennsylvania", "RI": "Rhode Island",
    "SC": "South Carolina", "SD": "South Dakota", "TN": "Tennessee", "TX": "Texas", "UT": "Utah", "VT": "Vermont",
    "VA": "Virginia", "WA": "Washington", "WV": "West Virginia", "WI": "Wisconsin", "WY": "Wyoming",
    "AS": "American Samoa", "GU": "Guam", "MP": "Northern Mariana Islands", "PR": "Puerto Rico",
    "VI": "Virgin Islands", "AA": "Armed Forces Americas", "AE": "Armed Forces Europe", "AP": "Armed Forces Pacific",
}  # fmt: skip

US_STATES = Table({word: code for code, name in _STATES.items() for word in (code, name)}, fold=True)
"""The post's two letters (USPS Publication 28, appendix B), from either the letters or the name."""
