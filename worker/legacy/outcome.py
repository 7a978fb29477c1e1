"""What an answer of the legacy API means. Pure: looks at a status and a body, never at a socket.

Outside go only the status, declared error codes, the request's template and field names: the API's own words can name
a patient, and not even the one that was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import Enum, StrEnum
from http import HTTPStatus
from typing import Final

from worker.ledger.values import Key, Operation
from worker.legacy.wire import same

_WITHOUT_BODY = frozenset({204, 205})


class Outcome(StrEnum):
    """What became of a request."""

    DONE = "done"
    NOT_DONE = "not-done"  # the API certainly did not act: try again
    UNKNOWN = "unknown"  # it may have acted, or still act: find out first
    REFUSED = "refused"  # it said no: a person must act
    GONE = "gone"  # the record is not there (any more)
    EXISTS = "exists"  # a create met a record that is there already: find it
    CONFLICT = "conflict"  # the record is not what it was
    ACCEPTED = "accepted"  # only in declarations: taken, and done later


class Anything(Enum):
    """The type of ANY."""

    ANY = "any"


ANY: Final = Anything.ANY


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and, if need be, something in the body: `has` is a dotted path, `equal` what must stand there."""

    status: int
    has: str = field(default="", kw_only=True)
    equal: object = field(default=ANY, kw_only=True)

    def fits(self, status: int, body: object) -> bool:
        """Tell whether an answer is this one."""
        if status != self.status:
            return False
        found = at(body, self.has) if self.has else body
        return (not self.has or found is not None) if self.equal is ANY else same(self.equal, found)


@dataclass(frozen=True, slots=True)
class Header:
    """A header of an answer, or the part of it after the last `after` and before the first `before`.

    `Header("Location", after="/")` is a record's key, `Header("Set-Cookie", after="SESSION=", before=";")` a cookie.
    """

    name: str
    after: str = ""
    before: str = ""

    def taken(self, headers: Sequence[tuple[str, str]]) -> str | None:
        """Return this part of the first header that has it."""
        parts = (self._part(value) for name, value in headers if name.lower() == self.name.lower())
        return next((part for part in parts if part), None)

    def _part(self, value: str) -> str:
        if self.before:
            value = value.partition(self.before)[0]
        if not self.after:
            return value.strip()
        _, found, part = value.removesuffix(self.after).rpartition(self.after)
        return part.strip() if found else ""


Means = Mapping[int | Answer, Outcome]
"""Answers that mean something else than their status says; the first that fits wins."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one request to the legacy API. `words` are its own: to be sealed, never logged."""

    outcome: Outcome
    detail: str
    status: int | None = None
    keys: dict[str, Key] | None = field(default=None, repr=False)
    record: dict[str, object] | None = field(default=None, repr=False)
    body: object = field(default=None, repr=False)
    words: bytes | None = field(default=None, repr=False)
    retry_after_s: float | None = None
    etag: str | None = field(default=None, repr=False)
    declared: bool = False  # the outcome is one that the declaration names, not what the status says by itself


def declared(status: int, body: object, *layers: Means) -> Outcome | None:
    """Say what an answer was declared to mean, by the first layer that knows it: the call's before the API's."""
    for means in layers:
        for answer, outcome in means.items():
            if (answer if isinstance(answer, Answer) else Answer(answer)).fits(status, body):
                return outcome
    return None


_NOT_DONE = frozenset({401, 408, 425, 429, 503})


def by_status(status: int, operation: Operation | None) -> Outcome:
    """Say what a status means by itself. Operation None is a read.

    A redirect is unknown: a form's answer to a saved record is one too, and none is followed.
    """
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Outcome.DONE
    if status in _NOT_DONE:
        return Outcome.NOT_DONE
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE} and operation is not Operation.CREATE:
        return Outcome.GONE
    if status in {HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED}:
        return Outcome.CONFLICT
    client_error = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return Outcome.REFUSED if client_error else Outcome.UNKNOWN


def judged(
    status: int,
    body: object,
    *,
    meant: Outcome | None,
    operation: Operation | None,
    keys: Mapping[str, Key] | None,
    named: bool,
    says_no: bool,
    torn: bool,
) -> tuple[Outcome, str]:
    """Say what became of a request, and in words without values what is odd about its answer.

    Args:
        status: of the answer.
        body: of the answer; None if it has none, or is not JSON.
        meant: what the answer was declared to mean.
        operation: None is a read.
        keys: those of the record, chosen by us or answered.
        named: whether the answer itself holds a key.
        says_no: whether the API's words for an error stand in it.
        torn: whether it is not JSON.
    """
    outcome = meant or by_status(status, operation)
    creates, odd = operation is Operation.CREATE, "with what is not JSON" if torn else ""
    if outcome is Outcome.ACCEPTED:
        return (Outcome.UNKNOWN, "that it will be done") if creates and keys is None else (Outcome.DONE, "")
    if outcome is not Outcome.DONE:
        return outcome, odd
    if meant is None and not named and says_no:
        return Outcome.REFUSED, "with an error in its body"
    if creates and keys is None:
        return Outcome.UNKNOWN, odd or "without its key"
    if meant is None and not named and body is None and status not in _WITHOUT_BODY:
        # A proxy's page or a cut-off answer; an API that says so little declares means={200: DONE}.
        return Outcome.UNKNOWN, odd or "without a word"
    return outcome, odd


def at(body: object, path: str) -> object:
    """Return what stands at a dotted path, None where nothing does. The empty path is the whole."""
    for name in filter(None, path.split(".")):
        if isinstance(body, Mapping):
            body = body.get(name)
        elif isinstance(body, list) and name.isdecimal() and int(name) < len(body):
            body = body[int(name)]
        else:
            return None
    return body


Headers = Sequence[tuple[str, str]]
KeyPlaces = Mapping[str, "str | Header"]
"""Where each key of a record stands: a dotted path in it, a header of the answer, or `{field}`: we choose it."""


def keys_of(record: object, places: KeyPlaces, headers: Headers = ()) -> dict[str, Key] | None:
    """Return a record's keys by name, each in the JSON type that it came in; None unless all are there."""
    found = {
        name: place.taken(headers) if isinstance(place, Header) else at(record, place) for name, place in places.items()
    }
    keys = {name: key for name, key in found.items() if isinstance(key, str | int) and not isinstance(key, bool)}
    return keys if len(keys) == len(places) and all(str(key).strip() for key in keys.values()) else None


class NotJson(ValueError):
    """An answer is not JSON. Carries none of it."""


def parsed(payload: bytes) -> object:
    """Parse an answer, numbers with all their digits; an empty one is None.

    Raises:
        NotJson: without a chain, because JSON errors hold the document.
    """
    if not payload.strip():
        return None
    try:
        return json.loads(payload, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError, InvalidOperation):
        pass
    raise NotJson("an answer that is not JSON")


def _no_constant(name: str) -> object:
    raise ValueError(name)


def code(body: object, codes: Mapping[str, Sequence[str]]) -> str:
    """Return the error code that an answer holds, if it is one of those that were declared for its path."""
    found = (str(at(body, path)) for path, known in codes.items() if at(body, path) in known)
    return next(found, "")


def named_fields(body: object, errors: Sequence[str], sent: frozenset[str]) -> tuple[str, ...]:
    """Return the names, out of those that we sent, that an API's error words point to."""
    said = {word for path in errors for word in _names(at(body, path))}
    return tuple(sorted(said & sent))


def _names(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from map(str, value)
        for entry in value.values():
            yield from _names(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _names(entry)
    elif isinstance(value, str):
        yield value
