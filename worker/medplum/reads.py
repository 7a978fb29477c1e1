"""Reading what is current, many at a time: threads that ask in the same moment share one search.

A read by id would come out of Medplum's cache, which a delete leaves wrong; a search reads the database. The first
thread that asks for a type sends at once. Who comes while a request is under way is gathered for the next one, and
never joins one that has left: a read begins after it was asked for. It never decides what a state means.

Second looks, which anybody can cause who makes up ids, are let through as they come up to a rate. Beyond it they wait
for company, and no more of them than a few may wait: the others are given a time to come again.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from worker.deadline import deadline, left
from worker.errors import BadResource, MedplumError, MedplumUnavailable, ReverseSyncError
from worker.medplum.answer import BadPage, Entry, Page, QueryRefused
from worker.medplum.quota import Priority
from worker.medplum.token import again

__all__ = ["Absent", "Deleted", "Present", "Read", "Reads", "deletion", "present"]

MOST_IDS = 100
MOST_REQUESTS = 4  # of one type and priority at a time
GATHER_S = 0.05  # the longest that a read waits for an earlier request to come back
FREELY_PER_S = 2  # second looks that are asked for in a request of their own
FILL_S = 0.5  # the longest that one beyond these waits for company
MOST_SECOND_LOOKS = 8  # that are under way or wait: each holds a thread that a live read may need

_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9.-]{1,64}")
_TOMBSTONE = frozenset({"resourceType", "id", "meta"})


@dataclass(frozen=True, slots=True)
class Present:
    """The resource lives; `body` is its JSON as Medplum sent it."""

    reference: str
    version_id: str
    last_updated: datetime
    author: str | None
    body: bytes = field(repr=False)
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Deleted:
    """Medplum knows that the resource was deleted."""

    reference: str
    version_id: str | None
    last_updated: datetime | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Absent:
    """Medplum shows neither the resource nor a deletion: expunged, never there, or not for this client to see."""

    reference: str
    started_at: datetime


Read = Present | Deleted | Absent
Outcomes = dict[str, Read | ReverseSyncError]


class Ask(Protocol):
    """Sends one search and returns its page."""

    def __call__(self, resource_type: str, query: Mapping[str, str], priority: Priority) -> Page: ...


class Reads:
    """The reads of all threads of a process."""

    def __init__(
        self,
        ask: Ask,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        second_looks: int = MOST_SECOND_LOOKS,
    ) -> None:
        self._ask = ask
        self._now = now
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, Priority], _Lane] = {}
        self._crowd = _Crowd(second_looks)

    def read(self, reference: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> Read:
        """Read one resource, in company where there is some.

        Raises:
            MedplumUnavailable, MedplumRefused: as the request, shared or not, went.
            BadResource: the reference, or what Medplum has under it, is not one.
        """
        resource_type, _, id_ = reference.partition("/")
        if not _TYPE.fullmatch(resource_type) or not _ID.fullmatch(id_):
            raise BadResource("a reference should be a resource type and an id")
        if priority is Priority.SECOND_LOOK:
            with self._crowd.place():
                seat = self._seated(resource_type, id_, deadline_s, priority, self._crowd)
        else:
            seat = self._seated(resource_type, id_, deadline_s, priority, None)
        if isinstance(seat.outcome, ReverseSyncError):
            raise _anew(seat.outcome)
        return seat.outcome

    def together(self, resource_type: str, ids: Sequence[str], priority: Priority) -> Outcomes:
        """Read what a caller has gathered by itself: at most a page's ids, each once. It waits for nobody.

        Raises:
            BadResource: an id is none.
        """
        if not _TYPE.fullmatch(resource_type) or not all(map(_ID.fullmatch, ids)):
            raise BadResource("a reference should be a resource type and an id")
        return self._look(resource_type, list(ids), priority)

    def _seated(
        self, resource_type: str, id_: str, deadline_s: float, priority: Priority, crowd: _Crowd | None
    ) -> _Seat:
        """Wait in the lane, and send for everyone there if it is this thread's turn."""
        with self._lock:
            lane = self._lanes.setdefault((resource_type, priority), _Lane(crowd))
        with deadline(deadline_s):
            seat = _Seat(id_, time.monotonic() + left())
            if lane.wait(seat):
                self._serve(lane, seat.company, resource_type, priority)
        return seat

    def _serve(self, lane: _Lane, company: Sequence[_Seat], resource_type: str, priority: Priority) -> None:
        """Send for everyone in the company; each of them gets an outcome, whatever happens."""
        outcomes: Outcomes = {}
        otherwise: ReverseSyncError = MedplumUnavailable("the shared request broke off")
        try:
            ids = list(dict.fromkeys(seat.id for seat in company))
            outcomes = self._look(resource_type, ids, priority)
        except ReverseSyncError as error:
            otherwise = error
        finally:
            lane.leave()
            for seat in company:
                seat.end(outcomes.get(seat.id, otherwise))

    def _look(self, resource_type: str, ids: list[str], priority: Priority) -> Outcomes:
        """Ask for ids together; where one of them spoils it for all, find it by halving."""
        try:
            return self._ask_for(resource_type, ids, priority)
        except (QueryRefused, BadPage) as error:
            if len(ids) == 1:
                return {ids[0]: error}
        half = len(ids) // 2
        first = self._look(resource_type, ids[:half], priority)
        return first | self._look(resource_type, ids[half:], priority)

    def _ask_for(self, resource_type: str, ids: list[str], priority: Priority) -> Outcomes:
        started_at = self._now()
        query = {"_id": ",".join(ids), "_count": str(len(ids))}
        page = self._ask(resource_type, query, priority)
        outcomes: Outcomes = {}
        for id_, entry in _asked_for(page.entries, resource_type, ids):
            outcomes[id_] = _taken(present, entry, started_at) if id_ not in outcomes else _twice()
        missing = [id_ for id_ in ids if id_ not in outcomes]
        if not missing:
            return outcomes
        if page.following:
            raise MedplumUnavailable("Medplum cut a page that was asked for as a whole")
        query = {"_deleted": "true", "_id": ",".join(missing), "_count": str(len(missing))}
        page = self._ask(resource_type, query, priority)
        for id_, entry in _asked_for(page.entries, resource_type, missing):
            outcomes[id_] = _taken(deletion, entry, started_at)
        if page.following and any(id_ not in outcomes for id_ in missing):
            raise MedplumUnavailable("Medplum cut a page that was asked for as a whole")
        return outcomes | {id_: Absent(f"{resource_type}/{id_}", started_at) for id_ in ids if id_ not in outcomes}


