"""What has to be done for one resource: pure. Takes what is wanted and what is known, returns steps; never reads or writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from worker.ledger.values import Link, LinkState, OpenWrite, Operation
from worker.mapping.results import MappedRecord


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


def _step(
    slot: str,
    record: MappedRecord | None,
    link: Link | None,
    unresolved: tuple[OpenWrite, ...],
    now: datetime,
    is_written: Callable[[str, MappedRecord], bool],
) -> Step | None:
    there = link is not None and link.state in {LinkState.LINKED, LinkState.LEFT_BEHIND}
    if record is None:
        if there or unresolved:
            behind = link is not None and link.state is LinkState.LEFT_BEHIND
            if behind and not unresolved:
                return None
            return Step(Operation.DELETE, slot, link=link if there else None, unresolved=unresolved)
        return None
    if not there or link is None:
        return Step(Operation.CREATE, slot, record, link, unresolved)
    look = link.look_at is not None and link.look_at <= now
    look = look or any(write.operation is Operation.CREATE for write in unresolved)
    if link.collection != record.collection.name:
        return Step(None, slot, record, link, unresolved, doubt=Doubt.OTHER_COLLECTION)
    if dict(link.parents) != dict(record.parents):
        return Step(None, slot, record, link, unresolved, doubt=Doubt.OTHER_PARENT)
    written = not unresolved and link.digest is not None and is_written(link.digest, record)
    return Step(None if written else Operation.UPDATE, slot, record, link, unresolved, look=look)


def _in_their_slots(records: Sequence[MappedRecord], known: Mapping[str, Link]) -> Sequence[MappedRecord]:
    """Let a link without a slot keep the only record of its resource, whatever slot the mapping gives it today."""
    if len(records) == 1 and set(known) == {""} and records[0].slot != "":
        return [replace(records[0], slot="")]
    return records
