"""Tables from FHIR codes to a legacy system's own. An unknown code is refused unless the table states a default."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, Generic, TypeVar

from worker.errors import Unmappable

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
