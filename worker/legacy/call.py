"""How an operation on a kind of record is done, or why it cannot be. Pure: builds requests, never sends one."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from worker.errors import RoutesInvalid
from worker.ledger.values import Key, Operation
from worker.legacy.body import Body
from worker.legacy.outcome import Header, Means
from worker.legacy.template import names_in, template
from worker.legacy.wire import Constant

if TYPE_CHECKING:
    from worker.legacy.collection import Collection

CURRENT = "current"
"""The name before the dot for what the record holds now, as in `{current.version}`."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What the legacy API cannot do; the words are what operator and readiness report show. Counted as a loss."""

    why: str

    def __post_init__(self) -> None:
        if not self.why.strip():
            raise RoutesInvalid("Unsupported needs the words that an operator will read")


@dataclass(frozen=True, slots=True)
class Call:
    """One request. A constant that is a single brace keeps the type of what stands there, as `{"drug": "{id}"}`.

    Args:
        request: its line, like "PUT /patients/{uuid}".
        also: sent besides the mapped fields.
        send: sent instead of them: a delete by status, for one. `also` goes along.
        without: mapped fields, or with `over_current` fields of the record, that must not go along.
        over_current: read the record, lay what is sent over it, send the whole: for a PUT that erases what is missing,
            where not every column is ours.
        headers: sent with this request, as `{"If-Match": "{current.etag}"}`.
        means: answers that mean something else than their status says.
        body: as for the collection, where this request differs.
        idempotency: the header that takes a key which stays the same when the write is sent again.
    """

    request: str
    also: Mapping[str, Constant] = field(default_factory=dict, kw_only=True)
    send: Mapping[str, Constant] | None = field(default=None, kw_only=True)
    without: Names[str] = field(default=(), kw_only=True)
    over_current: bool = field(default=False, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    means: Means = field(default_factory=dict, kw_only=True)
    body: Body | None = field(default=None, kw_only=True)
    idempotency: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        template(self.request)
        if isinstance(self.without, str):
            raise RoutesInvalid(f"{self.request}: without is a list of names")
        _ = self.names

    @property
    def names(self) -> frozenset[str]:
        """List the names in braces, in the line as well as in constants and headers."""
        return frozenset(template(self.request).names).union(
            *(names_in(part) for part in (self.also, self.send, self.headers))
        )

    @property
    def needs_current(self) -> bool:
        """Tell whether the record has to be read before this request can be built."""
        return self.over_current or any(name.startswith(f"{CURRENT}.") for name in self.names)


@dataclass(frozen=True, slots=True)
class Replace:
    """An update by delete and create, for APIs that cannot change a record. The delete is never repeated.

    `create_first` makes the new record before the old one goes, where the API allows two.
    """

    create_first: bool = False


@dataclass(frozen=True, slots=True)
class Find:
    """How records are looked up.

    Args:
        request: its line, like "GET /patients?name={last_name}". Braces without a value are left out of the query.
        match: compulsory, because APIs ignore filters that they do not know: a hit counts only if these mapped fields
            are equal on our side (a mapping gives the record's own name for each).
        keys: where the keys stand in a hit, if not where they stand in the answer to a create.
        page: the parameter that counts pages from 1; they are asked for until one brings nothing new.
        offset: the parameter that counts the records before a page, from 0; as for `page`.
        next: where an answer names the address of its next page. One that leaves the API's own address is no answer.
        before_create: look before the first create as well, not only after an unknown outcome.
    """

    request: str
    match: Sequence[str] | Mapping[str, str] = field(kw_only=True)
    keys: Mapping[str, str] | None = field(default=None, kw_only=True)
    page: str = field(default="", kw_only=True)
    offset: str = field(default="", kw_only=True)
    next: str = field(default="", kw_only=True)
    means: Means = field(default_factory=dict, kw_only=True)
    before_create: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.match or isinstance(self.match, str):
            raise RoutesInvalid("Find needs match: the fields in which a hit must be equal on our side")
        if template(self.request).method != "GET":
            raise RoutesInvalid(f"{self.request}: a find only reads")
        if len([each for each in (self.page, self.offset, self.next) if each]) > 1:
            raise RoutesInvalid(f"{self.request}: one of page, offset and next")

    @property
    def names(self) -> frozenset[str]:
        """List the names in braces."""
        return frozenset(template(self.request).names)

    def record_name(self, name: str) -> str:
        """Name the record's field that holds a mapped field."""
        return self.match.get(name, name) if isinstance(self.match, Mapping) else name


@dataclass(frozen=True, slots=True)
class Listing:
    """How all records of a kind are listed, for whoever compares both sides.

    Args:
        request: its line, like "GET /patients", or "GET /patients/{patient.uuid}/problems" of what stands under others.
        under: the resource type of the one whose key is in braces, as {"patient": "Patient"}: the list is asked for
            under each of its linked records.
        keys: as for Find.
        page: as for Find.
        offset: as for Find.
        next: as for Find.
        means: as for Find.
    """

    request: str
    under: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    keys: Mapping[str, str] | None = field(default=None, kw_only=True)
    page: str = field(default="", kw_only=True)
    offset: str = field(default="", kw_only=True)
    next: str = field(default="", kw_only=True)
    means: Means = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        if template(self.request).method != "GET":
            raise RoutesInvalid(f"{self.request}: a list only reads")
        if len([each for each in (self.page, self.offset, self.next) if each]) > 1:
            raise RoutesInvalid(f"{self.request}: one of page, offset and next")
        if {name.partition(".")[0] for name in self.names} != set(self.under) or len(self.under) > 1:
            raise RoutesInvalid(f"{self.request}: under names the type of the one parent whose key is in braces")

    @property
    def names(self) -> frozenset[str]:
        """List the names in braces."""
        return frozenset(template(self.request).names)


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
    values: frozenset[str] = field(default=frozenset(), repr=False)  # that are sent, to be struck out of what is said
    given: Mapping[str, Key] = field(default_factory=dict, repr=False)  # keys that we chose, so that no answer need say

    def paged(self, parameter: str, number: int) -> LegacyRequest:
        """Return the same request with a number in its query; without a parameter the same."""
        if not parameter:
            return self
        return replace(self, query="&".join(filter(None, (self.query, f"{quote(parameter, safe='')}={number}"))))

    def moved(self, path: str, query: str) -> LegacyRequest:
        """Return the same request for another path and query."""
        return replace(self, path=path, query=query)


__all__ = ["CURRENT", "Call", "Find", "Header", "LegacyRequest", "Listing", "Replace", "Unsupported", "template"]
