"""What has to be done for one resource, from what is wanted and what is known. Pure: it takes no step itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Literal

from worker.ledger.values import Link, LinkState, OpenWrite, Operation
from worker.mapping.results import MappedRecord

THERE = frozenset({LinkState.LINKED, LinkState.LEFT_BEHIND})
"""The states of a link whose record is in the legacy system."""


class Doubt(StrEnum):
    """Why a step is not taken but held for a person."""

    OTHER_COLLECTION = "the mapping now names another collection for a record that is there"
    OTHER_PARENT = "the record stands under another parent now; moving it is not declared"
    RESTORED = "it lives again in Medplum, and its legacy record was deleted: a replay makes a new one"


Moved = Literal["hold", "replace"]
Restored = Literal["create", "undelete", "hold"]


@dataclass(frozen=True, slots=True)
class Step:
    """One record's part of the work.

    `unresolved` are announced writes of its slot without an outcome; a create is looked up first where there are any.
    `look` asks whether a second record has come into being since an unanswered create was repeated.
    """

    operation: Operation | None  # none: nothing to write, at most to look
    slot: str
    record: MappedRecord | None = None
    link: Link | None = None
    unresolved: tuple[OpenWrite, ...] = ()
    look: bool = False
    doubt: Doubt | None = None
    moves: bool = False  # an update under another parent: delete under the old one, create under the new
    undelete: bool = False  # an update of a record that was deleted

    @property
    def creates_in_doubt(self) -> tuple[OpenWrite, ...]:
        return tuple(write for write in self.unresolved if write.operation is Operation.CREATE)


def plan(
    records: Sequence[MappedRecord],
    links: Sequence[Link],
    unresolved: Sequence[OpenWrite],
    *,
    now: datetime,
    is_written: Callable[[str, MappedRecord], bool],
    moved: Moved = "hold",
    restored: Restored = "create",
) -> tuple[Step, ...]:
    """List the steps that make the legacy records those that are wanted.

    Args:
        records: what should be there; empty where the resource is deleted or the mapping says that nothing should be.
        links: what is known to be there, tombstones included.
        unresolved: announced writes without an outcome whose bound has passed.
        now: the database's time, for links that want a second look.
        is_written: says whether a link's digest is that of a record.
        moved: what becomes of a record whose parent is another one now.
        restored: what becomes of a record that was deleted and is wanted again.
    """
    known = {link.slot: link for link in links}
    wanted = {record.slot: record for record in _in_their_slots(records, known)}
    open_by_slot: dict[str, list[OpenWrite]] = {}
    for write in unresolved:
        open_by_slot.setdefault(write.slot, []).append(write)
    steps = []
    for slot in sorted({*wanted, *known, *open_by_slot}):
        record, link, open_writes = wanted.get(slot), known.get(slot), tuple(open_by_slot.get(slot, ()))
        if record is None:
            steps.append(_unwanted(slot, link, open_writes))
        elif link is None or link.state not in THERE:
            steps.append(_anew(record, link, open_writes, restored))
        else:
            steps.append(_kept(record, link, open_writes, now, is_written, moved))
    deletes_last = sorted(filter(None, steps), key=lambda step: step.operation is Operation.DELETE)
    return tuple(deletes_last)


def references(steps: Sequence[Step]) -> tuple[frozenset[str], frozenset[str]]:
    """List whom the steps name: those that their records need, and those that records stand under or once did."""
    needed = {reference for step in steps if step.record is not None for reference in step.record.references()}
    under = {
        reference
        for step in steps
        for parents in (step.link.parents if step.link else {}, *(write.parents for write in step.unresolved))
        for reference in parents.values()
    }
    return frozenset(needed), frozenset(under)


def lacking(steps: Sequence[Step], known: Container[str]) -> str | None:
    """Name the first reference that a step needs before it can be taken and that is not among the known."""
    records = (step.record for step in steps if step.record is not None and (step.operation is not None or step.look))
    needed = (reference for record in records for reference in sorted(record.references()))
    return next((reference for reference in needed if reference not in known), None)


def _unwanted(slot: str, link: Link | None, unresolved: tuple[OpenWrite, ...]) -> Step | None:
    """Delete what is there or may be. A record that is half replaced is gone already, and only buried."""
    undeleting = link is not None and _undeleting(link, unresolved)
    if link is not None and (link.state in THERE or undeleting):
        return Step(Operation.DELETE, slot, link=link, unresolved=unresolved)
    if unresolved:
        return Step(Operation.DELETE, slot, unresolved=unresolved)
    half = link is not None and link.state is LinkState.HALF_REPLACED
    return Step(None, slot, link=link) if half else None


def _anew(record: MappedRecord, link: Link | None, unresolved: tuple[OpenWrite, ...], restored: Restored) -> Step:
    """Make a record that is not there, or bring it back; a create in doubt is always looked up first."""
    create = Step(Operation.CREATE, record.slot, record, link, unresolved)
    if link is None or link.state is not LinkState.TOMBSTONE or create.creates_in_doubt:
        return create
    if _undeleting(link, unresolved) or (restored == "undelete" and _doubt(record, link, "hold") is None):
        return Step(Operation.UPDATE, record.slot, record, link, unresolved, undelete=True)
    return Step(None, record.slot, record, link, unresolved, doubt=Doubt.RESTORED) if restored == "hold" else create


def _kept(
    record: MappedRecord,
    link: Link,
    unresolved: tuple[OpenWrite, ...],
    now: datetime,
    is_written: Callable[[str, MappedRecord], bool],
    moved: Moved,
) -> Step:
    """Bring a record that is there in line."""
    slot = record.slot
    if (doubt := _doubt(record, link, moved)) is not None:
        return Step(None, slot, record, link, unresolved, doubt=doubt)
    moves = dict(link.parents) != dict(record.parents)
    # where the new record is made first, a delete without an answer is that of the old one and says nothing of this one
    doubtful = [each for each in unresolved if link.old_keys is None or each.operation is not Operation.REPLACE]
    written = not moves and not doubtful and link.digest is not None and is_written(link.digest, record)
    operation = None if written else Operation.UPDATE
    step = Step(operation, slot, record, link, unresolved, moves=moves)
    due = link.look_at is not None and link.look_at <= now
    replaced = record.collection.replace
    if replaced is not None and replaced.create_first and not moves and step.creates_in_doubt:
        return step  # a record that it may have made takes the place of this one: it is no second record
    return replace(step, look=due or bool(step.creates_in_doubt))


def _undeleting(link: Link, unresolved: Sequence[OpenWrite]) -> bool:
    """Tell that a record which was deleted may be there again."""
    updates = any(write.operation is Operation.UPDATE for write in unresolved)
    return (
        link.state is LinkState.TOMBSTONE
        and updates
        and not any(write.operation is Operation.CREATE for write in unresolved)
    )


def _doubt(record: MappedRecord, link: Link, moved: Moved) -> Doubt | None:
    if link.collection != record.collection.name:
        return Doubt.OTHER_COLLECTION
    return Doubt.OTHER_PARENT if moved == "hold" and dict(link.parents) != dict(record.parents) else None


def _in_their_slots(records: Sequence[MappedRecord], known: Mapping[str, Link]) -> Sequence[MappedRecord]:
    """Let a link without a slot keep the only record of its resource, whatever slot the mapping gives it today."""
    if len(records) == 1 and set(known) == {""} and records[0].slot != "":
        return [replace(records[0], slot="")]
    return records
