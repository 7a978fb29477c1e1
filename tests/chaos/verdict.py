"""Judges a run from what both ends witnessed: every line of the clinic's history, every version of Medplum's. Pure.

What the legacy system does later than it declared is beyond the promise, and is judged apart: it has to be detected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.acceptance.times import DEADLINE_S, LANDS_WITHIN_S

if TYPE_CHECKING:
    from tests.chaos.standing import Standing

Json = Mapping[str, Any]

SECOND: Final = frozenset({"second record", "found", "exists", "owned key"})
"""The reasons for which a resource is held that has, or may have, more than one record."""

OF_THE_UNANSWERED: Final = SECOND | {"gone", "conflict", "identity"}
"""The reasons that only a write without an answer can bring about here: nobody else works in the clinic."""

OF_KILLS: Final = "poison"
BEHIND: Final = "behind one that is "

_STAMP: Final = re.compile(r"\bv(\d+)\b")
_STAMPED: Final = {"middle_name", "title"}


@dataclass(frozen=True, slots=True)
class Landing:
    """One change that took effect in the clinic."""

    record: str
    operation: str
    stamp: int
    reference: str
    beyond: bool  # it took effect later than the clinic had declared


@dataclass(slots=True)
class Verdict:
    """What a run came to."""

    figures: dict[str, object] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    duplicates_undetected: list[str] = field(default_factory=list)
    duplicates_detected: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)  # records that got what belongs to another resource
    beyond: dict[str, int] = field(default_factory=dict)
    beyond_undetected: list[str] = field(default_factory=list)
    unsettled: str = ""
    remaining: dict[str, int] = field(default_factory=dict)  # by reason, after a person had their turn
    unexplained: list[str] = field(default_factory=list)  # needs a person, and no fault that was injected says why
    identity_holds: bool = False

    @property
    def broken(self) -> list[str]:
        """Name every promise that did not hold."""
        found = {
            "lost": self.lost,
            "undetected duplicate": self.duplicates_undetected,
            "order violation": self.backward,
            "on the wrong record": self.astray,
            "beyond the promise, and not detected": self.beyond_undetected,
            "needs a person, and no fault explains it": self.unexplained,
        }
        lines = [f"{what}: {each}" for what, all_of_it in found.items() for each in all_of_it]
        lines += [] if self.identity_holds else ["the accounting identity does not hold"]
        return lines + ([f"it did not come to rest: {self.unsettled}"] if self.unsettled else [])


def stamp_of(data: Json) -> int:
    """Read the number that only grows off a legacy record; 0 where there is none."""
    found = [_STAMP.search(str(data.get(name) or "")) for name in sorted(_STAMPED)]
    return max((int(each[1]) for each in found if each), default=0)


def landings(history: Iterable[Json], journal: Iterable[Json], reference_of: Mapping[int, str]) -> list[Landing]:
    """Tell whose each line of the clinic's history is; what people did by hand is left out."""
    requests = {line["n"]: line for line in journal}
    return [
        Landing(
            line["record"],
            line["operation"],
            stamp := stamp_of(line["data"]),
            reference_of.get(stamp, "nobody"),
            _is_beyond(requests[line["journal"]]),
        )
        for line in history
        if line["journal"] is not None
    ]


def backward(landed: Iterable[Landing]) -> list[Landing]:
    """List what came after something newer of the same resource, or after the delete of the same record."""
    newest: dict[str, int] = {}
    gone: set[str] = set()
    steps = []
    for landing in landed:
        if landing.operation == "delete":
            gone.add(landing.record)
            continue
        if landing.stamp < newest.get(landing.reference, 0) or landing.record in gone:
            steps.append(landing)
        newest[landing.reference] = max(landing.stamp, newest.get(landing.reference, 0))
    return steps


def astray(landed: Iterable[Landing]) -> list[str]:
    """Name the records that ever held what belongs to different resources."""
    owners: dict[str, set[str]] = {}
    for landing in landed:
        owners.setdefault(landing.record, set()).add(landing.reference)
    return [f"{record} was given {' and '.join(sorted(of))}" for record, of in owners.items() if len(of) > 1]


