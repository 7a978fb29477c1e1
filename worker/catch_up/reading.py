"""The pages of one window, one after the other: the living by their time, then the deletions. Knows no ledger.

Every page is asked for by the instant at which the one before it ended, whose rows come once more. Where one
millisecond has more rows than a page, the search cannot get past it. It is read by the order of ids then, from both
ends, because an offset has a limit. An offset page is believed only where it overlaps what was read before it: rows
leave that millisecond when they are written anew, and those behind them move forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from worker.catch_up.position import Crowd, Position, instant
from worker.errors import BadResource, MedplumUnavailable
from worker.ledger.values import Hint, Source
from worker.medplum import Deleted, Medplum, Present, Priority, SearchPage
from worker.medplum.answer import BadPage, Crowded, Query

__all__ = ["MOST_OFFSET", "OVERLAP", "PAGE", "Reading", "Row", "Step", "hint"]

PAGE = 1000
MOST_OFFSET = 10_000  # Medplum refuses more
OVERLAP = 20  # rows that two offset pages share
LEAST_PAGE = 4
CALL_S = 10.0

TOO_MANY = "more resources have this lastUpdated than Medplum shows of one millisecond"
OTHER_ORDER = "Medplum sorts the ids of one millisecond in another order than by their letters"

Row = Present | Deleted


@dataclass(frozen=True, slots=True)
class Step:
    """One page: its rows, where to go on (none: all is read), Medplum's time, and what could not be read whole."""

    rows: tuple[Row, ...]
    here: Position
    then: Position | None
    at: datetime
    left: datetime | None = None
    why: str = ""

    def parts(self, size: int, leave: datetime | None = None) -> Iterator[tuple[list[Hint], Position]]:
        """Give the rows in parts, each with the position once it is taken; rows younger than `leave` are left out."""
        starts = range(0, len(self.rows), size) or (0,)
        for start in starts:
            rows = self.rows[start : start + size]
            hints = [hint(row) for row in rows if leave is None or _updated(row) <= leave]
            yield hints, self._after(start + len(rows))

    def _after(self, taken: int) -> Position:
        if taken >= len(self.rows):
            return self.then or self.here
        crowd = self.here.crowd
        if crowd is None:
            return replace(self.here, at=_updated(self.rows[taken]))
        return self.here  # a page of a crowd is taken as a whole, or begun again


