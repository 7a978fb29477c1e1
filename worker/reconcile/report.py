"""What a run tells: counts with their age, what was normalised, what could not be judged and why. Only reads.

It holds references and names of fields, and no value of a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from worker.ledger import Ledger
from worker.ledger.reconciling import DRIFT, KeptFinding, Mend, Run, Verdict
from worker.ledger.values import Operation
from worker.legacy import Collection, Find, Normal
from worker.mapping import Routes
from worker.reconcile.chance import at_most
from worker.reconcile.comparing import LISTED, RESOURCES

AT_A_TIME = 500

_NORMAL = {
    Normal.CASE: "upper and lower case",
    Normal.BLANKS: "how many blanks",
    Normal.ZEROS: "zeros at the end of a number",
    Normal.DIGITS: "all but the digits",
}


@dataclass(frozen=True, slots=True)
class OfType:
    """What came of one type's records."""

    name: str
    resources: int  # looked at
    known: int  # that the ledger has heard of by now
    listed: int  # records that the legacy system listed
    counts: Mapping[str, int]
    at_most: int | None = None  # of a sample: so many of all may be not as they should be

    @property
    def drift(self) -> int:
        return sum(self.counts[verdict] for verdict in DRIFT)


@dataclass(frozen=True, slots=True)
class Report:
    """One run, told."""

    run: int
    who: str
    started_at: datetime
    compared_at: datetime  # the last page
    finished: bool
    sample: int | None
    seed: int | None
    since: str | None
    repair: bool
    types: tuple[OfType, ...]
    left_out: Mapping[str, str]
    mends: Mapping[str, int]
    reasons: tuple[tuple[str, str, str, int], ...]  # type, verdict, why, how many
    normalised: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def drift(self) -> int:
        """Count what is not as it should be."""
        return sum(each.drift for each in self.types)


def report(ledger: Ledger, run: Run, routes: Routes, left_out: Mapping[str, str]) -> Report:
    """Tell a run as it stands in the ledger."""
    said, collections = run.arguments, _collections(run, routes)
    return Report(
        run=run.id,
        who=run.who,
        started_at=run.started_at,
        compared_at=run.touched_at,
        finished=run.ended_at is not None,
        sample=said["sample"],
        seed=said["seed"],
        since=run.position["since"],
        repair=bool(said["repair"]),
        types=tuple(_of_type(ledger, run, name) for name in said["types"]),
        left_out=left_out,
        mends=ledger.given_to_the_sync(run.id),
        reasons=tuple(ledger.reasons(run.id)),
        normalised=tuple(_normalised(collections)),
        unseen=tuple(_unseen(run, collections)),
    )


def findings(ledger: Ledger, run: int, verdict: Verdict | None = None) -> Iterator[KeptFinding]:
    """Yield what a run found, a page at a time."""
    after = 0
    while some := ledger.findings_after(run, after, limit=AT_A_TIME, verdict=verdict):
        yield from some
        after = some[-1].id


def _of_type(ledger: Ledger, run: Run, name: str) -> OfType:
    numbers = run.counts.get(name, {})
    counts = {verdict.value: numbers.get(verdict.value, 0) for verdict in Verdict}
    looked_at, known = numbers.get(RESOURCES, 0), ledger.known_of_type(name)
    drift = sum(counts[verdict] for verdict in DRIFT)
    bound = None if run.arguments["sample"] is None else at_most(min(drift, looked_at), looked_at, known)
    return OfType(name, looked_at, known, numbers.get(LISTED, 0), counts, bound)


def _collections(run: Run, routes: Routes) -> dict[str, Collection]:
    return {
        each.name: each
        for name in run.arguments["types"]
        if name in routes
        for each in routes[name].collections
        if not each.known_as
    }


def _normalised(collections: Mapping[str, Collection]) -> Iterator[str]:
    yield (
        "everywhere: blanks around a text; nothing, an empty text and an absent field; a number and its text; a date "
        "or time in any form that the API's wire or ISO 8601 gives it; of an object only the fields that are mapped"
    )
    for each in collections.values():
        for name, how in sorted(each.normalise.items()):
            yield f"{each.name}.{name}: {', '.join(_NORMAL[one] for one in how)}"


def _unseen(run: Run, collections: Mapping[str, Collection]) -> Iterator[str]:
    """Say what a run cannot see by itself."""
    if run.arguments["sample"] is not None:
        yield "a sample is of resources that the ledger has heard of: of what it never heard of, it says nothing"
    elif run.arguments["since"] is not None:
        yield "records that only the legacy system has: a list does not tell when a record was changed"
    for each in collections.values():
        if run.arguments["sample"] is None and run.arguments["since"] is None and not each.can_list:
            yield f"{each.name}: records that only the legacy system has, because no list is declared"
        if each.supports(Operation.DELETE) and not each.tells_deleted:
            yield f"{each.name}: a deleted record that is back, or one deleted by hand: its `gone` is not declared"
        if not each.can_read:
            yield f"{each.name}: no read is declared, so a record is told by what find shows of it"
        if not isinstance(each.find_by, Find):
            yield f"{each.name}: a second record of one resource, because it cannot be looked up"


def given(mends: Mapping[str, int]) -> int:
    """Count what was given to the sync, or would be."""
    return sum(mends.get(mend, 0) for mend in (Mend.DUE, Mend.FORGET, Mend.RELINK))