@dataclass(eq=False, slots=True)
class _Seat:
    """One thread's place: taken when somebody sends for it, ended when there is an outcome."""

    id: str
    ends_at: float
    called: threading.Event = field(default_factory=threading.Event)
    taken: bool = False
    company: tuple[_Seat, ...] = ()  # those for whom this thread has to send, itself among them
    outcome: Read | ReverseSyncError = field(default_factory=lambda: MedplumUnavailable("nobody asked"))

    def end(self, outcome: Read | ReverseSyncError) -> None:
        self.outcome = outcome
        self.called.set()


class _Crowd:
    """The second looks of a process, whatever their types: whether there are many, and who may not wait with them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._sent: deque[float] = deque(maxlen=FREELY_PER_S)
        self._inside = 0
        self._line_ends_at = 0.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take one of the few places.

        Raises:
            MedplumUnavailable: none is free; whoever is refused gets a time of his own, so that they come one by one.
        """
        with self._lock:
            if self._inside >= self._most:
                raise MedplumUnavailable("second looks wait for each other", retry_after_s=self._turn_s())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def is_there(self) -> bool:
        """Say whether so many have asked within the last second that the next ones should fill a page."""
        with self._lock:
            return len(self._sent) == FREELY_PER_S and self._sent[0] > time.monotonic() - 1.0

    def note(self) -> None:
        """Count a request that is about to leave."""
        with self._lock:
            self._sent.append(time.monotonic())

    def _turn_s(self) -> float:
        now = time.monotonic()
        self._line_ends_at = max(self._line_ends_at, now + FILL_S) + FILL_S / self._most
        return self._line_ends_at - now


