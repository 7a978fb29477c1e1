"""What would go out for one resource, as it is now, and how that differs from what the legacy system holds.

It plans as the sync does, and sends nothing. What it returns is full of a patient's values: it is for one person's
terminal, and goes into no log and no error.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from worker.errors import BadKey
from worker.ledger.values import Key, Keys, Link, LinkState, OpenWrite, Operation
from worker.legacy import Call, Collection, Find, LegacyRequest, Unsupported
from worker.legacy.call import template
from worker.legacy.outcome import at
from worker.mapping import Absent, Mapped, MappedRecord, Route, Skip
from worker.plan import Step, plan

__all__ = ["Difference", "Planned", "Previewed", "Read", "preview"]

Read = Callable[[Collection, Keys, Mapping[str, Keys]], "Mapping[str, object] | None"]
"""Reads one legacy record; None where it is not there."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One request that would go out; what is not known yet stands in braces."""

    method: str
    path: str = field(repr=False)
    body: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that the legacy record holds otherwise."""

    name: str
    held: object = field(repr=False)
    ours: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class Previewed:
    """One record's part: what would be sent, for what it would wait, or why nothing would be."""

    slot: str
    collection: str
    requests: tuple[Planned, ...] = ()
    waits_for: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    differences: tuple[Difference, ...] | None = None  # none: it was not compared


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of the resource and of those that it names."""

    links: Sequence[Link] = ()
    unresolved: Sequence[OpenWrite] = ()
    keys_of: Callable[[Sequence[str], Sequence[str]], Mapping[str, Keys]] = lambda living, buried: {}
    is_written: Callable[[str, MappedRecord], bool] = lambda digest, record: False


def preview(
    wanted: Mapped | Skip | Absent | Unsupported,
    route: Route[Any],
    known: Known,
    *,
    now: datetime,
    read: Read | None = None,
) -> Iterator[Previewed]:
    """Yield what would be done for each record; `read` compares with what the legacy system holds.

    Raises:
        LegacyUnavailable: a record that is compared was not read.
    """
    if isinstance(wanted, Skip | Unsupported):
        said = f"skipped: {wanted.rule}" if isinstance(wanted, Skip) else f"left behind: {wanted.why}"
        yield Previewed("", route.to.name, said=(said,))
        return
    steps = plan(
        wanted.records if isinstance(wanted, Mapped) else (),
        known.links,
        known.unresolved,
        now=now,
        is_written=known.is_written,
        moved=route.moved,
        restored=route.restored,
    )
    if not steps:
        yield Previewed("", route.to.name, said=("nothing: there is no record, and none is wanted",))
    collections = {collection.name: collection for collection in route.collections}
    for step in steps:
        yield _Preview(step, known, collections).told(read)


class _Preview:
    """One step."""

    def __init__(self, step: Step, known: Known, collections: Mapping[str, Collection]) -> None:
        self._step, self._link, self._record = step, step.link, step.record
        name = step.link.collection if step.link else step.unresolved[-1].collection if step.unresolved else ""
        self._collection = step.record.collection if step.record else collections.get(name)
        self._name = self._collection.name if self._collection else name
        needed = step.record.references() if step.record else frozenset[str]()
        under = frozenset(step.link.parents.values()) if step.link else frozenset[str]()
        self._keys = known.keys_of(sorted(needed), sorted(under - needed))  # a delete may stand under a deleted one
        self._waits = tuple(sorted(needed - set(self._keys)))
        self._standing = _Standing()

    def told(self, read: Read | None) -> Previewed:
        if self._collection is None:
            return Previewed(self._step.slot, self._name, said=("held: the route no longer declares its collection",))
        current = self._held(self._collection, read)
        differences = None
        said = list(self._said(self._collection))
        if read is not None and self._is_there and self._record is not None:
            if current is None:
                said.append("the legacy system has no such record, or it cannot be read")
            else:
                differences = tuple(self._differing(self._collection, self._record, current))
        blocked = self._step.doubt is not None or self._step.operation is None
        requests = () if blocked else tuple(self._requests(self._collection, current))
        return Previewed(self._step.slot, self._name, requests, self._waits, tuple(said), differences)

    @property
    def _is_there(self) -> bool:
        return self._link is not None and self._link.state in {LinkState.LINKED, LinkState.LEFT_BEHIND}

    def _said(self, collection: Collection) -> Iterator[str]:
        step = self._step
        if step.doubt is not None:
            yield f"held: {step.doubt}"
        elif step.operation is None:
            yield "nothing: it is as it was last written"
        elif not collection.supports(step.operation):
            yield f"left behind: {collection.unsupported_reason(step.operation)}"
        elif self._how(collection, step.operation).needs_current:
            yield "made of the record as it is then"
        if step.creates_in_doubt:
            yield "looked up first: a create had no answer"

    def _how(self, collection: Collection, operation: Operation) -> Call:
        if self._step.undelete and collection.undelete is not None:
            return collection.undelete
        how = {Operation.CREATE: collection.create, Operation.UPDATE: collection.update}.get(
            operation, collection.delete
        )
        return how if isinstance(how, Call) else Call("GET /")

    def _requests(self, collection: Collection, current: Mapping[str, object] | None) -> Iterator[Planned]:
        step, operation = self._step, self._step.operation
        if operation is None or not collection.supports(operation):
            return
        if operation is Operation.UPDATE and not step.undelete and (step.moves or collection.replace is not None):
            both = [Operation.DELETE, Operation.CREATE]
            first = collection.replace is not None and collection.replace.create_first and not step.moves
            for each in reversed(both) if first else both:
                yield self._planned(collection, each, current)
        else:
            yield self._planned(collection, operation, current)

    def _planned(self, collection: Collection, operation: Operation, current: Mapping[str, object] | None) -> Planned:
        deletes = operation is Operation.DELETE
        fields = {} if deletes or self._record is None else self._fields(self._record)
        own = {} if operation is Operation.CREATE or self._link is None else self._link.keys
        parents = self._link.parents if deletes and self._link is not None else self._parents_of_record
        try:
            request = collection.request(
                operation,
                fields,
                own,
                {name: self._of_parent(name, reference) for name, reference in parents.items()},
                undelete=self._step.undelete and operation is Operation.UPDATE,
                current=current or {},
            )
        except BadKey:  # it is made of what only the record itself tells
            line = template(self._how(collection, operation).request)
            body = {name: self._standing.shown(value) for name, value in fields.items()}
            return Planned(line.method, line.path, body or None)
        return self._shown(request)

    @property
    def _parents_of_record(self) -> Mapping[str, str]:
        return {} if self._record is None else self._record.parents

    def _of_parent(self, name: str, reference: str) -> Mapping[str, Key]:
        return self._keys[reference] if reference in self._keys else _Unknown(name, self._standing)

    def _fields(self, record: MappedRecord) -> dict[str, object]:
        missing = {each: _Unknown(each, self._standing) for each in self._waits}
        return record.resolve({**self._keys, **missing})

    def _shown(self, request: LegacyRequest) -> Planned:
        path = f"{request.path}?{request.query}" if request.query else request.path
        return Planned(request.method, self._standing.in_text(path), self._standing.shown(_read_body(request)))

    def _held(self, collection: Collection, read: Read | None) -> Mapping[str, object] | None:
        if read is None or self._link is None or not self._is_there or not collection.can_read:
            return None
        parents = {name: self._keys[each] for name, each in self._link.parents.items() if each in self._keys}
        return read(collection, self._link.keys, parents)

    def _differing(
        self, collection: Collection, record: MappedRecord, held: Mapping[str, object]
    ) -> Iterator[Difference]:
        fields = self._fields(record)
        for name in collection.differing(fields, held):
            own_name = collection.find_by.record_name(name) if isinstance(collection.find_by, Find) else name
            yield Difference(name, at(held, own_name), self._standing.shown(fields[name]))


class _Standing:
    """What stands for keys that nobody knows: marks that pass through paths and bodies, and are braces at the end."""

    def __init__(self) -> None:
        self._braces: dict[str, str] = {}

    def mark(self, name: str) -> str:
        mark = f"unknown{secrets.token_hex(8)}"
        self._braces[mark] = "{" + name + "}"
        return mark

    def in_text(self, text: str) -> str:
        for mark, braces in self._braces.items():
            text = text.replace(mark, braces)
        return text

    def shown(self, value: object) -> object:
        match value:
            case str():
                return self.in_text(value)
            case Mapping():
                return {name: self.shown(entry) for name, entry in value.items()}
            case list() | tuple():
                return [self.shown(entry) for entry in value]
        return value


class _Unknown(dict[str, Key]):
    """The keys of a record that is not there yet: whichever is asked for, it stands in braces."""

    def __init__(self, name: str, standing: _Standing) -> None:
        super().__init__()
        self._name, self._standing = name, standing

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> Key:
        return self._standing.mark(f"{self._name}.{key}")

    def get(self, key: str, default: object = None) -> Key:
        return self[key]


def _read_body(request: LegacyRequest) -> object:
    if request.body is None:
        return None
    text = request.body.decode()
    if request.content_type == "application/x-www-form-urlencoded":
        return dict(parse_qsl(text, keep_blank_values=True))
    try:
        return json.loads(text)
    except ValueError:
        return text
