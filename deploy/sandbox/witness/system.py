"""What the witness and a legacy system say to each other: a request's head, a request, an answer, a no.

Values only. It never touches a socket or a record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import Scope

T = TypeVar("T")

_DIGITS_MAX = 15


class Outcome(StrEnum):
    """What became of a request, as the journal says it."""

    PENDING = "pending"  # has arrived, not carried out yet
    APPLIED = "applied"  # a write was saved
    READ = "read"
    REFUSED = "refused"  # the system said no
    DROPPED = "dropped"  # a fault kept it from being carried out


@dataclass(frozen=True, slots=True)
class Head:
    """A request before its body: what was asked, when it came, and where the template's keys are."""

    method: str
    path: str
    query: str
    headers: Headers
    template: str | None
    keys: Mapping[str, str]
    received_at: float

    @classmethod
    def of(cls, scope: Scope, system: System) -> Head:
        query = scope["query_string"].decode("latin-1")
        template, keys = system.template_of(scope["path"])
        return cls(scope["method"], scope["path"], query, Headers(scope=scope), template, keys, time.time())


@dataclass(frozen=True, slots=True)
class Request:
    """One API request, as far as a system looks at it; `query` holds no empty values."""

    journal: int
    keys: Mapping[str, str]
    query: Mapping[str, str]
    raw: bytes
    body: object


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a JSON body (None: no body) and what became of the request."""

    status: int
    body: Any = None
    outcome: Outcome = Outcome.READ
    record: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """The system says no."""

    def __init__(self, status: int, body: object) -> None:
        self.answer = Answer(status, body, Outcome.REFUSED)


Operation = Callable[[Request], Answer]


class System(Protocol):
    """A legacy system, as the door sees it."""

    @property
    def prefixes(self) -> Sequence[str]:
        """Say under which paths its API lies."""
        ...

    def template_of(self, path: str) -> tuple[str | None, Mapping[str, str]]:
        """Find the path template that a path is of, and its keys."""
        ...

    def read(self, head: Head, raw: bytes) -> object:
        """Read a body as the journal and the faults shall see it; None where it cannot be read."""
        ...

    def operation(self, head: Head) -> Operation:
        """Find what a request asks for, or raise Refusal."""
        ...


class Paths(Generic[T]):
    """Path templates, and what there is to do under each, by method."""

    def __init__(self, operations: Mapping[str, Mapping[str, T]]) -> None:
        self._operations = operations
        self._compiled = [(compile_path(template)[0], template) for template in operations]

    def template_of(self, path: str) -> tuple[str | None, Mapping[str, str]]:
        """Find the first template that a path is of, and its keys."""
        for regex, template in self._compiled:
            if match := regex.fullmatch(path):
                return template, match.groupdict()
        return None, {}

    def get(self, template: str, method: str) -> T | None:
        return self._operations[template].get(method)


def count(text: str | None) -> int:
    """Read a whole number; anything else is 0, which is nobody's key and no page."""
    usable = text is not None and text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
    return int(text) if usable and text else 0
