"""A reconciliation in words, for a terminal. Pure: plain values in, lines out; no value of a patient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from worker.cli.words import ago, count
from worker.ledger.reconciling import DRIFT, Finding, KeptFinding, Mend, Verdict
from worker.reconcile.page import verdict_of
from worker.reconcile.report import OfType, Report, given

LISTED = 20
REASONS = 12
_COLUMNS = (Verdict.EQUAL, *DRIFT, Verdict.PERSON, Verdict.IN_FLIGHT, Verdict.KEPT)
CSV = ("type", "verdict", "reference", "slot", "collection", "key", "fields", "detail", "mended by", "compared at")


def of(told: Report, found: Iterable[KeptFinding], *, now: datetime) -> Iterator[str]:
    """Tell a run: the table, what was found, what could not be told and why, and what was done about it."""
    yield f"run {told.run}: {verdict_of(told)}; compared {ago((now - told.compared_at).total_seconds())}"
    yield ""
    yield from _table(told)
    for name, why in told.left_out.items():
        yield f"{name}: not compared: {why}"
    yield from _found(found, told.drift)
    yield from _reasons(told)
    yield ""
    yield from (f"not counted as a difference  {line}" for line in told.normalised)
    yield from (f"cannot be seen here          {line}" for line in told.unseen)
    if told.drift:
        yield ""
        yield from _mends(told)


def row(kept: KeptFinding) -> tuple[str, ...]:
    """Give a finding as a line of the CSV."""
    one = kept.finding
    return (
        one.resource_type,
        one.verdict.value,
        one.reference or "",
        one.slot,
        one.collection,
        one.key or "",
        " ".join(one.fields),
        one.detail,
        "a person" if one.mend is Mend.PERSON else "nothing" if one.mend is Mend.NOTHING else "the sync",
        kept.at.isoformat(timespec="seconds"),
    )


def named(one: Finding) -> str:
    """Name what a finding is about."""
    whose = one.reference or f"{one.collection} {one.key or ''}".strip()
    return f"{whose} ({one.slot})" if one.slot else whose


def _table(told: Report) -> Iterator[str]:
    columns = [one for one in _COLUMNS if one in DRIFT or one is Verdict.EQUAL or _any(told, one)]
    head = ["", "looked at", *(one.value for one in columns), *(["at most (95 %)"] if told.sample else [])]
    rows = [[*_first_cells(each), *_cells(each, columns)] for each in told.types]
    widths = [max(len(line[place]) for line in [head, *rows]) for place in range(len(head))]
    for line in [head, *rows]:
        cells = zip(line, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(cells)
        )


def _first_cells(each: OfType) -> list[str]:
    return [each.name, f"{each.resources:,} of {max(each.known, each.resources):,}"]


def _cells(each: OfType, columns: Iterable[Verdict]) -> list[str]:
    cells = [f"{each.counts[one]:,}" for one in columns]
    return cells if each.at_most is None else [*cells, f"{each.at_most:,}"]


def _any(told: Report, verdict: Verdict) -> bool:
    return any(each.counts[verdict] for each in told.types)


def _found(found: Iterable[KeptFinding], drift: int) -> Iterator[str]:
    shown = 0
    for kept in found:
        one = kept.finding
        if one.verdict not in DRIFT:
            continue
        if shown == 0:
            yield ""
        if shown == LISTED:
            yield f"and {drift - shown:,} more: --csv FILE has them all"
            return
        shown += 1
        said = ": ".join(filter(None, (one.verdict.value, ", ".join(one.fields), one.detail)))
        yield f"{named(one)}  {said}"


def _reasons(told: Report) -> Iterator[str]:
    if told.reasons:
        yield ""
    for name, verdict, why, number in told.reasons[:REASONS]:
        yield f"{name}, {verdict}  {number:,} × {why}"
    if len(told.reasons) > REASONS:
        yield f"and {count(len(told.reasons) - REASONS, 'more reason')}: --json has them all"


def _mends(told: Report) -> Iterator[str]:
    number, person = given(told.mends), told.mends.get(Mend.PERSON, 0)
    if told.repair:
        yield f"{count(number, 'finding')} given to the sync: run this again in a while to see what became of it"
    elif number:
        yield f"{count(number, 'finding')} can be mended by the sync: --repair --why … marks them due"
    if person:
        yield f"{count(person, 'finding')} need a person: each says what to look at"
