"""How an operation on a kind of record is done, or why it cannot be. Pure: builds requests, never sends one.

Everything in braces is a name: an own key (`{uuid}`), a mapped field (`{last_name}`), or a key of a linked record
(`{patient.uuid}`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from worker.errors import BadKey, RoutesInvalid
from worker.ledger.values import Operation
from worker.legacy.outcome import Means
from worker.legacy.wire import as_json

if TYPE_CHECKING:
    from worker.legacy.collection import Collection

_BRACE = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")
_SEGMENTS = re.compile(r"[/\\]")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})

Body = Callable[[Mapping[str, object], Mapping[str, object]], tuple[str, bytes]]
"""Turns fields and own keys into a content type and bytes."""


def json_body(fields: Mapping[str, object], own_keys: Mapping[str, object]) -> tuple[str, bytes]:
    """Write the fields as one JSON object. Own keys stay in the path."""
    return "application/json", as_json(fields).encode()


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What the legacy API cannot do; the words are what operator and readiness report show. Counted as a loss."""

    why: str

    def __post_init__(self) -> None:
        if not self.why.strip():
            raise RoutesInvalid("Unsupported needs the words that an operator will read")


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `means` says what an answer means that is not what its status says; `idempotency` names a header."""

    request: str
    means: Means = field(default_factory=dict, kw_only=True)
    idempotency: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        template(self.request)


@dataclass(frozen=True, slots=True)
class Replace:
    """An update by delete and create, for APIs that cannot change a record. The delete is never repeated.

    `create_first` makes the new record before the old one goes, where the API allows two.
    """

    create_first: bool = False


@dataclass(frozen=True, slots=True)
class Find:
    """How records are looked up.

    `match` is compulsory, because APIs ignore filters that they do not know: a hit counts only if these mapped fields
    are equal on our side (a mapping gives the record's own name for each). Braces without a value are left out of the
    query. `page` names the parameter that counts pages from 1; they are asked for until one brings nothing new.
    `before_create` looks before the first create as well, not only after an unknown outcome.
    """

    request: str
    match: Sequence[str] | Mapping[str, str] = field(kw_only=True)
    page: str = field(default="", kw_only=True)
    means: Means = field(default_factory=dict, kw_only=True)
    before_create: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.match or isinstance(self.match, str):
            raise RoutesInvalid("Find needs match: the fields in which a hit must be equal on our side")
        if template(self.request).method != "GET":
            raise RoutesInvalid(f"{self.request}: a find only reads")

    def record_name(self, name: str) -> str:
        """Name the record's field that holds a mapped field."""
        return self.match.get(name, name) if isinstance(self.match, Mapping) else name


@dataclass(frozen=True, slots=True)
class LegacyRequest:
    """One request to the legacy API, complete but for base URL and credentials. `query` is encoded."""

    method: str
    template: str
    path: str = field(repr=False)
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    content_type: str | None
    body: bytes | None = field(repr=False)
    collection: Collection | None = field(repr=False)
    operation: Operation | None
    means: Means = field(default_factory=dict, repr=False)
    names: frozenset[str] = frozenset()

    def paged(self, parameter: str, number: int) -> LegacyRequest:
        """Return the same request for one page; without a parameter there is only one."""
        if not parameter:
            return self
        return replace(self, query="&".join(filter(None, (self.query, f"{quote(parameter, safe='')}={number}"))))


@dataclass(frozen=True, slots=True)
class Template:
    """A request line taken apart. `names` are those in its braces, in order."""

    text: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    names: tuple[str, ...]

    def fill_path(self, lookup: Callable[[str], object]) -> str:
        """Fill the path's braces, each encoded so that it stays one segment.

        Raises:
            BadKey: a value is missing, empty, neither text nor a whole number, or has a dot segment, which servers and
                clients resolve even where it is encoded.
        """
        return _BRACE.sub(lambda brace: quote(self._key(brace[1], lookup(brace[1])), safe=""), self.path)

    def fill_query(self, lookup: Callable[[str], object]) -> str:
        """Fill the query; a parameter one of whose names has no value is left out."""
        pairs = []
        for name, value in self.query:
            given = {brace: lookup(brace) for brace in _BRACE.findall(value)}
            if all(one is not None and one != "" for one in given.values()):
                filled = _BRACE.sub(lambda brace, given=given: str(given[brace[1]]), value)  # type: ignore[misc]
                pairs.append(f"{name}={quote(filled, safe='')}")
        return "&".join(pairs)

    def _key(self, name: str, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadKey(f"{self.text}: {{{name}}} is missing, or is no key")
        if any(segment.partition(";")[0].strip() in {"", ".", ".."} for segment in _SEGMENTS.split(str(value))):
            raise BadKey(f"{self.text}: {{{name}}} is empty, or would change the path")
        return str(value)


@cache
def template(text: str) -> Template:
    """Take a request line like "PUT /patients/{patient.uuid}" apart.

    Raises:
        RoutesInvalid: it has no method, its path does not begin with one `/`, or a brace holds no name.
    """
    method, _, target = text.partition(" ")
    path, _, query = target.partition("?")
    if method not in _METHODS or not path.startswith("/") or path.startswith("//") or " " in target or "#" in target:
        raise RoutesInvalid(f'"{text}" is not a request like "GET /patients/{{uuid}}"')
    names = tuple(_BRACE.findall(target))
    if any(not _NAME.fullmatch(name) for name in names) or set(_BRACE.sub("", target)) & {"{", "}"}:
        raise RoutesInvalid(f'"{text}" has a brace that holds no name')
    pairs = tuple((name, value) for name, _, value in (part.partition("=") for part in query.split("&") if part))
    return Template(text, method, path, pairs, names)
