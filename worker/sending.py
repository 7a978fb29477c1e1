"""One write at a time: look up what is in doubt, announce, send, record. `protocol.md` 3, step by step.

Never decides what should be written; `plan` does. Never reads Medplum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from worker.ends import Again, Fail, Hold
from worker.ledger import Ledger
from worker.ledger.values import (
    Announced,
    Announcement,
    Answer,
    Claim,
    Keys,
    LinkState,
    OpenWrite,
    Operation,
    WriteOutcome,
)
from worker.legacy import Answered, Collection, Hit, Outcome
from worker.legacy.gate import Gate, Pass
from worker.mapping import MappedRecord, Route
from worker.plan import Step

LEAST_CALL_S = 1.0
CLOSED_S = 0.25  # a gate that names a longer wait is closed; one that names a shorter one has all its calls in flight
BUSY_PAUSES_S = (0.05, 0.1, 0.15, 0.2, 0.3)  # how long such a one is waited for, all in all

Parents = Mapping[str, Keys]
T = TypeVar("T")


class Budget:
    """The time that one attempt may take, counted from its claim on a clock that nobody sets."""

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._monotonic, self._began = seconds, monotonic, monotonic()

    def spent_s(self) -> float:
        return self._monotonic() - self._began

    def left_s(self, what: str) -> float:
        left = self._seconds - self.spent_s()
        if left < LEAST_CALL_S:
            raise Again("budget", f"no time left for the {what}; what is done stays done", counts=False)
        return left

    def call_s(self, what: str, own_s: float) -> float:
        """Give the next call its deadline in seconds: its own, or what is left if that is less."""
        return min(own_s, self.left_s(what))


@dataclass(frozen=True, slots=True)
class Target:
    """The record that a write is for: where it goes, under which keys and parents."""

    collection: Collection
    slot: str
    keys: Keys
    parents: Mapping[str, str]
    parent_keys: Parents


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._gate, self._claim, self._route = ledger, gate, claim, route
        self._version_id, self._keys, self._budget = version_id, keys, budget
        self._send_within_s, self._stopping, self._monotonic = send_within_s, stopping, monotonic
        self._collections = {collection.name: collection for collection in route.collections}
        self._unrecorded: tuple[int, Answer] | None = None
        self.wrote = False
        self.left_behind: str | None = None

    def last_answer(self) -> tuple[int, Answer] | None:
        """Hand over the answer that is not yet in the ledger."""
        answer, self._unrecorded = self._unrecorded, None
        return answer

    def take(self, step: Step) -> None:
        """Take one step.

        Raises:
            Again, Fail, Hold: the attempt ends; everything that was answered is recorded.
        """
        self._record_last()
        if step.doubt is not None:
            raise Hold("moved", step.doubt)
        if step.look:
            self._look_for_a_second(step)
        match step.operation:
            case Operation.CREATE:
                self._create(step)
            case Operation.UPDATE:
                self._update(_there(step.record), _there(step.link).keys)
            case Operation.DELETE:
                self._delete(step)
            case None if step.link is not None and step.link.state is LinkState.LEFT_BEHIND:
                self._ledger.take_back(self._claim, step.slot)

    def _create(self, step: Step) -> None:
        record = _there(step.record)
        if self._cannot(Operation.CREATE, record.collection, step.slot):
            return
        found = self._find_unanswered(record.collection, step)
        if found is not None:
            self._update(record, found)
            return
        target = Target(record.collection, record.slot, {}, record.parents, self._parents(record.parents))
        if not self._send(Operation.CREATE, target, record, look_again=bool(step.unresolved)):
            self._adopt_existing(target, record)

    def _update(self, record: MappedRecord, keys: Keys) -> None:
        if self._cannot(Operation.UPDATE, record.collection, record.slot):
            return
        target = Target(record.collection, record.slot, keys, record.parents, self._parents(record.parents))
        self._check_identity(target, record.resolve(self._keys))
        self._send(Operation.UPDATE, target, record)

    def _delete(self, step: Step) -> None:
        collection = self._collection(step)
        keys = step.link.keys if step.link is not None else self._find_unanswered(collection, step)
        if keys is None:
            self._ledger.lapse(self._claim, [write.id for write in step.unresolved])
            return
        parents = step.link.parents if step.link is not None else step.unresolved[-1].parents
        if self._cannot(Operation.DELETE, collection, step.slot):
            return
        target = Target(collection, step.slot, keys, parents, self._parents(parents))
        sent = self._ledger.last_sent(self._claim.reference, step.slot) if collection.identity else None
        if collection.identity and collection.can_read:
            if sent is None:
                raise Hold("identity", "nothing is known of what was written, so the record cannot be told to be ours")
            self._check_identity(target, sent)
        self._send(Operation.DELETE, target, None)

    def _cannot(self, operation: Operation, collection: Collection, slot: str) -> bool:
        """Tell whether the API has no such operation; a record that is there is then marked as left behind."""
        if collection.supports(operation):
            return False
        self.left_behind = collection.unsupported_reason(operation) or f"this API cannot {operation}"
        self._ledger.leave_behind(self._claim, slot, self.left_behind)
        return True

    def _check_identity(self, target: Target, fields: Mapping[str, object]) -> None:
        """3i: a legacy id can come again after a restore or a merge. What is gone, the write itself is told."""
        collection = target.collection
        if not collection.identity or not collection.can_read:
            return
        record = self._ask(
            collection, lambda left_s: collection.read(target.keys, target.parent_keys, deadline_s=left_s)
        )
        others = () if record is None else collection.differing(fields, record, collection.identity)
        if others:
            raise Hold("identity", f"the legacy record under our key is not ours: {', '.join(others)} differ")

    def _find_unanswered(self, collection: Collection, step: Step) -> Keys | None:
        """3d: a create without an answer is looked up before another is sent. Returns the keys of what was found."""
        creates = [write for write in step.unresolved if write.operation is Operation.CREATE]
        if not creates:
            return None
        if not collection.can_find:
            raise Hold("no find", f"a create had no answer, and {collection.name} cannot be looked up: look by hand")
        agreeing, differing = self._hits(collection, creates)
        if differing or len(agreeing) > 1:
            told = f"differ in {', '.join(sorted(differing))}" if differing else "are several"
            raise Hold("found", f"a create had no answer, and the records that were found {told}: choose by hand")
        if not agreeing:
            return None
        keys = agreeing[0]
        self._adopt(creates[-1].id, keys)
        return keys

    def _hits(self, collection: Collection, creates: list[OpenWrite]) -> tuple[list[Keys], set[str]]:
        """Find what unanswered creates may have made: keys that agree in all that was sent, and fields that differ."""
        hits: dict[str, tuple[Keys, set[str]]] = {}
        for write in creates:
            fields = write.fields
            if fields is None:
                raise Hold(
                    "no body", "a create had no answer, and without its body its record cannot be told: look by hand"
                )
            for hit in self._find(collection, fields, write.parents):
                key = _first(hit.keys)
                known = hits.get(key)
                if known is None or not hit.differs:
                    hits[key] = (hit.keys, set(hit.differs))
        owned = self._ledger.owners(collection.name, list(hits)) if hits else {}
        free = [hit for key, hit in hits.items() if key not in owned]
        return [keys for keys, differs in free if not differs], {name for _, differs in free for name in differs}

    def _adopt_existing(self, target: Target, record: MappedRecord) -> None:
        """The API says that the record is there already: link it if it is certainly ours, then write."""
        write_id, answer = _there(self._unrecorded)
        self._record_last()
        if not target.collection.can_find:
            raise Hold("exists", f"{answer.detail}; it cannot be looked up: link it by hand")
        fields = record.resolve(self._keys)
        open_write = OpenWrite(
            write_id,
            target.slot,
            target.collection.name,
            Operation.CREATE,
            self._claim.claimed_at,
            fields,
            target.parents,
        )
        agreeing, differing = self._hits(target.collection, [open_write])
        if len(agreeing) != 1 or differing:
            raise Hold("exists", f"{answer.detail}; no single record agrees in all that was sent: link it by hand")
        self._adopt(write_id, agreeing[0])
        self._update(record, agreeing[0])

    def _adopt(self, write_id: int, keys: Keys) -> None:
        if not self._ledger.record(write_id, Answer(WriteOutcome.FOUND, keys=keys)):
            raise Again("lease lost", "another attempt took over, or the record is another's", counts=False)

    def _look_for_a_second(self, step: Step) -> None:
        """3d, once more after the bound: a create that was repeated may have landed twice."""
        record, link = _there(step.record), _there(step.link)
        collection = record.collection
        sent = [(record.resolve(self._keys), dict(record.parents))]
        for write in self._ledger.creates_in_doubt(self._claim.reference, link.slot):
            if write.fields is not None and (dict(write.fields), dict(write.parents)) not in sent:
                sent.append((dict(write.fields), dict(write.parents)))
        others = {_first(hit.keys) for fields, parents in sent for hit in self._find(collection, fields, parents)}
        others -= {_first(link.keys)}
        if others - set(self._ledger.owners(collection.name, sorted(others))):
            raise Hold(
                "second record", "a repeated create has left a second record that nobody owns: remove it by hand"
            )
        self._ledger.looked(self._claim, link.id)

    def _send(
        self, operation: Operation, target: Target, record: MappedRecord | None, *, look_again: bool = False
    ) -> bool:
        """Announce, send and take the answer. Returns False where a create met a record that is there already."""
        self._record_last()
        collection, api = target.collection, target.collection.api
        fields = record.resolve(self._keys) if record is not None else {}
        request = collection.request(operation, fields, target.keys, target.parent_keys)
        digest = self._ledger.sealer.digest(record.canonical()) if record is not None else None
        with self._through(collection) as leave:
            if self._stopping():
                raise Again("stopping", "this worker is stopping", counts=False)
            deadline_s = self._budget.call_s("write", api.deadline_s)
            began = self._monotonic()
            announced = self._ledger.announce(
                self._claim,
                Announcement(
                    slot=target.slot,
                    collection=collection.name,
                    operation=operation,
                    fields=fields,
                    parents=target.parents,
                    template=request.template,
                    version_id=self._version_id,
                    mapping_version=self._route.version,
                    send_within_s=self._send_within_s,
                    deadline_s=deadline_s,
                    lands_within_s=api.lands_within_s,
                    uses={each: self._keys[each] for each in record.references()} if record is not None else {},
                ),
            )
            if self._monotonic() - began > self._send_within_s:
                self._ledger.record(announced.id, Answer(WriteOutcome.WITHDRAWN, detail="too late to send"))
                raise Again("withdrawn", "too late to send: the announcement took too long", counts=False)
            answered = api.send(request, deadline_s=deadline_s)
            leave(answered)
        return self._took(operation, announced, answered, digest, look_again=look_again)

    def _took(
        self, operation: Operation, announced: Announced, answered: Answered, digest: str | None, *, look_again: bool
    ) -> bool:
        """Write down what a call came to; what ends the attempt is raised once it is in the ledger."""
        gone_is_done = answered.outcome is Outcome.GONE and operation is Operation.DELETE
        self._unrecorded = (
            announced.id,
            Answer(
                outcome=None if answered.outcome is Outcome.UNKNOWN else WriteOutcome(answered.outcome),
                status=answered.status,
                detail=answered.detail,
                words=answered.words,
                keys=answered.keys if operation is Operation.CREATE else None,
                digest=digest,
                look_again=look_again,
            ),
        )
        if answered.outcome is Outcome.DONE or gone_is_done:
            self.wrote = True
            return True
        if answered.outcome is Outcome.EXISTS and operation is Operation.CREATE:
            return False
        self._record_last()
        match answered.outcome:
            case Outcome.UNKNOWN:
                raise Again("unknown outcome", answered.detail, until=announced.bound)
            case Outcome.NOT_DONE:
                raise Again("legacy", answered.detail, after_s=answered.retry_after_s or 0.0)
            case Outcome.GONE if operation is Operation.UPDATE:
                raise Hold("gone", f"{answered.detail}: the legacy system no longer has the record that we wrote")
            case Outcome.CONFLICT:
                raise Hold("conflict", answered.detail)
        raise Fail("refused", answered.detail)

    def _find(self, collection: Collection, fields: Mapping[str, object], parents: Mapping[str, str]) -> list[Hit]:
        keys = self._parents(parents)
        return self._ask(collection, lambda left_s: collection.find(fields, keys, deadline_s=left_s))

    def _ask(self, collection: Collection, call: Callable[[float], T]) -> T:
        """Make a call that only reads, through the gate and within the budget."""
        with self._through(collection):
            return call(self._budget.call_s("look-up", collection.api.deadline_s))

    @contextmanager
    def _through(self, collection: Collection) -> Iterator[Callable[[Answered], None]]:
        entered = self._enter(collection)
        answers: list[Answered] = []
        try:
            yield answers.append
        finally:
            self._gate.leave(entered, answers[-1] if answers else None)

    def _enter(self, collection: Collection) -> Pass:
        """Take a pass of the gate. A full gate is waited for: giving the mirror back would waste its claim and read."""
        for pause_s in (*BUSY_PAUSES_S, None):
            entered = self._gate.enter(collection.api)
            if isinstance(entered, Pass):
                return entered
            if self._stopping():
                raise Again("stopping", "this worker is stopping", counts=False)
            if pause_s is None or entered.wait_s >= CLOSED_S:
                raise Again("gate", f"{collection.api.name} is given a rest", after_s=entered.wait_s, counts=False)
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _record_last(self) -> None:
        if self._unrecorded is not None and not self._ledger.record(*_there(self.last_answer())):
            raise Again("lease lost", "another attempt took over, or a person has to decide", counts=False)

    def _parents(self, parents: Mapping[str, str]) -> Parents:
        return {name: self._keys[reference] for name, reference in parents.items() if reference in self._keys}

    def _collection(self, step: Step) -> Collection:
        name = step.link.collection if step.link is not None else step.unresolved[-1].collection
        if name not in self._collections:
            raise Hold("collection", f"the record is in {name}, which this route no longer declares")
        return self._collections[name]


def _first(keys: Keys) -> str:
    """Give the key that names a record, as text."""
    return str(next(iter(keys.values())))


def _there(value: T | None) -> T:
    if value is None:
        raise AssertionError("a step without what its operation needs")
    return value