class Reading:
    """Reads windows of one Medplum, a page at a time. It keeps nothing but how large a page may be."""

    def __init__(
        self, medplum: Medplum, *, page: int = PAGE, most_offset: int = MOST_OFFSET, overlap: int = OVERLAP
    ) -> None:
        self._medplum = medplum
        self._page, self._most_offset, self._overlap = page, most_offset, overlap

    def step(self, resource_type: str, position: Position, *, begin: datetime, end: datetime | None) -> Step:
        """Read the next page of a window that begins at `begin` and ends with `end`, or goes on to the end.

        Raises:
            MedplumUnavailable, MedplumRefused, BadResource: the position still stands.
        """
        while True:
            try:
                if position.crowd is not None:
                    return self._of_crowd(resource_type, position, position.crowd)
                return self._by_time(resource_type, position, begin, end)
            except BadPage:
                if self._page <= LEAST_PAGE:
                    raise
                self._page = max(LEAST_PAGE, self._page // 4)

    def _by_time(self, resource_type: str, position: Position, begin: datetime, end: datetime | None) -> Step:
        query = _since(position, end)
        try:
            page = self._ask(resource_type, position, query, self._page)
        except Crowded:
            return self._crowded(resource_type, position, query)
        if not page.more:
            then = None if position.deleted else Position(begin, deleted=True)
            return Step(page.entries, position, then, _date(page))
        times = [_updated(row) for row in page.entries]
        if not times or times != sorted(times):
            raise MedplumUnavailable("Medplum does not sort by _lastUpdated")
        if times[0] == times[-1]:
            return self._crowded(resource_type, position, query)
        return Step(page.entries, position, replace(position, at=times[-1]), _date(page))

    def _crowded(self, resource_type: str, position: Position, query: Query) -> Step:
        """Find the millisecond that the search cannot get past; a page of one row has no cursor to stand still."""
        page = self._ask(resource_type, position, query, 1)
        if not page.entries:  # they have left it meanwhile
            return Step((), position, position, _date(page))
        first = _updated(page.entries[0])
        return Step((), position, position.within(Crowd(first)), _date(page))

    def _of_crowd(self, resource_type: str, position: Position, crowd: Crowd) -> Step:
        page, ids, offset = self._joined(resource_type, position, crowd)
        at = _date(page)
        if ids != sorted(ids, reverse=crowd.back):
            return Step(page.entries, position, position.past(crowd.at), at, crowd.at, OTHER_ORDER)
        last = ids[-1] if ids else crowd.last
        met = crowd.back and (not ids or last <= crowd.front)
        if met or not page.more:
            return Step(page.entries, position, position.past(crowd.at), at)
        if offset < self._most_offset:
            further = min(offset + max(1, len(ids) - self._shared), self._most_offset)
            return Step(page.entries, position, position.within(replace(crowd, offset=further, last=last)), at)
        if not crowd.back:
            turned = Crowd(crowd.at, back=True, front=last)
            return Step(page.entries, position, position.within(turned), at)
        return Step(page.entries, position, position.past(crowd.at), at, crowd.at, TOO_MANY)

    def _joined(self, resource_type: str, position: Position, crowd: Crowd) -> tuple[SearchPage, list[str], int]:
        """Read an offset page that joins on to what was read before it, from further in front where rows have left."""
        offset = crowd.offset
        query: Query = (("_lastUpdated", f"eq{instant(crowd.at)}"), ("_sort", "-_id" if crowd.back else "_id"))
        while True:
            page = self._ask(resource_type, position, (*query, ("_offset", str(offset))), self._page)
            ids = [row.reference.partition("/")[2] for row in page.entries]
            joins = bool(ids) and (ids[0] >= crowd.last if crowd.back else ids[0] <= crowd.last)
            if offset == 0 or joins:
                return page, ids, offset
            offset = max(0, offset - max(1, self._page // 2))

    @property
    def _shared(self) -> int:
        return min(self._overlap, self._page // 2)

    def _ask(self, resource_type: str, position: Position, query: Query, count: int) -> SearchPage:
        deleted: Query = (("_deleted", "true"),) if position.deleted else ()
        asked: Query = (*deleted, *query, ("_count", str(count)))
        pages = self._medplum.search(resource_type, asked, deadline_s=CALL_S, priority=Priority.CATCH_UP)
        return next(iter(pages))


def _since(position: Position, end: datetime | None) -> Query:
    until: Query = () if end is None else (("_lastUpdated", f"le{instant(end)}"),)
    return (("_lastUpdated", f"ge{instant(position.at)}"), *until, ("_sort", "_lastUpdated"))


def hint(row: Row) -> Hint:
    """Say of a row that its resource changed, as a notification would."""
    if isinstance(row, Present):
        return Hint(row.reference, row.version_id, row.last_updated, author=row.author, source=Source.CATCH_UP)
    return Hint(row.reference, None, row.last_updated, "delete", source=Source.CATCH_UP)


def _updated(row: Row) -> datetime:
    if row.last_updated is None:
        raise BadResource("meta.lastUpdated is missing in a deletion")
    return row.last_updated


def _date(page: SearchPage) -> datetime:
    """Give Medplum's time of a page: without it nothing could ever be proven, and that has to show."""
    if page.at is None:
        raise MedplumUnavailable("Medplum's answer has no Date: no time can be proven by it (does a proxy strip it?)")
    return page.at
