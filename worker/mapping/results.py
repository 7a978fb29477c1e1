"""What a mapping returns, and what becomes of it: records in wire form, links still by reference. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worker.errors import Unmappable
from worker.ledger.values import Key
from worker.legacy import Collection, File, Scalar, Unsupported
from worker.legacy.wire import as_json
from worker.mapping.link import Link

Value = Scalar | Link | File | Sequence["Value"] | Mapping[str, "Value"]
"""What one field may be. A float is none: it is not exact."""

Fields = Mapping[str, Value]
"""Fields by the legacy API's own names. A key that is returned is ours; one that is left out is not."""


@dataclass(frozen=True, slots=True)
class Record:
    """One of several records of a resource. The slot's name comes from content, never from a list index."""

    slot: str
    fields: Fields = field(repr=False)
    to: Collection | None = None  # another collection than the route's


@dataclass(frozen=True, slots=True)
class Skip:
    """The legacy system stays as it is; the rule is shown."""

    rule: str


@dataclass(frozen=True, slots=True)
class Absent:
    """It must not be in the legacy system: deleted if it is there; the rule is shown."""

    rule: str


Result = Fields | list[Record] | Skip | Absent | Unsupported
"""What a mapping may return: what the legacy system should hold because of this resource."""


@dataclass(frozen=True, slots=True)
class MappedRecord:
    """One record as the legacy system should hold it: `fields` in wire form, a Link where a key will stand."""

    slot: str
    collection: Collection
    fields: Mapping[str, object] = field(repr=False)
    parents: Mapping[str, str]

    def references(self) -> frozenset[str]:
        """Return every reference whose legacy record must be known first."""
        return frozenset(self.parents.values()) | {link.reference for link in _links(self.fields)}

    def canonical(self) -> bytes:
        """Return what the digest is taken over: equal for equal content, whenever and by whichever code it was mapped.

        Links stand by reference, so that another key alone is no change; of a presigned URL only the path counts,
        because each read brings another signature (notifications 025 to 027).
        """
        content = {
            "slot": self.slot,
            "collection": self.collection.name,
            "fields": _lasting(self.fields),
            "parents": self.parents,
        }
        return as_json(content, ordered=True).encode()

    def resolve(self, keys: Mapping[str, Mapping[str, Key]]) -> dict[str, object]:
        """Return the fields with each link's key in its place; `keys` are those of all references, by name.

        Raises:
            Unmappable: a linked record has no key of the name that the mapping asks for.
        """
        return {name: self._resolved(name, value, keys) for name, value in self.fields.items()}

    def resolve_parents(self, keys: Mapping[str, Mapping[str, Key]]) -> dict[str, Mapping[str, Key]]:
        """Return the keys of each parent by the parent's name, as `Collection.request` takes them."""
        return {name: keys[reference] for name, reference in self.parents.items()}

    def _resolved(self, name: str, value: object, keys: Mapping[str, Mapping[str, Key]]) -> object:
        if isinstance(value, Link):
            if value.key not in keys[value.reference]:
                raise Unmappable(f'the linked record has no key "{value.key}"', field=name)
            return self.collection.write(keys[value.reference][value.key])
        if isinstance(value, Mapping):
            return {member: self._resolved(name, entry, keys) for member, entry in value.items()}
        if isinstance(value, list):
            return [self._resolved(name, entry, keys) for entry in value]
        return value


@dataclass(frozen=True, slots=True)
class Mapped:
    """The records that the legacy system should hold."""

    records: tuple[MappedRecord, ...]


def _links(value: object) -> Iterator[Link]:
    if isinstance(value, Link):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _links(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _links(entry)


_PRESIGNED = re.compile(r"https?://[^\s?#]+(?=\?(?:[^\s#]*&)?(?:Signature|X-Amz-Signature|X-Goog-Signature|sig)=)")


def _lasting(value: object) -> object:
    if isinstance(value, Link):
        return {"link": value.reference, "key": value.key}
    if isinstance(value, File):
        return {"file": value.name}
    if isinstance(value, Mapping):
        return {name: _lasting(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_lasting(entry) for entry in value]
    presigned = _PRESIGNED.match(value) if isinstance(value, str) else None
    return presigned[0] if presigned else value
