"""Where the reading of a window stands, as a value that is kept as text. Pure.

A position names the instant from which the next page is asked for, and not the server's cursor: a cursor carries the
ids of the page's last millisecond, hundreds of which no request line can hold, and dies with the server that made it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

__all__ = ["Crowd", "Position", "instant"]

_MILLISECOND = timedelta(milliseconds=1)


def instant(moment: datetime) -> str:
    """Write a time as Medplum does: in milliseconds, as UTC."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Crowd:
    """One millisecond with more rows than a page, read in the order of the ids from the front, then from the back.

    `last` is the id that this end has come to, `front` the one at which the front had to stop.
    """

    at: datetime
    offset: int = 0
    last: str = ""
    back: bool = False
    front: str = ""


@dataclass(frozen=True, slots=True)
class Position:
    """What is read next: the living from an instant on, or after them the deletions."""

    at: datetime
    deleted: bool = False
    crowd: Crowd | None = None

    def past(self, moment: datetime) -> Position:
        """Go on behind one millisecond."""
        return Position(moment + _MILLISECOND, self.deleted)

    def within(self, crowd: Crowd) -> Position:
        """Read one millisecond by its ids."""
        return replace(self, at=crowd.at, crowd=crowd)

    def text(self) -> str:
        """Write it down for `of`."""
        told: dict[str, object] = {"at": self.at.isoformat(), "deleted": self.deleted}
        if self.crowd is not None:
            crowd = self.crowd
            told["crowd"] = [crowd.at.isoformat(), crowd.offset, crowd.last, crowd.back, crowd.front]
        return json.dumps(told)

    @classmethod
    def of(cls, text: str | None, begin: datetime) -> Self:
        """Read what `text` wrote; where there is nothing, the reading begins."""
        if text is None:
            return cls(begin)
        told = json.loads(text)
        crowd = told.get("crowd")
        return cls(
            datetime.fromisoformat(told["at"]),
            told["deleted"],
            Crowd(datetime.fromisoformat(crowd[0]), *crowd[1:]) if crowd else None,
        )
