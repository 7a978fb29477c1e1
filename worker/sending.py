"""The steps of one attempt, one after the other: look up what is in doubt, then write. `protocol.md` 3, 8, 9 and 11.

Never decides what should be written; `plan` does. Never reads Medplum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from worker.calling import Budget, Caller
from worker.comparing import edited, listed
from worker.ends import Again, Hold, stop_for
from worker.errors import LedgerUnavailable, ReverseSyncError
from worker.ledger import Ledger
from worker.ledger.values import Claim, Keys, Link, LinkState, OpenWrite, Operation, Origin
from worker.legacy import Collection, Find, Hit
from worker.legacy.gate import Gate
from worker.looking import Looker, Sent, Target
from worker.mapping import Conflict, MappedRecord, Route
from worker.plan import Doubt, Step
from worker.writing import Content, Write, Writer

HALF_REPLACED = "half-replaced"
REFUSED_AS_DELETED = frozenset({"gone", "conflict"})  # how APIs answer an update of a record that is deleted
_REASONS = {Doubt.OTHER_COLLECTION: "moved", Doubt.OTHER_PARENT: "moved", Doubt.RESTORED: "restored"}

T = TypeVar("T")


class Sender:
    """Takes the steps of one attempt. The last answer is handed to whoever settles, so that both go in together."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        gate: Gate,
        claim: Claim,
        route: Route[Any],
        version_id: str | None,
        keys: Mapping[str, Keys],
        budget: Budget,
        send_within_s: float,
        stopping: Callable[[], bool],
        content: Content,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._claim, self._route, self._keys = ledger, claim, route, keys
        caller = Caller(gate, budget, stopping)
        self._looker = Looker(ledger, caller, claim, keys)
        self._writer = Writer(
            ledger=ledger,
            caller=caller,
            claim=claim,
            route=route,
            version_id=version_id,
            keys=keys,
            send_within_s=send_within_s,
            content=content,
            monotonic=monotonic,
        )
        self._collections = {collection.name: collection for collection in route.collections}
        self._half = False  # the record of the step is deleted to be replaced, and the new one not yet made
        self._notes: list[str] = []
        self._linked = False
        self.left_behind: str | None = None

    @property
    def wrote(self) -> bool:
        """Tell whether the legacy system holds something by this attempt."""
        return self._writer.wrote or self._linked

    @property
    def rule(self) -> str | None:
        """Say what a person should know of how the version was written; None where there is nothing to say."""
        return "; ".join(filter(None, [self.left_behind, *self._notes])) or None

    def last_answer(self) -> Any:
        """Hand over the answer that is not yet in the ledger."""
        return self._writer.last_answer()

    def take(self, step: Step) -> None:
        """Take one step.

        Raises:
            Again, Fail, Hold: the attempt ends; everything that was answered is recorded.
        """
        self._writer.record_last()
        self._half = step.link is not None and step.link.state is LinkState.HALF_REPLACED
        try:
            self._take(step)
        except LedgerUnavailable:
            raise
        except ReverseSyncError as trouble:
            stop = stop_for(trouble)
            if self._half and not isinstance(stop, Again):
                raise half_replaced(str(stop)) from None
            raise

    def _take(self, step: Step) -> None:
        if step.doubt is not None:
            raise Hold(_REASONS[step.doubt], step.doubt)
        if step.link is not None and step.link.old_keys is not None:
            self._delete_old(self._collection(step), step.link)
        if step.look:
            self._looker.second(_there(step.record), _there(step.link))
        match step.operation:
            case Operation.CREATE:
                self._create(step)
            case Operation.UPDATE if not step.undelete and (step.moves or _there(step.record).collection.replace):
                self._replace(step)
            case Operation.UPDATE:
                self._update(step, _there(step.link).keys)
            case Operation.DELETE:
                self._delete(step)
            case None if step.link is not None:
                self._rest(step, step.link)

    def _rest(self, step: Step, link: Link) -> None:
        """Take marks off a record that is as it should be."""
        if link.state is LinkState.LEFT_BEHIND:
            self._ledger.take_back(self._claim, step.slot)
        elif link.state is LinkState.HALF_REPLACED:
            self._ledger.bury(self._claim, step.slot)

    def _create(self, step: Step) -> None:
        record = _there(step.record)
        collection = record.collection
        if self._cannot(Operation.CREATE, collection, step.slot):
            return
        creates = step.creates_in_doubt
        if creates and creates[-1].idempotency_key is not None and creates[-1].fields is not None:
            self._repeat(creates[-1], step)
            return
        if creates:
            hit = self._looker.unanswered(collection, creates, step.link)
            if hit is not None:
                self._adopt(creates[-1].id, creates[-1].parents, hit, step)
                return
        target = self._looker.target(collection, record.slot, {}, record.parents)
        create = Write(Operation.CREATE, target, record, look_again=bool(creates))
        if not creates and self._is_there(create, step):
            return
        if not self._writer.send(create):
            self._adopt_existing(step, record)
        self._half = False

    def _repeat(self, doubt: OpenWrite, step: Step) -> None:
        """3d: send a create without an answer once more, word by word under its key: the API gives the same answer.

        What is wanted by now is written next: a body that is another under the same key would be refused or ignored.
        """
        collection = self._collections.get(doubt.collection) or self._collection(step)
        target = self._looker.target(collection, step.slot, {}, doubt.parents)
        if not self._writer.send(Write(Operation.CREATE, target, repeats=doubt)):
            self._adopt_existing(step, _there(step.record))
            return
        self._writer.record_last()
        self._half, self._linked = False, True
        raise Again(
            "repeated", "a create without an answer is answered now; what is wanted is written next", counts=False
        )

    def _is_there(self, create: Write, step: Step) -> bool:
        """12: look before a create where the ledger was set back, the declaration wants it, or a person's word is."""
        record, collection = _there(create.record), create.target.collection
        declared = isinstance(collection.find_by, Find) and collection.find_by.before_create
        forgotten = step.link is not None and step.link.state is LinkState.FORGOTTEN and collection.can_find
        if not (self._claim.recovering or declared or forgotten):
            return False
        sent = Sent(record.resolve(self._keys), record.parents)
        hit = self._looker.before_create(collection, sent, step.link)
        if hit is None:
            return False
        self._writer.found(create, hit.keys, hit.record)
        self._half, self._linked = False, True
        self._notes.append("its record was there already, and is linked")
        return True

    def _adopt(
        self, write_id: int, parents: Mapping[str, str], hit: Hit, step: Step, *, replaces: bool = False
    ) -> None:
        """Link what an unanswered create has made, and bring it in line; by the next attempt where that takes more."""
        record = _there(step.record)
        fields = record.resolve(self._keys)
        agrees = dict(parents) == dict(record.parents) and not record.collection.differing(fields, hit.record)
        by_replacing = record.collection.replace is not None
        digest = self._writer.digest(record) if agrees and by_replacing else None
        self._writer.adopt(write_id, hit.keys, hit.record, digest=digest, replaces=replaces)
        self._half, self._linked = False, True
        if by_replacing and agrees:
            return
        if by_replacing or dict(parents) != dict(record.parents):
            raise Again("found", "the record of a create without an answer is linked, and written next", counts=False)
        self._update(replace(step, link=None), hit.keys)

    def _adopt_existing(self, step: Step, record: MappedRecord, *, replaces: bool = False) -> None:
        """The API says that the record is there already: link it if it is certainly ours, then write."""
        write_id, answer = _there(self._writer.last_answer())
        if not self._ledger.record(write_id, answer):
            raise Again("lease lost", "another attempt took over, or a person has to decide", counts=False)
        sent = Sent(record.resolve(self._keys), record.parents)
        hit = self._looker.existing(record.collection, sent, answer.detail)
        self._adopt(write_id, record.parents, hit, step, replaces=replaces)

    def _update(self, step: Step, keys: Keys) -> None:
        record = _there(step.record)
        if not step.undelete and self._cannot(Operation.UPDATE, record.collection, record.slot):
            return
        target = self._looker.target(record.collection, record.slot, keys, record.parents)
        write = Write(Operation.UPDATE, target, record, undelete=step.undelete)
        try:
            self._writer.send(self._examined(write, step, record.resolve(self._keys)))
        except Hold as held:
            if held.reason not in REFUSED_AS_DELETED or not self._own_write_may_have_landed(step, held.reason):
                raise
            if step.undelete:
                self._update(replace(step, undelete=False), keys)
            else:
                self._delete_again(step, target)

    def _own_write_may_have_landed(self, step: Step, reason: str) -> bool:
        """5: a delete or undelete of our own, of which too little is known, may be why the API knows no such record.

        A conflict can have other reasons: only a write in doubt explains it.
        """
        collection = _there(step.record).collection
        if step.undelete and (collection.replace is not None or not collection.supports(Operation.UPDATE)):
            return False
        if not step.undelete and self._route.conflict is Conflict.HOLD:
            return False
        operation = Operation.UPDATE if step.undelete else Operation.DELETE
        if any(write.operation is operation for write in step.unresolved):
            return True
        written = step.link is not None and step.link.version_id is not None  # an imported one may never have been
        if reason != "gone" or not written:
            return False
        return self._ledger.may_have_the_last_word(self._claim.reference, step.slot, operation)

    def _delete_again(self, step: Step, target: Target) -> None:
        """5: send the delete once more for its answer; then the record is as any that was deleted before a restore."""
        sent = self._ledger.last_sent(self._claim.reference, step.slot)
        self._writer.send(self._examined(Write(Operation.DELETE, target), step, sent))
        self._writer.record_last()
        raise Again(
            "restored", "our own delete had landed before the restore: the record is brought back next", counts=False
        )

    def _replace(self, step: Step) -> None:
        """9: update by delete and create. A move deletes first, because the link knows one place."""
        record, link = _there(step.record), _there(step.link)
        if self._cannot(Operation.DELETE, record.collection, step.slot):
            return
        old = self._looker.target(record.collection, step.slot, link.keys, link.parents)
        how = record.collection.replace
        if how is not None and how.create_first and not step.moves:
            self._create_first(step, record, link, old)
            return
        write = Write(Operation.REPLACE, old)
        self._writer.send(self._examined(write, step, record.resolve(self._keys)))
        self._half = True
        half = replace(link, state=LinkState.HALF_REPLACED)
        self._create(replace(step, link=half, unresolved=()))

    def _create_first(self, step: Step, record: MappedRecord, link: Link, old: Target) -> None:
        creates = step.creates_in_doubt
        hit = self._looker.unanswered(record.collection, creates, link) if creates else None
        if hit is not None:
            self._adopt(creates[-1].id, creates[-1].parents, hit, step, replaces=True)
        else:
            target = self._looker.target(record.collection, step.slot, {}, record.parents)
            examined = self._examined(Write(Operation.REPLACE, old), step, record.resolve(self._keys))
            create = replace(
                examined,
                operation=Operation.CREATE,
                target=target,
                record=record,
                replaces=True,
                look_again=bool(creates),
            )
            if not self._writer.send(create):
                self._adopt_existing(step, record, replaces=True)
        self._delete_old(record.collection, replace(link, old_keys=link.keys))

    def _delete_old(self, collection: Collection, link: Link) -> None:
        """9: delete the record whose place another one has taken, if it is still the one that we wrote."""
        old = self._looker.target(collection, link.slot, _there(link.old_keys), link.parents)
        write = Write(Operation.REPLACE, old, of_old=True)
        if collection.can_read and (collection.identity or collection.needs_current(Operation.DELETE)):
            record = self._looker.read(old)
            sent = self._ledger.last_sent(self._claim.reference, link.slot)
            self._looker.check_identity(collection, sent or {}, record)
            write = replace(write, current=record)
        self._writer.send(write)

    def _delete(self, step: Step) -> None:
        collection = self._collection(step)
        link = step.link
        creates = step.creates_in_doubt
        if link is not None and creates and collection.replace is not None and collection.replace.create_first:
            link = self._taken_over(collection, link, creates)
            step = replace(step, link=link)
        hit = self._looker.unanswered(collection, creates, None) if link is None and creates else None
        if hit is not None:
            self._writer.adopt(creates[-1].id, hit.keys, hit.record)
        keys = link.keys if link is not None else hit.keys if hit is not None else None
        if keys is None:
            self._ledger.lapse(self._claim, [write.id for write in step.unresolved])
            self._ledger.bury(self._claim, step.slot)
            return
        parents = link.parents if link is not None else creates[-1].parents
        if self._cannot(Operation.DELETE, collection, step.slot):
            return
        told_by_it = collection.can_read and (collection.identity or self._route.conflict is not Conflict.OFF)
        sent = self._ledger.last_sent(self._claim.reference, step.slot) if told_by_it else None
        if collection.identity and collection.can_read and sent is None:
            raise Hold("identity", "nothing is known of what was written, so the record cannot be told to be ours")
        target = self._looker.target(collection, step.slot, keys, parents)
        self._writer.send(self._examined(Write(Operation.DELETE, target), step, sent))

    def _taken_over(self, collection: Collection, link: Link, creates: tuple[OpenWrite, ...]) -> Link:
        """9: a create without an answer may have made the record that takes this one's place; then both have to go."""
        made = self._looker.unanswered(collection, creates, link)
        if made is None:
            return link
        self._writer.adopt(creates[-1].id, made.keys, made.record, replaces=True)
        self._delete_old(collection, replace(link, old_keys=link.keys))
        return replace(link, keys=made.keys)

    def _cannot(self, operation: Operation, collection: Collection, slot: str) -> bool:
        """Tell whether the API has no such operation; a record that is there is then marked as left behind."""
        if collection.supports(operation):
            return False
        self.left_behind = collection.unsupported_reason(operation) or f"this API cannot {operation}"
        self._ledger.leave_behind(self._claim, slot, self.left_behind)
        return True

    def _examined(self, write: Write, step: Step, fields: Mapping[str, object] | None) -> Write:
        """Read the record that a write changes, where somebody wants to know what it says, and judge it.

        `fields` are ours: those that should stand there, or that were last sent.
        """
        collection, link = write.target.collection, step.link
        plain = Operation.DELETE if write.operation is Operation.REPLACE else write.operation
        imported = link is not None and link.origin is Origin.IMPORTED and link.version_id is None
        compared = link is not None and not (imported or step.undelete) and self._route.conflict is not Conflict.OFF
        needed = collection.needs_current(plain, undelete=write.undelete)
        kept = write.operation is Operation.REPLACE
        read = collection.can_read and bool(collection.identity or needed or kept or compared or imported)
        record = self._looker.read(write.target) if read else None
        if fields is not None and collection.identity:
            self._looker.check_identity(collection, fields, record, imported=imported)
        image: Mapping[str, object] | None = record
        if kept and not collection.can_read:
            image = self._ledger.last_sent(self._claim.reference, step.slot)
        examined = replace(write, current=record, keep=image if kept else None)
        if imported:
            return self._first_of_imported(examined, step, fields)
        return self._of_others(examined, step, fields) if compared and record is not None else examined

    def _first_of_imported(self, write: Write, step: Step, fields: Mapping[str, object] | None) -> Write:
        """Show what an imported record says before its first write, and hold that if the route wants it."""
        record, collection = write.current, write.target.collection
        if record is None:
            told = "" if collection.can_read else "it cannot be read, so nobody knows what this changes"
        elif write.operation is Operation.DELETE:
            told = "the write deletes it"
        else:
            told = listed(collection.differing(fields or {}, record))
            told = told and f"it differs in {told}"
        if not told:
            return write
        why = f"the first write to a record that was imported; {told}"
        return self._held_or_noted(write, step, "imported", why, holds=self._route.imported == "hold")

    def _of_others(self, write: Write, step: Step, fields: Mapping[str, object] | None) -> Write:
        """11: see whether the record is what we know of it."""
        record, link = _there(write.current), _there(step.link)
        if link.baseline is None:
            note = "nothing was known of what the record said: what is there now is taken for it"
            return self._noted(write, note)
        ours = [each.fields for each in step.unresolved if each.operation is not Operation.DELETE and each.fields]
        others = edited(write.target.collection, fields or link.baseline, link.baseline, record, ours)
        if not others:
            return write
        why = f"edited in the legacy system: {listed(others)}"
        return self._held_or_noted(write, step, "conflict", why, holds=self._route.conflict is Conflict.HOLD)

    def _held_or_noted(self, write: Write, step: Step, reason: str, why: str, *, holds: bool) -> Write:
        if not holds or self._claim.lets_pass(reason):
            return self._noted(write, why)
        operation = Operation.UPDATE if write.operation is Operation.REPLACE else write.operation
        ours = replace(write, operation=operation, record=step.record, keep=write.current)
        raise self._writer.withhold(ours, reason, why)

    def _noted(self, write: Write, note: str) -> Write:
        self._notes.append(note)
        return replace(write, keep=write.current or write.keep, notes=(*write.notes, note))

    def _collection(self, step: Step) -> Collection:
        name = step.link.collection if step.link is not None else step.unresolved[-1].collection
        if name not in self._collections:
            raise Hold("collection", f"the record is in {name}, which this route no longer declares")
        return self._collections[name]


def half_replaced(why: str) -> Hold:
    """Hold what lost its old record and has no new one: never to be overlooked."""
    return Hold(HALF_REPLACED, f"the old record is deleted and the new one not made: {why}")


def _there(value: T | None) -> T:
    if value is None:
        raise AssertionError("a step without what its operation needs")
    return value
