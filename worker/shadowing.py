"""What would be sent for the steps of one resource, as the ledger keeps it while a route only shadows. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from worker.ledger.phasing import Shadow
from worker.plan import Step

HELD = "hold"  # stands for a step that a person would have to decide


def would_be(steps: Sequence[Step]) -> tuple[Shadow, ...]:
    """List the writes that these steps come to; links stand by reference, for their keys may not be there yet."""
    return tuple(_shadow(step) for step in steps if step.operation is not None or step.doubt is not None)


def in_words(verdict: str) -> str | None:
    """Say how a first live write compares with its shadow; nothing where there was none."""
    return f"compared with its shadow: {verdict}" if verdict else None


def _shadow(step: Step) -> Shadow:
    record, link = step.record, step.link
    open_writes = step.unresolved
    collection = record.collection.name if record else link.collection if link else open_writes[-1].collection
    content = None if record is None else record.canonical()
    return Shadow(step.slot, collection, HELD if step.operation is None else step.operation.value, content)