class _Lane:
    """Who waits for a request of one type and priority, and how many of them are under way."""

    def __init__(self, crowd: _Crowd | None = None) -> None:
        self._crowd = crowd
        self._lock = threading.Lock()
        self._waiting: list[_Seat] = []
        self._under_way = 0

    def wait(self, seat: _Seat) -> bool:
        """Return True when this thread has to send, False when it was served."""
        with self._lock:
            self._waiting.append(seat)
            if not self._under_way and self._need_not_fill():
                self._call_next()
        while not seat.called.wait(self._patience_s(seat)):
            with self._lock:
                if seat.called.is_set():
                    break
                if time.monotonic() >= seat.ends_at:
                    if not seat.taken:
                        self._waiting.remove(seat)
                    raise MedplumUnavailable("Medplum did not answer before the deadline")
                if not seat.taken and self._under_way < MOST_REQUESTS:
                    self._call_next()  # the request before us takes its time: go beside it
        return bool(seat.company)

    def leave(self) -> None:
        """End a request; those who gathered meanwhile share the next one."""
        with self._lock:
            self._under_way -= 1
            if self._waiting and self._need_not_fill():
                self._call_next()

    def _call_next(self) -> None:
        """Choose who sends, the one with the most time left, and whom else it serves; the lock is held."""
        first = max(self._waiting, key=lambda seat: seat.ends_at)
        company, ids = [first], {first.id}
        for seat in self._waiting:
            if seat is not first and (seat.id in ids or len(ids) < MOST_IDS):
                company.append(seat)
                ids.add(seat.id)
        self._waiting = [seat for seat in self._waiting if seat not in company]
        self._under_way += 1
        if self._crowd is not None:
            self._crowd.note()
        for seat in company:
            seat.taken = True
        first.company = tuple(company)
        first.called.set()

    def _need_not_fill(self) -> bool:
        """Say whether those who wait may go as they are; in a crowd the page has to be full, or their patience over."""
        return self._crowd is None or len(self._waiting) >= MOST_IDS or not self._crowd.is_there()

    def _patience_s(self, seat: _Seat) -> float:
        seconds = max(0.0, seat.ends_at - time.monotonic())
        if seat.taken:
            return seconds
        return min(GATHER_S if self._need_not_fill() else FILL_S, seconds)


def _asked_for(entries: Iterable[Entry], resource_type: str, ids: Sequence[str]) -> Iterable[tuple[str, Entry]]:
    """Keep what was asked for: a page can hold outcomes and included resources as well."""
    for entry in entries:
        id_ = entry.resource.get("id")
        if entry.resource.get("resourceType") == resource_type and isinstance(id_, str) and id_ in ids:
            yield id_, entry


def _taken(take: Callable[[Entry, datetime], Read], entry: Entry, started_at: datetime) -> Read | ReverseSyncError:
    try:
        return take(entry, started_at)
    except ReverseSyncError as error:
        return error


def _twice() -> ReverseSyncError:
    return MedplumUnavailable("Medplum answered with two versions of one resource")


def present(entry: Entry, started_at: datetime) -> Present:
    """Read a live resource's reference and meta."""
    meta = entry.resource.get("meta")
    version_id = meta.get("versionId") if isinstance(meta, dict) else None
    if not isinstance(version_id, str) or not version_id:
        raise BadResource("meta.versionId is missing")
    last_updated = _instant(meta)
    if last_updated is None:
        raise BadResource("meta.lastUpdated is not an instant")
    return Present(_reference(entry), version_id, last_updated, _author(meta), entry.body, started_at)


def deletion(entry: Entry, started_at: datetime) -> Deleted:
    """Read an entry of a search for deleted resources: an id and a time, and no content."""
    if entry.resource.keys() - _TOMBSTONE:
        raise MedplumUnavailable("Medplum listed a resource with content among the deleted ones")
    meta = entry.resource.get("meta")
    version_id = meta.get("versionId") if isinstance(meta, dict) else None
    return Deleted(_reference(entry), version_id if isinstance(version_id, str) else None, _instant(meta), started_at)


def _reference(entry: Entry) -> str:
    return f"{entry.resource.get('resourceType')}/{entry.resource.get('id')}"


def _instant(meta: Any) -> datetime | None:
    text = meta.get("lastUpdated") if isinstance(meta, dict) else None
    try:
        instant = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return instant.astimezone(UTC) if instant and instant.tzinfo else None


def _author(meta: Any) -> str | None:
    author = meta.get("author")
    reference = author.get("reference") if isinstance(author, dict) else None
    return reference if isinstance(reference, str) else None


def _anew(error: ReverseSyncError) -> ReverseSyncError:
    return again(error) if isinstance(error, MedplumError) else type(error)(str(error))
