"""What has to be done so that Medplum's Subscriptions are those that the routes need. Pure; it tells no secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.ledger.subscribing import KeptSecret, Subscribed
from worker.mapping.criteria import never_fires
from worker.subscriptions.found import Found
from worker.subscriptions.wanted import Wanted

__all__ = ["Doing", "Step", "plan"]


class Doing(StrEnum):
    """What a step does."""

    CREATE = "create"
    CHANGE = "change"
    KEEP = "keep"  # it is as it should be
    REFUSE = "refuse"  # its criteria would never fire
    EXTRA = "extra"  # ours, and not needed: left alone until `subscriptions remove`
    DOUBLE = "double"  # ours, beside another one of the type: the same, and every change comes twice


@dataclass(frozen=True, slots=True)
class Step:
    """One Subscription, and what has to be done with it."""

    doing: Doing
    resource_type: str
    found: Found | None = None
    wanted: Wanted | None = None
    words: tuple[str, ...] = ()


def plan(
    wanted: Sequence[Wanted],
    found: Sequence[Found],
    rows: Mapping[str, Subscribed],
    secrets: Sequence[KeptSecret],
) -> tuple[Step, ...]:
    """Compare what should be there with those of ours that are."""
    left = {one.id: one for one in found}
    steps = []
    for one in wanted:
        why = never_fires(one.criteria)
        mine = _mine(one.resource_type, left, rows)
        if mine is not None:
            del left[mine.id]
        if why is not None:
            steps.append(Step(Doing.REFUSE, one.resource_type, mine, one, (why,)))
        else:
            steps.append(_step(one, mine, [each for each in secrets if each.resource_type == one.resource_type]))
    types = {one.resource_type for one in wanted}
    for each in sorted(left.values(), key=lambda one: (one.resource_type, one.id)):
        doing = Doing.DOUBLE if each.resource_type in types else Doing.EXTRA
        steps.append(Step(doing, each.resource_type, each))
    return tuple(steps)


def _mine(resource_type: str, left: Mapping[str, Found], rows: Mapping[str, Subscribed]) -> Found | None:
    """Find the one of a type: that which the ledger names, else the oldest."""
    row = rows.get(resource_type)
    if row is not None and row.medplum_id is not None and row.medplum_id in left:
        return left[row.medplum_id]
    named = {each.medplum_id for each in rows.values()}
    mine = [one for one in left.values() if one.resource_type == resource_type and one.id not in named]
    return min(mine, key=lambda one: (one.last_updated, one.id), default=None)


def _step(wanted: Wanted, found: Found | None, secrets: Sequence[KeptSecret]) -> Step:
    if found is None:
        return Step(Doing.CREATE, wanted.resource_type, None, wanted)
    words = _differences(wanted, found)
    if not secrets or found.secret not in {one.value.get_secret_value() for one in secrets}:
        words.append("secret")
    return Step(Doing.CHANGE if words else Doing.KEEP, wanted.resource_type, found, wanted, tuple(words))


def _differences(wanted: Wanted, found: Found) -> list[str]:
    words = [] if found.active else [f"status {found.status} → active"]
    words += [] if found.ours else ["our tag"]
    there = found.members()
    for name, value in wanted.members().items():
        if there[name] != value:
            secret = name == "header"  # it is one, and so may be what stands there now
            words.append(name if secret else f"{name} {there[name] or 'none'} → {value or 'none'}")
    return words
