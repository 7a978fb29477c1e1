"""One kind of record in a legacy API: its keys, and how it is created, updated, deleted, found and read.

A declaration, plus the few verbs that follow from it. It never knows FHIR, and never decides what should be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from worker.errors import LegacyError, LegacyUnavailable, RoutesInvalid
from worker.ledger.values import Key, Operation
from worker.legacy.call import Call, Find, LegacyRequest, Replace, Unsupported, template
from worker.legacy.outcome import Answered, Outcome, at, keys_of
from worker.legacy.wire import OMIT, Clear, Scalar, Wire, same

if TYPE_CHECKING:
    from worker.legacy.api import LegacyApi

Parents = Mapping[str, Mapping[str, Key]]
"""Keys of the linked records by the name that the mapping gives the link."""

_PAGES_MAX = 200


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that a find brought. `differs` names the sent fields that it holds otherwise; values stay inside."""

    keys: Mapping[str, Key] = field(repr=False)
    record: Mapping[str, object] = field(repr=False)
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Collection:
    """What `LegacyApi.collection` declares; see there."""

    name: str
    api: LegacyApi = field(repr=False)
    keys: tuple[str, ...]
    identity: tuple[str, ...]
    create: Call | Unsupported
    update: Call | Replace | Unsupported
    delete: Call | Unsupported
    find_by: Find | Unsupported
    read_by: Call | None
    record: str
    items: str
    wire: Wire
    clear: Mapping[str, Clear]

    def __post_init__(self) -> None:
        if not self.name or not self.keys:
            raise RoutesInvalid("a collection needs a name and at least one key")
        if self.identity and self.read_by is None:
            raise RoutesInvalid(f"{self.name}: identity is compared where the record is read, so it needs read")
        if self.read_by is not None and template(self.read_by.request).method != "GET":
            raise RoutesInvalid(f"{self.name}: {self.read_by.request}: a read only reads")
        if self.replace is not None and not (isinstance(self.create, Call) and isinstance(self.delete, Call)):
            raise RoutesInvalid(f"{self.name}: an update by Replace needs a create and a delete that the API can do")

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
    def can_read(self) -> bool:
        return self.read_by is not None

    @property
    def requests(self) -> tuple[str, ...]:
        """List the request lines of all declared operations."""
        calls = (self.create, self.update, self.delete, self.find_by, self.read_by)
        return tuple(call.request for call in calls if isinstance(call, Call | Find))

    @property
    def parents(self) -> frozenset[str]:
        """Name the links that fill paths: `patient` of `{patient.uuid}`."""
        names = (name for request in self.requests for name in template(request).names)
        return frozenset(name.partition(".")[0] for name in names if "." in name)

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
    ) -> LegacyRequest:
        """Build the request for one write; pure.

        Args:
            operation: create, update or delete.
            fields: in wire form, links resolved; {} for a delete. None means that Medplum has no value: not sent on
                create, on update as `clear` says.
            keys: the record's own keys; {} for a create.
            parents: the keys of linked records by link name.
            idempotency_key: sent if the call names a header for it.

        Raises:
            BadKey: a brace of the path has no value, or one that would change the path.
            LegacyError: the API cannot do this operation.
        """
        how = self._how(operation)
        if isinstance(how, Unsupported):
            raise LegacyError(f"{self.name}: {operation} is not possible: {how.why}")
        if isinstance(how, Replace):
            raise LegacyError(f"{self.name}: an {operation} is a delete and a create")
        body = {} if operation is Operation.DELETE else self._body(operation, fields)
        content_type, payload = self.api.body(body, keys) if operation is not Operation.DELETE else (None, None)
        headers = {how.idempotency: idempotency_key} if how.idempotency and idempotency_key else {}
        lookup = self._lookup(fields, keys, parents)
        return self._request(how, operation, lookup, headers, content_type, payload, frozenset(body))

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
        for record in self._records(how, request, time.monotonic() + deadline_s):
            keys = keys_of(record, self.keys)
            if keys is None:
                raise LegacyUnavailable(f"{request.template} answered with a record without its key")
            if not self.differing(fields, record, tuple(how.match)):
                hits[tuple(keys.values())] = Hit(keys, record, self.differing(fields, record))
        return list(hits.values())

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
            raise LegacyUnavailable(answered.detail, retry_after_s=answered.retry_after_s)
        return answered.record

    def differing(
        self, fields: Mapping[str, object], record: Mapping[str, object], names: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """Name the sent fields (or only those of `names`) that a record holds otherwise, as `same` judges it."""
        own_name = self.find_by.record_name if isinstance(self.find_by, Find) else str
        asked = fields if names is None else names
        return tuple(name for name in asked if not same(fields.get(name), at(record, own_name(name))))

    def _how(self, operation: Operation) -> Call | Replace | Unsupported:
        return {Operation.CREATE: self.create, Operation.UPDATE: self.update, Operation.DELETE: self.delete}[operation]

    def _body(self, operation: Operation, fields: Mapping[str, object]) -> dict[str, object]:
        sent = {
            name: self._sent(operation, value, self.clear.get(name, self.wire.clear)) for name, value in fields.items()
        }
        return {name: value for name, value in sent.items() if value is not OMIT}

    def _sent(self, operation: Operation, value: object, clear: Clear) -> object:
        if value is None:
            return clear if operation is Operation.UPDATE else OMIT
        if isinstance(value, Mapping):
            members = {name: self._sent(operation, member, self.wire.clear) for name, member in value.items()}
            return {name: member for name, member in members.items() if member is not OMIT}
        if isinstance(value, list | tuple):
            return [None if entry is None else self._sent(operation, entry, self.wire.clear) for entry in value]
        return value

    def _lookup(
        self, fields: Mapping[str, object], keys: Mapping[str, Key], parents: Parents
    ) -> Callable[[str], object]:
        def lookup(name: str) -> object:
            parent, dot, key = name.partition(".")
            if dot:
                return parents.get(parent, {}).get(key)
            return keys.get(name) if name in self.keys else fields.get(name)

        return lookup

    def _request(
        self,
        how: Call | Find,
        operation: Operation | None,
        lookup: Callable[[str], object],
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        body: bytes | None = None,
        names: frozenset[str] = frozenset(),
    ) -> LegacyRequest:
        line = template(how.request)
        return LegacyRequest(
            method=line.method,
            template=line.text,
            path=line.fill_path(lookup),
            query=line.fill_query(lookup),
            headers=dict(headers or {}),
            content_type=content_type,
            body=body,
            collection=self,
            operation=operation,
            means=how.means,
            names=names,
        )

    def _records(self, how: Find, request: LegacyRequest, ends_at: float) -> Iterator[Mapping[str, object]]:
        before: list[Mapping[str, object]] = []
        for number in range(1, _PAGES_MAX + 1):
            page = self._page(request.paged(how.page, number), max(0.0, ends_at - time.monotonic()))
            if not page or page == before:  # an API that does not know the parameter gives the same page for ever
                return
            yield from page
            if not how.page:
                return
            before = page
        raise LegacyUnavailable(f"{request.template}: more than {_PAGES_MAX} pages: does the API know the filter?")

    def _page(self, request: LegacyRequest, deadline_s: float) -> list[Mapping[str, object]]:
        answered: Answered = self.api.send(request, deadline_s=deadline_s)
        if answered.outcome is Outcome.GONE and answered.declared:
            return []
        items = at(answered.body, self.items)
        if answered.outcome is not Outcome.DONE or not isinstance(items, list):
            why = answered.detail if answered.outcome is not Outcome.DONE else f"{answered.detail}: no list in it"
            raise LegacyUnavailable(why, retry_after_s=answered.retry_after_s)
        records = [entry for entry in items if isinstance(entry, Mapping)]
        if len(records) != len(items):
            raise LegacyUnavailable(f"{answered.detail}: not a list of records")
        return records
