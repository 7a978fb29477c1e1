"""Looking things up in the legacy system before something is written to it. `protocol.md` 3d, 3e, 3i and 12.

It never writes there, and never says a value of a record: only which fields differ.
"""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from worker.calling import Caller
from worker.comparing import says
from worker.ends import Hold
from worker.errors import LegacyUnavailable
from worker.ledger import Ledger
from worker.ledger.values import Claim, Keys, Link, LinkState, OpenWrite
from worker.legacy import Collection, Hit
from worker.mapping import MappedRecord

NOT_THERE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})

Parents = Mapping[str, Keys]


@dataclass(frozen=True, slots=True)
class Target:
    """The record that a write is for: where it goes, under which keys and parents."""

    collection: Collection
    slot: str
    keys: Keys
    parents: Mapping[str, str]
    parent_keys: Parents


@dataclass(frozen=True, slots=True)
class Sent:
    """What a create has sent, or would send: its record is told by it."""

    fields: Mapping[str, object]
    parents: Mapping[str, str]
    parent_keys: Parents | None = None  # as they were sent; none: those of today


class Looker:
    """Finds and reads records for one attempt. `keys` are those of every resource that its steps name."""

    def __init__(self, ledger: Ledger, caller: Caller, claim: Claim, keys: Mapping[str, Keys]) -> None:
        self._ledger, self._caller, self._claim, self._keys = ledger, caller, claim, keys

    def target(self, collection: Collection, slot: str, keys: Keys, parents: Mapping[str, str]) -> Target:
        return Target(collection, slot, keys, parents, self._parents(parents))

    def read(self, target: Target) -> dict[str, object] | None:
        """Read a record; None if it is not there."""
        collection = target.collection
        return self._caller.ask(
            collection, lambda left_s: collection.read(target.keys, target.parent_keys, deadline_s=left_s)
        )

    def unanswered(self, collection: Collection, creates: Sequence[OpenWrite], own: Link | None) -> Hit | None:
        """3d: look for what creates without an answer may have made. None where there is nothing."""
        if not collection.can_find:
            raise Hold("no find", f"a create had no answer, and {collection.name} cannot be looked up: look by hand")
        if any(write.fields is None for write in creates):
            raise Hold(
                "no body", "a create had no answer, and without its body its record cannot be told: look by hand"
            )
        sent = [Sent(write.fields, write.parents) for write in creates if write.fields is not None]
        self._check_former_parents(collection, creates)
        agreeing, differing = self._free(collection, sent, own)
        if differing or len(agreeing) > 1:
            told = f"differ in {', '.join(sorted(differing))}" if differing else "are several"
            raise Hold("found", f"a create had no answer, and the records that were found {told}: choose by hand")
        return agreeing[0] if agreeing else None

    def _check_former_parents(self, collection: Collection, creates: Sequence[OpenWrite]) -> None:
        """3d: a create may have landed under a record that its parent had then, and has no more."""
        sent = [self._where_sent(write) for write in creates]
        moved = [each for each in sent if each is not None and each.parent_keys is not None]
        agreeing, differing = self._free(collection, moved, None) if moved else ([], ())
        if agreeing or differing:
            raise Hold(
                "found",
                "a create had no answer, and a record is there under one that its parent had before: choose by hand",
            )

    def before_create(self, collection: Collection, sent: Sent, own: Link | None) -> Hit | None:
        """12: look before a create for its record: this ledger may not know of it, or it is said to be gone."""
        if not collection.can_find:
            why = f"the ledger was set back in time, and {collection.name} cannot be looked up"
            raise Hold("no find", f"{why}: look by hand whether the record is there")
        agreeing, differing = self._free(collection, [sent], own)
        if differing or len(agreeing) > 1:
            told = f"one that differs in {', '.join(sorted(differing))}" if differing else "several that agree"
            raise Hold("found", f"the legacy system was asked before the create and has {told}: link it by hand")
        return agreeing[0] if agreeing else None

    def existing(self, collection: Collection, sent: Sent, said: str) -> Hit:
        """Find the record which the API says is there already, if it is certainly ours."""
        if not collection.can_find:
            raise Hold("exists", f"{said}; it cannot be looked up: link it by hand")
        agreeing, differing = self._free(collection, [sent], None)
        if len(agreeing) != 1 or differing:
            raise Hold("exists", f"{said}; no single record agrees in all that was sent: link it by hand")
        return agreeing[0]

    def second(self, record: MappedRecord, link: Link) -> None:
        """3d, once more after the bound: a create that was repeated may have landed twice, each where it was sent."""
        collection = record.collection
        sent = [Sent(record.resolve(self._keys), dict(record.parents))]
        for write in self._ledger.creates_in_doubt(self._claim.reference, link.slot):
            other = self._where_sent(write)
            if other is not None and other not in sent:
                sent.append(other)
        others = {first(hit.keys) for each in sent for hit in self._find(collection, each)}
        others -= {first(link.keys)}
        if others - set(self._ledger.owners(collection.name, sorted(others))):
            raise Hold(
                "second record", "a repeated create has left a second record that nobody owns: remove it by hand"
            )
        self._ledger.looked(self._claim, link.id)

    def _where_sent(self, write: OpenWrite) -> Sent | None:
        """Tell what a create has sent, and under which keys where those are not its parents' of today."""
        if write.fields is None:
            return None
        moved = bool(write.parent_keys) and write.parent_keys != self._parents(write.parents)
        return Sent(dict(write.fields), dict(write.parents), write.parent_keys if moved else None)

    def check_identity(
        self,
        collection: Collection,
        fields: Mapping[str, object],
        record: Mapping[str, object] | None,
        *,
        imported: bool = False,
    ) -> None:
        """3i: a legacy id can come again after a restore or a merge. What is gone, the write itself is told.

        A record that was `imported` and not written yet has never heard of our ids: there an empty field is nobody's.
        """
        if record is None:
            return
        names = [name for name in collection.identity if not imported or says(collection, name, record)]
        others = collection.differing(fields, record, names)
        if others:
            raise Hold("identity", f"the legacy record under our key is not ours: {', '.join(others)} differ")

    def _free(self, collection: Collection, sent: Sequence[Sent], own: Link | None) -> tuple[list[Hit], Several[str]]:
        """Find the records that nobody owns: those that agree in all that was sent, and in which fields others differ.

        An API may still show the record that we deleted to replace it; or give its key to the new one, which agrees.
        What was said to be gone and is found is nobody else's, whatever it says.
        """
        hits: dict[str, Hit] = {}
        for each in sent:
            for hit in self._find(collection, each):
                if first(hit.keys) not in hits or not hit.differs:
                    hits[first(hit.keys)] = hit
        owned = set(self._ledger.owners(collection.name, list(hits))) if hits else set()
        if own is not None and own.state is LinkState.FORGOTTEN and own.collection == collection.name:
            owned.discard(first(own.keys))
        free = {key: hit for key, hit in hits.items() if key not in owned}
        gone = {first(own.keys)} if own is not None and own.state is LinkState.HALF_REPLACED else set()
        differing = {name for key, hit in free.items() if key not in gone for name in hit.differs}
        return [hit for hit in free.values() if not hit.differs], differing

    def _find(self, collection: Collection, sent: Sent) -> list[Hit]:
        keys = self._parents(sent.parents) if sent.parent_keys is None else sent.parent_keys
        try:
            return self._caller.ask(collection, lambda left_s: collection.find(sent.fields, keys, deadline_s=left_s))
        except LegacyUnavailable as away:
            if sent.parent_keys is None or away.status not in NOT_THERE:
                raise
            return []  # what it stood under is gone, and everything under it

    def _parents(self, parents: Mapping[str, str]) -> Parents:
        return {name: self._keys[reference] for name, reference in parents.items() if reference in self._keys}


def first(keys: Keys) -> str:
    """Give the key that names a record, as text."""
    return str(next(iter(keys.values())))
