"""What links are checked against: Medplum by search, the legacy system through its gate. Both are waited for.

It only reads. An operator's command has time: where a system asks for patience it waits, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from worker.errors import LegacyUnavailable, MedplumUnavailable
from worker.legacy import Collection
from worker.legacy.gate import Gate, Pass
from worker.medplum import Absent, Deleted, Medplum, Present, Priority, Read, SearchPage
from worker.medplum.answer import Query
from worker.medplum.resource import parse

T = TypeVar("T")
Identifier = tuple[str, str]
"""System and value."""

IDS_AT_A_TIME, IDENTIFIERS_AT_A_TIME, PAGE = 100, 25, 1000
TRIES, LONGEST_WAIT_S, CALL_S = 8, 60.0, 30.0
_DELETED = {"_deleted": "true"}


@dataclass(frozen=True, slots=True)
class Asking:
    """Both systems, as the commands around links ask them."""

    medplum: Medplum
    gate: Gate
    tell: Callable[[str], object] = lambda line: None
    sleep: Callable[[float], object] = field(default=time.sleep)
    tries: int = TRIES  # of one call to the legacy system

    def living(self, references: Iterable[str]) -> frozenset[str]:
        """Tell which of these resources live in Medplum."""
        return frozenset(present.reference for present in self.present(references))

    def present(self, references: Iterable[str]) -> Iterator[Present]:
        """Yield these resources, those that live."""
        for type_, ids in _by_type(references).items():
            for some in chunks(ids, IDS_AT_A_TIME):
                yield from self._all(type_, {"_id": ",".join(some), "_count": str(len(some))})

    def states(self, references: Iterable[str]) -> dict[str, Read]:
        """Read these resources: living, deleted, or not shown by Medplum."""
        found: dict[str, Read] = {}
        for type_, ids in _by_type(references).items():
            for some in chunks(ids, IDS_AT_A_TIME):
                asked_at = datetime.now(UTC)
                for more in ({}, _DELETED, {}):  # the third time for what was restored between the first two
                    missing = [id_ for id_ in some if f"{type_}/{id_}" not in found]
                    query = {"_id": ",".join(missing), "_count": str(len(missing)), **more}
                    found |= {each.reference: each for each in self._entries(type_, query)} if missing else {}
                for id_ in some:
                    found.setdefault(f"{type_}/{id_}", Absent(f"{type_}/{id_}", asked_at))
        return found

    def search(self, type_: str, query: Query) -> Iterator[SearchPage]:
        """Yield the pages of one search; the first that is not answered ends it.

        Raises:
            MedplumUnavailable: the pages so far are good.
        """
        yield from self.medplum.search(type_, query, deadline_s=CALL_S, priority=Priority.CATCH_UP)

    def carrying(self, type_: str, identifiers: Iterable[Identifier]) -> dict[Identifier, dict[str, list[str]]]:
        """Tell who carries each identifier: reference → all its values of that system. What came is looked at here."""
        wanted = dict.fromkeys(identifiers)
        found: dict[Identifier, dict[str, list[str]]] = {each: {} for each in wanted}
        for some in chunks(wanted, IDENTIFIERS_AT_A_TIME):
            asked = ",".join(f"{_escaped(system)}|{_escaped(value)}" for system, value in some)
            for present in self._all(type_, {"identifier": asked, "_count": str(PAGE)}):
                carried = identifiers_of(parse(present.body))
                for system, value in some:
                    values = carried.get(system, [])
                    if value in values:
                        found[system, value][present.reference] = values
        return found

    def everything(self, type_: str) -> Iterator[Present]:
        """Yield all that lives of a type, by time; what changes meanwhile comes again."""
        since, quiet = datetime(1970, 1, 1, tzinfo=UTC), 0
        while True:
            last = since
            try:
                for present in self._pages(type_, _from(since)):
                    last, quiet = present.last_updated, 0
                    yield present
            except MedplumUnavailable as away:
                quiet += 1
                self.wait(away.retry_after_s, quiet, away)
                since = last
            else:
                return

    def legacy(self, collection: Collection, call: Callable[[float], T]) -> T:
        """Make a call that only reads, through the gate.

        Raises:
            LegacyUnavailable: it was not answered, many times.
        """
        for attempt in range(1, self.tries + 1):
            entered = self._enter(collection)
            try:
                return call(collection.api.deadline_s)
            except LegacyUnavailable as away:
                self.wait(away.retry_after_s, attempt, away, tries=self.tries)
            finally:
                self.gate.leave(entered, None)
        raise AssertionError("unreachable")

    def _enter(self, collection: Collection) -> Pass:
        while True:
            entered = self.gate.enter(collection.api)
            if isinstance(entered, Pass):
                return entered
            self.sleep(min(max(entered.wait_s, 0.05), LONGEST_WAIT_S))

    def _all(self, type_: str, query: Mapping[str, str]) -> list[Present]:
        return [entry for entry in self._entries(type_, query) if isinstance(entry, Present)]

    def _entries(self, type_: str, query: Mapping[str, str]) -> list[Present | Deleted]:
        for attempt in range(1, TRIES + 1):
            try:
                return [entry for page in self.search(type_, tuple(query.items())) for entry in page.entries]
            except MedplumUnavailable as away:
                self.wait(away.retry_after_s, attempt, away)
        raise AssertionError("unreachable")

    def _pages(self, type_: str, query: Mapping[str, str]) -> Iterator[Present]:
        for page in self.search(type_, tuple(query.items())):
            for entry in page.entries:
                if isinstance(entry, Present):
                    yield entry

    def wait(self, asked_s: float | None, attempt: int, away: Exception, *, tries: int = TRIES) -> None:
        """Wait before the next try; after the last one, raise what came."""
        if attempt >= tries:
            raise away
        wait_s = min(2.0 ** (attempt - 1) if asked_s is None else max(asked_s, 0.1), LONGEST_WAIT_S)
        self.tell(f"{away}: again in {wait_s:.0f} s")
        self.sleep(wait_s)


def identifiers_of(resource: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return a resource's identifiers by system, without those that it says are old. A few types have only one."""
    given = resource.get("identifier")
    found: dict[str, list[str]] = {}
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, dict) and each.get("use") != "old":
            system, value = each.get("system"), each.get("value")
            if isinstance(system, str) and isinstance(value, str) and value not in found.setdefault(system, []):
                found[system].append(value)
    return found


def chunks(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Cut what comes into lists of at most `size`."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _by_type(references: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for reference in sorted(set(references)):
        type_, _, id_ = reference.partition("/")
        found.setdefault(type_, []).append(id_)
    return found


def _from(since: datetime) -> dict[str, str]:
    moment = since.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"_lastUpdated": f"ge{moment}", "_sort": "_lastUpdated", "_count": str(PAGE)}


def _escaped(text: str) -> str:
    """Escape what parts the values of a search."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
