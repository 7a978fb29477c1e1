"""What has to be done for one resource, from what is wanted and what is known. Pure: it takes no step itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from worker.ledger.values import Link, LinkState, OpenWrite, Operation
from worker.mapping.results import MappedRecord

THERE = frozenset({LinkState.LINKED, LinkState.LEFT_BEHIND})
"""The states of a link whose record is in the legacy system."""


class Doubt(StrEnum):
    """Why a step is not taken but held for a person."""

    OTHER_COLLECTION = "the mapping now names another collection for a record that is there"
    OTHER_PARENT = "the record stands under another parent now; moving it is not declared"


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


def plan(
    records: Sequence[MappedRecord],
    links: Sequence[Link],
    unresolved: Sequence[OpenWrite],
    *,
    now: datetime,
    is_written: Callable[[str, MappedRecord], bool],
) -> tuple[Step, ...]:
    """List the steps that make the legacy records those that are wanted.

    Args:
        records: what should be there; empty where the resource is deleted or the mapping says that nothing should be.
        links: what is known to be there, tombstones included.
        unresolved: announced writes without an outcome whose bound has passed.
        now: the database's time, for links that want a second look.
        is_written: says whether a link's digest is that of a record.
    """
    known = {link.slot: link for link in links}
    wanted = {record.slot: record for record in _in_their_slots(records, known)}
    open_by_slot: dict[str, list[OpenWrite]] = {}
    for write in unresolved:
        open_by_slot.setdefault(write.slot, []).append(write)
    steps = []
    for slot in sorted({*wanted, *known, *open_by_slot}):
        record, link, open_writes = wanted.get(slot), known.get(slot), tuple(open_by_slot.get(slot, ()))
        steps.append(_step(slot, record, link, open_writes, now, is_written))
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


def _step(
    slot: str,
    record: MappedRecord | None,
    link: Link | None,
    unresolved: tuple[OpenWrite, ...],
    now: datetime,
    is_written: Callable[[str, MappedRecord], bool],
) -> Step | None:
    there = link if link is not None and link.state in THERE else None
    if record is None:
        return Step(Operation.DELETE, slot, link=there, unresolved=unresolved) if there or unresolved else None
    if there is None:
        return Step(Operation.CREATE, slot, record, link, unresolved)
    if (doubt := _doubt(record, there)) is not None:
        return Step(None, slot, record, there, unresolved, doubt=doubt)
    look = there.look_at is not None and there.look_at <= now
    look = look or any(write.operation is Operation.CREATE for write in unresolved)
    written = not unresolved and there.digest is not None and is_written(there.digest, record)
    return Step(None if written else Operation.UPDATE, slot, record, there, unresolved, look=look)


def _doubt(record: MappedRecord, link: Link) -> Doubt | None:
    if link.collection != record.collection.name:
        return Doubt.OTHER_COLLECTION
    return Doubt.OTHER_PARENT if dict(link.parents) != dict(record.parents) else None


def _in_their_slots(records: Sequence[MappedRecord], known: Mapping[str, Link]) -> Sequence[MappedRecord]:
    """Let a link without a slot keep the only record of its resource, whatever slot the mapping gives it today."""
    if len(records) == 1 and set(known) == {""} and records[0].slot != "":
        return [replace(records[0], slot="")]
    return records
