"""How a Subscription stands, by what was read of it: off, error, missing, changed by hand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from worker.ledger.subscribing import KeptSecret, Look, SubscriptionState
from worker.mapping.criteria import never_fires
from worker.subscriptions.found import Found
from worker.subscriptions.wanted import canonical

__all__ = ["changed", "judge"]


def judge(
    found: Found | None,
    fingerprints: Mapping[str, str],
    secrets: Sequence[KeptSecret],
    matches: Callable[[str, bytes], bool],
) -> Look:
    """Say how it stands, the gravest first; whether deliveries come through is not told by the Subscription."""
    if found is None:
        return Look(SubscriptionState.MISSING, "it is not there: reverse-sync subscriptions apply")
    if not found.active:
        state = SubscriptionState.ERROR if found.status == "error" else SubscriptionState.OFF
        return Look(state, f"its status is {found.status or 'missing'}: Medplum sends and queues nothing")
    why = changed(found, fingerprints, secrets, matches)
    if why:
        return Look(SubscriptionState.CHANGED, f"changed by hand: {'; '.join(why)}: reverse-sync subscriptions apply")
    return Look(SubscriptionState.OK)


def changed(
    found: Found,
    fingerprints: Mapping[str, str],
    secrets: Sequence[KeptSecret],
    matches: Callable[[str, bytes], bool],
) -> list[str]:
    """Name what is not as it was applied, and what follows from it where that is known; no value is told."""
    names = [
        name
        for name, value in found.members().items()
        if name in fingerprints and not matches(fingerprints[name], canonical(name, value))
    ]
    words = [_WORDS.get(name, name) for name in names]
    silent = never_fires(found.criteria) if "criteria" in names else None
    if silent is not None:
        words.append(f"the criteria never fires: {silent}")
    if found.secret not in {one.value.get_secret_value() for one in secrets}:
        words.append("its secret is none that the ledger keeps: the receivers may refuse every delivery")
    if not found.ours:
        words.append("our tag is gone")
    return words


_WORDS = {"interactions": "interactions are narrowed: other changes are not sent", "header": "the shared header"}
