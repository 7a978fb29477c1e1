"""One kind of record in a legacy API: its keys, and how it is created, updated, deleted, found and read.

A declaration, plus the few verbs that follow from it. It never knows FHIR, and never decides what should be written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING

from worker.errors import LegacyError, LegacyUnavailable, RoutesInvalid
from worker.ledger.values import Key, Operation
from worker.legacy.body import Body
from worker.legacy.call import CURRENT, Call, Find, LegacyRequest, Listing, Replace, Unsupported
from worker.legacy.file import File
from worker.legacy.normal import Normal, normalised
from worker.legacy.outcome import Answer, Header, KeyPlaces, Outcome, at, keys_of
from worker.legacy.pages import one_page, pages
from worker.legacy.said import values
from worker.legacy.template import Lookup, filled, names_in, template
from worker.legacy.wire import OMIT, Clear, Constant, Scalar, Wire

if TYPE_CHECKING:
    from worker.legacy.api import LegacyApi

Parents = Mapping[str, Mapping[str, Key]]
"""Keys of the linked records by the name that the mapping gives the link."""


class Current(dict[str, object]):
    """A record as it was read, with the ETag that came along."""

    etag: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that a find brought. `differs` names the sent fields that it holds otherwise; values stay inside."""

    keys: Mapping[str, Key] = field(repr=False)
    record: Mapping[str, object] = field(repr=False)
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list, and the place of the next one; "" after the last."""

    hits: tuple[Hit, ...]
    following: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Collection:
    """What `LegacyApi.collection` declares; see there."""

    name: str
    api: LegacyApi = field(repr=False)
    keys: tuple[str, ...]
    key_places: KeyPlaces
    identity: tuple[str, ...]
    create: Call | Unsupported
    update: Call | Replace | Unsupported
    delete: Call | Unsupported
    find_by: Find | Unsupported
    read_by: Call | None
    undelete: Call | None
    record: str
    items: str
    wire: Wire
    body: Body
    clear: Mapping[str, Clear]
    list_by: Listing | None = None
    normalise: Mapping[str, tuple[Normal, ...]] = field(default_factory=dict)
    gone: Mapping[str, Constant] | None = None  # none: nobody knows what a deleted record looks like
    known_as: str = ""  # the resource type whose records only the legacy system makes
    names: frozenset[str] = field(init=False, repr=False)  # in braces: of lines, constants and headers
    parents: frozenset[str] = field(init=False, repr=False)  # links that fill them: `patient` of `{patient.uuid}`

    def __post_init__(self) -> None:
        if not self.name or not self.keys:
            raise RoutesInvalid("a collection needs a name and at least one key")
        if self.identity and self.read_by is None:
            raise RoutesInvalid(f"{self.name}: identity is compared where the record is read, so it needs read")
        if self.read_by is not None and template(self.read_by.request).method != "GET":
            raise RoutesInvalid(f"{self.name}: {self.read_by.request}: a read only reads")
        if self.replace is not None and not (isinstance(self.create, Call) and isinstance(self.delete, Call)):
            raise RoutesInvalid(f"{self.name}: an update by Replace needs a create and a delete that the API can do")
        if isinstance(self.create, Call) and self.create.needs_current:
            raise RoutesInvalid(f"{self.name}: before a create there is no current record")
        if self.read_by is None and any(isinstance(call, Call) and call.needs_current for call in self._calls):
            raise RoutesInvalid(f"{self.name}: a request that needs the current record needs read")
        if self.gone is None:
            object.__setattr__(self, "gone", self._deleted_by_status())
        names = frozenset().union(*(call.names for call in self._calls if isinstance(call, Call | Find)))
        object.__setattr__(self, "names", names)
        object.__setattr__(
            self, "parents", frozenset(name.partition(".")[0] for name in names if "." in name) - {CURRENT}
        )

    def supports(self, operation: Operation) -> bool:
        """Tell whether the API can do this to such records, if need be by replacing them."""
        return not isinstance(self._how(operation), Unsupported)

    def unsupported_reason(self, operation: Operation) -> str | None:
        """Return the declared words for what the API cannot do; None where it can."""
        how = self._how(operation)
        return how.why if isinstance(how, Unsupported) else None

    @property
    def replace(self) -> Replace | None:
        """How records are replaced by others where the API cannot change them; None where it can."""
        return self.update if isinstance(self.update, Replace) else None

    @property
    def can_find(self) -> bool:
        return isinstance(self.find_by, Find)

    @property
    def can_list(self) -> bool:
        return self.list_by is not None

    @property
    def can_read(self) -> bool:
        return self.read_by is not None

    def needs_current(self, operation: Operation, *, undelete: bool = False) -> bool:
        """Tell whether `request` wants the record as `read` gives it, because the request is made of it."""
        how = self.undelete if undelete else self._how(operation)
        return isinstance(how, Call) and how.needs_current

    @property
    def requests(self) -> tuple[str, ...]:
        """List the request lines of all declared operations."""
        return tuple(call.request for call in self._calls if isinstance(call, Call | Find | Listing))

    @property
    def _calls(self) -> tuple[Call | Replace | Unsupported | Find | Listing | None, ...]:
        return (self.create, self.update, self.delete, self.find_by, self.read_by, self.undelete, self.list_by)

    def write(self, value: Scalar) -> str | int | bool | Decimal | None:
        """Write one value as this collection's bodies want it. Raises Unmappable where there is no exact form."""
        return self.wire.write(value, self.api.zoneinfo)

    def request(
        self,
        operation: Operation,
        fields: Mapping[str, object],
        keys: Mapping[str, Key],
        parents: Parents,
        *,
        idempotency_key: str | None = None,
        undelete: bool = False,
        current: Mapping[str, object] | None = None,
    ) -> LegacyRequest:
        """Build the request for one write; pure.

        Args:
            operation: create, update or delete.
            fields: in wire form, links resolved; {} for a delete. None means that Medplum has no value: not sent on
                create, on update as `clear` says.
            keys: the record's own keys; {} for a create.
            parents: the keys of linked records by link name.
            idempotency_key: sent if the call names a header for it.
            undelete: build the declared `undelete` instead of the update.
            current: the record as `read` gave it, where `needs_current` says so.

        Raises:
            BadKey: a brace has no value, or one that would change the path.
            LegacyError: the API cannot do this operation, or the current record is missing.
        """
        how = self.undelete if undelete else self._how(operation)
        if how is None:
            raise LegacyError(f"{self.name}: no undelete is declared")
        if isinstance(how, Unsupported):
            raise LegacyError(f"{self.name}: {operation} is not possible: {how.why}")
        if isinstance(how, Replace):
            raise LegacyError(f"{self.name}: an {operation} is a delete and a create")
        if how.needs_current and current is None:
            raise LegacyError(f"{self.name}: {how.request} needs the current record")
        given = self._given(fields, how.request) if operation is Operation.CREATE else {}
        keys = {**given, **keys}
        lookup = self._lookup(fields, keys, parents, current)
        body = self._body(how, operation, fields, lookup, current)
        content_type, payload = (None, None) if body is None else (how.body or self.body)(body, keys)
        headers = {name: str(filled(value, lookup, how.request)) for name, value in how.headers.items()}
        if how.idempotency and idempotency_key:
            headers[how.idempotency] = idempotency_key
        request = self._request(how, operation, lookup, headers, content_type, payload, body)
        return replace(request, given=given)

    def find(self, fields: Mapping[str, object], parents: Parents, *, deadline_s: float) -> list[Hit]:
        """Look for records that agree with these sent fields in all that `match` names; every page is read.

        `deadline_s` is for all pages together, in seconds.

        Raises:
            LegacyUnavailable: a page was not answered, holds a record without its keys, or there is no end of pages.
            BadKey: a brace of the path has no value.
        """
        how = self.find_by
        if isinstance(how, Unsupported):
            raise LegacyError(f"{self.name}: find is not possible: {how.why}")
        if not any(fields.get(name) not in (None, "") for name in how.match):
            raise LegacyError(f"{self.name}: find needs a value in one of {', '.join(how.match)}")
        request = self._request(how, None, self._lookup(fields, {}, parents))
        hits: dict[tuple[Key, ...], Hit] = {}
        places = how.keys or self._places()
        for record in pages(how, request, time.monotonic() + deadline_s):
            keys = keys_of(record, places)
            if keys is None:
                raise LegacyUnavailable(f"{request.template} answered with a record without its key")
            if not self.differing(fields, record, tuple(how.match)):
                hits[tuple(keys.values())] = Hit(keys, record, self.differing(fields, record))
        return list(hits.values())

    def listed(self, parents: Parents, *, place: str = "", deadline_s: float) -> Listed:
        """Read one page of the list of all such records, or of those under a parent; `place` is what the last one gave.

        Raises:
            LegacyUnavailable: the page was not answered, or holds a record without its keys.
            BadKey: a brace of the path has no value.
        """
        how = self.list_by
        if how is None:
            raise LegacyError(f"{self.name}: no list is declared")
        request = self._request(how, None, self._lookup({}, {}, parents))
        records, following = one_page(how, request, place, deadline_s)
        hits = []
        for record in records:
            keys = keys_of(record, how.keys or self._places())
            if keys is None:
                raise LegacyUnavailable(f"{request.template} answered with a record without its key")
            hits.append(Hit(keys, record, ()))
        return Listed(tuple(hits), following)

    def read(self, keys: Mapping[str, Key], parents: Parents, *, deadline_s: float) -> dict[str, object] | None:
        """Read one record; None if the API says that there is none.

        Raises:
            LegacyUnavailable: not answered, or without a record.
            BadKey: a brace of the path has no value.
        """
        if self.read_by is None:
            raise LegacyError(f"{self.name}: no read is declared")
        request = self._request(self.read_by, None, self._lookup({}, keys, parents))
        answered = self.api.send(request, deadline_s=deadline_s)
        if answered.outcome is Outcome.GONE:
            return None
        if answered.outcome is not Outcome.DONE or answered.record is None:
            raise LegacyUnavailable(answered.detail, retry_after_s=answered.retry_after_s, status=answered.status)
        current = Current(answered.record)
        current.etag = answered.etag
        return current

    def differing(
        self, fields: Mapping[str, object], record: Mapping[str, object], names: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """Name the sent fields (or only those of `names`) that a record holds otherwise, as the wire judges it."""
        own_name = self.find_by.record_name if isinstance(self.find_by, Find) else str
        asked = fields if names is None else names
        return tuple(name for name in asked if not self._same(name, fields.get(name), at(record, own_name(name))))

    def _deleted_by_status(self) -> Mapping[str, Constant] | None:
        """Return what a delete sets in a record that stays, where the declaration of the delete says it."""
        how, read = self.delete, self.read_by
        if not isinstance(how, Call) or read is None or not how.send or names_in(how.send):
            return None
        return how.send if template(how.request).path == template(read.request).path else None

    @property
    def tells_deleted(self) -> bool:
        """Tell whether a record that can be read is known to be there, and not only to stand there as deleted.

        By `gone`, or by a read that takes what says so for a record that is not there.
        """
        read = self.read_by.means if self.read_by is not None else {}
        answers = (answer for answer, outcome in read.items() if outcome is Outcome.GONE and isinstance(answer, Answer))
        return self.gone is not None or any(answer.status < HTTPStatus.MULTIPLE_CHOICES for answer in answers)

    def is_gone(self, record: Mapping[str, object]) -> bool:
        """Tell whether a record that can still be read says that it is deleted."""
        zone = self.api.zoneinfo
        return bool(self.gone) and all(
            self.wire.same(value, at(record, name), zone) for name, value in (self.gone or {}).items()
        )

    def _same(self, name: str, sent: object, held: object) -> bool:
        if normals := self.normalise.get(name):
            sent, held = normalised(sent, normals), normalised(held, normals)
        return self.wire.same(sent, held, self.api.zoneinfo)

    def _places(self) -> dict[str, str]:
        """Tell where the keys stand in a record of a list, if nothing else is declared."""
        places = self.key_places.items()
        return {name: name if isinstance(place, Header) or "{" in place else place for name, place in places}

    def _how(self, operation: Operation) -> Call | Replace | Unsupported:
        match operation:
            case Operation.CREATE:
                return self.create
            case Operation.DELETE:
                return self.delete
        return self.update

    def _given(self, fields: Mapping[str, object], request: str) -> dict[str, Key]:
        """Return the keys of a new record that we choose ourselves."""
        places = {name: place for name, place in self.key_places.items() if isinstance(place, str) and names_in(place)}
        keys = {name: filled(place, fields.get, request) for name, place in places.items()}
        return {name: key if isinstance(key, int) else str(key) for name, key in keys.items()}

    def _body(
        self,
        how: Call,
        operation: Operation,
        fields: Mapping[str, object],
        lookup: Lookup,
        current: Mapping[str, object] | None,
    ) -> dict[str, object] | None:
        """Put together what is sent: over the current record the mapped fields, or `send`, and over them `also`."""
        if operation is Operation.DELETE and how.send is None and not how.also and not how.over_current:
            return None
        mapped = fields if how.send is None and operation is not Operation.DELETE else {}
        sent: dict[str, object] = {
            name: self._sent(operation, value, self.clear.get(name, self.wire.clear)) for name, value in mapped.items()
        }
        for constants in (how.send or {}, how.also):
            sent |= self._constants(constants, lookup, how.request)
        if how.over_current:
            sent = _laid_over(current or {}, sent)
        return {name: value for name, value in sent.items() if value is not OMIT and name not in how.without}

    def _constants(self, constants: Mapping[str, object], lookup: Lookup, request: str) -> dict[str, object]:
        zone = self.api.zoneinfo
        return {name: self.wire.constant(filled(value, lookup, request), zone) for name, value in constants.items()}

    def _sent(self, operation: Operation, value: object, clear: Clear) -> object:
        if value is None:
            return clear if operation is Operation.UPDATE else OMIT
        if isinstance(value, File):
            return str(value)
        if isinstance(value, Mapping):
            members = {name: self._sent(operation, member, self.wire.clear) for name, member in value.items()}
            return {name: member for name, member in members.items() if member is not OMIT}
        if isinstance(value, list | tuple):
            return [None if entry is None else self._sent(operation, entry, self.wire.clear) for entry in value]
        return self.wire.key(value)

    def _lookup(
        self,
        fields: Mapping[str, object],
        keys: Mapping[str, Key],
        parents: Parents,
        current: Mapping[str, object] | None = None,
    ) -> Lookup:
        def lookup(name: str) -> object:
            first, dot, rest = name.partition(".")
            if first == CURRENT and dot:
                held = (current or {}).get(rest)
                return current.etag if held is None and rest == "etag" and isinstance(current, Current) else held
            if dot:
                return parents.get(first, {}).get(rest)
            return keys.get(name) if name in self.keys else fields.get(name)

        return lookup

    def _request(
        self,
        how: Call | Find | Listing,
        operation: Operation | None,
        lookup: Lookup,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        payload: bytes | None = None,
        body: Mapping[str, object] | None = None,
    ) -> LegacyRequest:
        line = template(how.request)
        return LegacyRequest(
            method=line.method,
            template=line.text,
            path=line.fill_path(lookup),
            query=line.fill_query(lookup),
            headers=dict(headers or {}),
            content_type=content_type,
            body=payload,
            collection=self,
            operation=operation,
            means=how.means,
            names=frozenset(body or ()),
            values=values(body),
        )


def _laid_over(current: Mapping[str, object], sent: Mapping[str, object]) -> dict[str, object]:
    """Lay what is sent over what is there, object by object; what is left out when cleared goes."""
    whole = dict(current)
    for name, value in sent.items():
        held = whole.get(name)
        whole[name] = _laid_over(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return {name: value for name, value in whole.items() if value is not OMIT}