def judge(verdict: Verdict, quiet: Standing, end: Standing, landed: list[Landing]) -> None:
    """Say what is lost, doubled, reversed or astray.

    Args:
        verdict: to be completed.
        quiet: how it stood when all was quiet and nobody had helped yet.
        end: how it stood after catch-up and after people had their turn.
        landed: all that took effect in the clinic.
    """
    verdict.astray = astray(landed)
    late = {landing.reference for landing in landed if landing.beyond}
    late_records = {landing.record for landing in landed if landing.beyond and landing.operation == "create"}
    for record, reference in quiet.strays.items():
        line = f"{record}, of {reference}"
        if quiet.listed.get(reference) in SECOND:
            verdict.duplicates_detected.append(line)
        elif record not in late_records:
            verdict.duplicates_undetected.append(line)
    steps = backward(landed)
    verdict.backward = [_words(step) for step in steps if not step.beyond]
    verdict.lost = [
        f"{reference} {', '.join(faults)}"
        for reference, faults in quiet.disagreements.items()
        if not {reference} & (quiet.listed.keys() | quiet.untold | late) and reference not in quiet.strays.values()
    ]
    verdict.lost += [
        f"{reference} {', '.join(faults)}, in the end"
        for reference, faults in end.disagreements.items()
        if reference not in end.listed
    ]
    verdict.lost += [f"{record}, of {reference}, in the end" for record, reference in end.strays.items()]
    verdict.unexplained = [
        f"{reference}, {reason}"
        for reference, reason in quiet.listed.items()
        if not _is_explained(reference, reason, quiet)
    ]
    _judge_beyond(verdict, quiet, landed, [step for step in steps if step.beyond])


def _judge_beyond(verdict: Verdict, quiet: Standing, landed: list[Landing], steps: list[Landing]) -> None:
    """See that whatever a late write spoilt for good was on a list, or differs where both ends are compared."""
    last = {landing.record: landing for landing in landed}
    newest: Counter[str] = Counter()
    for landing in landed:
        newest[landing.reference] = max(newest[landing.reference], landing.stamp)
    spoilt = {
        landing.reference: landing.record
        for landing in last.values()
        if landing.beyond and (landing.stamp < newest[landing.reference])
    }
    late_creates = {landing.record for landing in landed if landing.beyond and landing.operation == "create"}
    second = {reference: record for record, reference in quiet.strays.items() if record in late_creates}
    spoilt |= second
    verdict.beyond = {
        "landed": sum(landing.beyond for landing in landed),
        "of these, creates": len(late_creates),
        "second records": len(second),
        "went backward": len(steps),
        "spoilt: second record, or the last word": len(spoilt),
        "detected by the ledger": sum(reference in quiet.listed for reference in spoilt),
        "detected by comparing": sum(_is_compared(quiet, name) for name in spoilt if name not in quiet.listed),
    }
    verdict.beyond_undetected = [
        f"{record}, of {name}"
        for name, record in spoilt.items()
        if name not in quiet.listed and not _is_compared(quiet, name)
    ]


def _is_explained(reference: str, reason: str, quiet: Standing) -> bool:
    if reason.startswith(BEHIND) or reason == OF_KILLS:
        return True
    return reason in OF_THE_UNANSWERED and reference in quiet.unanswered


def _is_compared(quiet: Standing, reference: str) -> bool:
    return reference in quiet.disagreements or reference in quiet.strays.values()


def _is_beyond(request: Json) -> bool:
    """Tell whether the clinic acted later than it declared; planned delays are well clear of it, on either side."""
    took_s = float(request["applied_at"] - request["received_at"])
    return request["fault"] == "late" and took_s > DEADLINE_S + LANDS_WITHIN_S


def _words(step: Landing) -> str:
    return f"{step.operation} of {step.record} by v{step.stamp} of {step.reference}"
