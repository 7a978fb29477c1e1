"""What a comparison asks the legacy system: a record by its key, a second way, and whether others agree with it.

It only reads, a few calls at a time through the gate, and says in words why something cannot be told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from worker.errors import BadKey, LegacyError, LegacyUnavailable, ReverseSyncError
from worker.ledger.values import Keys
from worker.legacy import Collection, Find, Hit, Listed
from worker.legacy.pages import PAGES_MAX
from worker.links.asking import Asking
from worker.reconcile.judging import Compared, Seen

T = TypeVar("T")

TRIES = 3  # of one call; a record that is never answered must not hold up all others
SILENT_MOST = 10  # calls in a row without an answer: then it is the API that is away, and not a record
_LATER = frozenset({401, 408, 425, 429})
_NOT_THERE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

Parents = Mapping[str, Keys]


class CannotTell(ReverseSyncError):
    """A record cannot be judged; the words say why, without a value."""


class ApiSilent(ReverseSyncError):
    """The legacy API does not answer: nothing more can be compared now."""


@dataclass(frozen=True, slots=True)
class _Refused:
    words: str
    status: int


@dataclass(slots=True)
class Eyes:
    """The legacy system, as a comparison looks at it. Safe for threads."""

    asking: Asking
    _silent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, compared: Compared, parents: Parents, own_parents: Parents) -> Seen:
        """Look at one step's record; `parents` are those that it should stand under, `own_parents` its link's.

        Raises:
            ApiSilent: it and many before it were not answered.
        """
        step, collection = compared.step, compared.collection
        try:
            record = None
            if step.link is not None and step.link.keys:
                record = self._own(collection, step.link.keys, own_parents)
            if compared.fields is None:
                return Seen(record)
            return self._beside(compared, record, parents)
        except CannotTell as trouble:
            return Seen(why=str(trouble))

    def is_there(self, collection: Collection, keys: Keys) -> bool:
        """Tell whether a record that a list shows is there, as far as it can be read by its keys alone."""
        if collection.read_by is None:
            return True
        try:
            record = self._ask(collection, lambda left_s: collection.read(keys, {}, deadline_s=left_s))
        except CannotTell:
            return True
        return record is not None and not collection.is_gone(record)

    def page(self, collection: Collection, parents: Parents, place: str) -> Listed | str:
        """Read one page of a list, or say why that cannot be. What is listed under a parent that is gone is nothing."""
        try:
            return self._ask(
                collection,
                lambda left_s: collection.listed(parents, place=place, deadline_s=left_s),
                nothing=(lambda: Listed((), "")) if parents else None,
            )
        except CannotTell as trouble:
            return str(trouble)

    def all_under(self, collection: Collection, parents: Parents) -> list[Hit] | str:
        """Read the list under one parent to its end, or say why that cannot be."""
        hits: dict[str, Hit] = {}
        place = ""
        for _ in range(PAGES_MAX):
            listed = self.page(collection, parents, place)
            if isinstance(listed, str):
                return listed
            new = {key: hit for hit in listed.hits if (key := first_key(hit.keys)) not in hits}
            hits |= new
            place = listed.following
            if not place or not new:  # an API that does not know the parameter gives the same page for ever
                return list(hits.values())
        return f"more than {PAGES_MAX} pages under one parent"

    def _beside(self, compared: Compared, record: Mapping[str, object] | None, parents: Parents) -> Seen:
        """Look for records that agree in what `match` names: our own, where its key did not show it, and others."""
        step, collection, fields = compared.step, compared.collection, compared.fields or {}
        links_own = step.link is not None and bool(step.link.keys)
        if not _can_look_for(collection, fields):
            if record is None and links_own and not collection.can_read:
                return Seen(why=f"{collection.name} can neither be read by its key nor found")
            return Seen(record)
        try:
            hits = self._find(collection, fields, parents)
        except CannotTell as trouble:
            if record is None:
                raise
            return Seen(record, blind=str(trouble))
        own = first_key(step.link.keys) if step.link is not None and step.link.keys else None
        if record is None:
            record = next((hit.record for hit in hits if first_key(hit.keys) == own), None)
        others = [
            first_key(hit.keys) for hit in hits if first_key(hit.keys) != own and not collection.is_gone(hit.record)
        ]
        return Seen(record, others=tuple(others))

    def _own(self, collection: Collection, keys: Keys, parents: Parents) -> Mapping[str, object] | None:
        if not collection.can_read:
            return None
        return self._ask(collection, lambda left_s: collection.read(keys, parents, deadline_s=left_s))

    def _find(self, collection: Collection, fields: Mapping[str, object], parents: Parents) -> list[Hit]:
        return self._ask(
            collection, lambda left_s: collection.find(fields, parents, deadline_s=left_s), nothing=list[Hit]
        )

    def _ask(self, collection: Collection, call: Callable[[float], T], *, nothing: Callable[[], T] | None = None) -> T:
        try:
            answer = self.asking.legacy(collection, lambda left_s: _careful(call, left_s))
        except LegacyUnavailable as away:
            self._note_silence(str(away))
            raise CannotTell(str(away)) from None
        except (BadKey, LegacyError) as trouble:
            raise CannotTell(str(trouble)) from None
        with self._lock:
            self._silent = 0
        if isinstance(answer, _Refused):
            if nothing is not None and answer.status in _NOT_THERE:  # what it stood under is gone
                return nothing()
            raise CannotTell(answer.words)
        return answer

    def _note_silence(self, why: str) -> None:
        with self._lock:
            self._silent += 1
            silent = self._silent
        if silent >= SILENT_MOST:
            raise ApiSilent(f"{why}: the same command goes on from here once it answers")


def _careful(call: Callable[[float], T], left_s: float) -> T | _Refused:
    """Make a call; a refusal is an answer, and asking again would bring the same one."""
    try:
        return call(left_s)
    except LegacyUnavailable as away:
        status = away.status or 0
        client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        if client_error and status not in _LATER:
            return _Refused(str(away), status)
        raise


def _can_look_for(collection: Collection, fields: Mapping[str, object]) -> bool:
    how = collection.find_by
    return isinstance(how, Find) and any(fields.get(name) not in (None, "") for name in how.match)


def first_key(keys: Keys) -> str:
    return str(next(iter(keys.values())))
