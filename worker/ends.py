"""How an attempt ends: one of the ledger's five ends, and a table that says which one follows from what was raised.

It decides nothing else, and writes nothing but the end. No end's words hold a value from a patient's record.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.errors import (
    BadKey,
    BadResource,
    DeleteBudgetSpent,
    InvalidResource,
    LeaseLost,
    LegacyUnavailable,
    MedplumRefused,
    MedplumUnavailable,
    Paused,
    ReverseSyncError,
    Unmappable,
    where,
)
from worker.ledger import Ledger
from worker.ledger.linking import KeyMoved
from worker.ledger.values import Answer, Claim, Disposition, NotClaimed, Refusal, Settlement, Wait

BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 120.0


class End(StrEnum):
    """How an attempt ended, as far as its task is concerned."""

    DONE = "done"
    AGAIN = "again"  # by itself, later
    WAITING = "waiting"  # for another resource
    FAILED = "failed"  # a person has to mend something
    HELD = "held"  # a person has to decide something
    NOTHING = "nothing"  # nobody asked, or somebody else is at it
    SUSPECT = "suspect"  # has to be run alone, in a child process


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt's end, in words that hold no patient's value."""

    kind: End
    words: str


class Again(ReverseSyncError):
    """The attempt has to be made again, by itself."""

    def __init__(
        self, reason: str, why: str, *, after_s: float = 0.0, until: datetime | None = None, counts: bool = True
    ) -> None:
        super().__init__(why)
        self.reason, self.after_s, self.until, self.counts = reason, after_s, until, counts


class Fail(ReverseSyncError):
    """A person has to mend something."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class Hold(ReverseSyncError):
    """A person has to decide."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


Stop = Again | Fail | Hold

OF_THE_VERSION = (Fail, Unmappable, InvalidResource, BadResource)
"""What says that the version that was read cannot be written: the end names it, and its change ends as failed."""

_ENDS: Mapping[type[Exception], Callable[[Any], Stop]] = {
    Again: lambda again: again,
    Fail: lambda fail: fail,
    Hold: lambda hold: hold,
    Paused: lambda paused: Again("paused", str(paused), counts=False),
    KeyMoved: lambda moved: Again("parent", str(moved), counts=False),
    LeaseLost: lambda lost: Again("lease lost", str(lost), counts=False),
    MedplumUnavailable: lambda away: Again("medplum", str(away), after_s=away.retry_after_s or 0.0),
    MedplumRefused: lambda refused: Again("medplum refused", str(refused), after_s=BACKOFF_MOST_S),
    LegacyUnavailable: lambda away: Again("legacy", str(away), after_s=away.retry_after_s or 0.0),
    DeleteBudgetSpent: lambda spent: Hold("budget", str(spent)),
    BadKey: lambda key: Hold("key", str(key)),
    Unmappable: lambda refusal: Fail("unmappable", _unmappable(refusal)),
    InvalidResource: lambda invalid: Fail("invalid", str(invalid)),
    BadResource: lambda bad: Fail("invalid", str(bad)),
    ReverseSyncError: lambda ours: Fail("defect", str(ours)),
    # a defect of ours must end the attempt, or it would look like a poisoned resource
    Exception: lambda bug: Fail("defect", f"{type(bug).__name__} at {where(bug)}"),
}


def stop_for(trouble: Exception) -> Stop:
    """Tell how an attempt ends that this stopped: by the nearest of its classes that the table knows."""
    known = next(kind for kind in type(trouble).__mro__ if kind in _ENDS)
    return _ENDS[known](trouble)


def _unmappable(refusal: Unmappable) -> str:
    place = refusal.line or refusal.field
    return f"{place}: {refusal.why}" if place else refusal.why


class Ends:
    """The ends of attempts, as the ledger fences them and tasks are told."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def finish(self, claim: Claim, settlement: Settlement, *, last: tuple[int, Answer] | None = None) -> Ended:
        """Settle what was read, with the attempt's last answer."""
        if not self._ledger.finish(claim, settlement, last=last):
            return Ended(End.AGAIN, "another attempt took over, or a person has to decide")
        return Ended(End.DONE, settlement.disposition)

    def stop(self, claim: Claim, trouble: Exception, settlement: Settlement | None = None) -> Ended:
        """End an attempt that something stopped; `settlement` names the version that was read, if it is to blame."""
        stop = stop_for(trouble)
        words = str(stop)
        match stop:
            case Again():
                after_s = max(stop.after_s, backoff_s(claim.attempts)) if stop.counts else stop.after_s
                self._ledger.release(
                    claim, reason=stop.reason, detail=words, after_s=after_s, until=stop.until, counts=stop.counts
                )
                return Ended(End.AGAIN, f"{stop.reason}: {words}")
            case Hold():
                self._ledger.hold(claim, reason=stop.reason, detail=words)
                return Ended(End.HELD, f"{stop.reason}: {words}")
            case Fail():
                failed = None if settlement is None else settlement.said(Disposition.FAILED, words)
                self._ledger.fail(claim, reason=stop.reason, detail=words, settlement=failed)
                return Ended(End.FAILED, f"{stop.reason}: {words}")

    def look_later(self, claim: Claim, *, reason: str, words: str, after_s: float) -> Ended:
        """Look again later, though nobody asks."""
        self._ledger.look_later(claim, reason=reason, detail=words, after_s=after_s)
        return Ended(End.AGAIN, words)

    def wait(self, claim: Claim, parent: str, settlement: Settlement) -> Ended:
        """Wait for another resource's record; fail where there will be none."""
        words = f"waits for {parent}, which has no legacy record yet"
        match self._ledger.wait(claim, parent, words):
            case Wait.WAITS:
                return Ended(End.WAITING, words)
            case Wait.CAME:
                return Ended(End.AGAIN, f"{parent} has come")
        words = f"{parent} is settled without a legacy record: skipped, deleted, or in a circle with this one"
        self._ledger.fail(claim, reason="parent", detail=words, settlement=settlement, waiting_for=parent)
        return Ended(End.FAILED, words)


def not_claimed(refused: NotClaimed) -> Ended:
    """Tell why there was no attempt."""
    if refused.why is Refusal.SUSPECT:
        return Ended(End.SUSPECT, "its last start had no end")
    if refused.why in {Refusal.NOT_YET, Refusal.PAUSED}:
        return Ended(End.AGAIN, f"{refused.why}{f' before {refused.until:%H:%M:%S}Z' if refused.until else ''}")
    return Ended(End.NOTHING, refused.why)


def backoff_s(attempts: int) -> float:
    """Draw the wait before the next try, in seconds: doubling, capped, with full jitter."""
    return random.uniform(0.0, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(attempts, 20)))  # noqa: S311  no secret
