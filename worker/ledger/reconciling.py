"""Comparisons of both sides: how far a run has come, what it found, and what of that is given to the sync.

A finding holds names of fields and never a value. What is given to the sync is marked due and no longer believed;
nothing is written to either system by this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, exists, func, select, update

from worker.errors import LedgerError
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.linking import DUE_SINCE, THERE
from worker.ledger.statements import insert
from worker.ledger.store import Store
from worker.ledger.tables import findings, links, mirrors, operator_actions, reconciliations
from worker.ledger.tables import writes as announced
from worker.ledger.values import Link, LinkState, Operation, State

GIVEN_UP = "given up"  # stands with the arguments of a run that was broken off, once another has begun with them
RUNS_KEPT = 20  # of ended runs the findings are kept; of older ones only the counts


class Verdict(StrEnum):
    """What comes of comparing one record. All but the last four are counted as not as they should be."""

    DIFFERS = "differs"  # the record is there and says something else
    MISSING = "missing"  # Medplum wants a record and the legacy system has none
    EXTRA = "extra"  # the legacy system has a record that nobody wants, or that no link owns
    DUPLICATE = "duplicate"  # another record agrees, beside ours, and no link owns it
    UNREADABLE = "unreadable"  # it cannot be judged; the reason is told
    PERSON = "needs a person"  # the ledger holds it for a person already: known, and not found here
    IN_FLIGHT = "in flight"  # a change is under way, or waits: the two systems may disagree
    KEPT = "kept"  # the mapping skips it, or the API cannot: it is left as it is
    EQUAL = "equal"


DRIFT = (Verdict.DIFFERS, Verdict.MISSING, Verdict.EXTRA, Verdict.DUPLICATE, Verdict.UNREADABLE)
"""What a run is for: what nobody knew of before."""


class Mend(StrEnum):
    """What mends a finding."""

    NOTHING = "nothing"  # there is nothing to mend, or it mends itself
    DUE = "due"  # the sync writes it anew
    FORGET = "forget"  # its link is given up, then the sync makes the record again
    RELINK = "relink"  # its link is taken up again, then the sync deletes or writes the record
    PERSON = "person"  # nobody but a person can


GIVEN = (Mend.DUE, Mend.FORGET, Mend.RELINK)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a resource stands in the ledger. Of two with the same mark nothing has happened in between."""

    reference: str
    links: tuple[Link, ...] = ()
    state: State | None = None  # none: the ledger never heard of it
    reason: str | None = None
    detail: str | None = None
    waiting_for: str | None = None
    leased: bool = False
    unanswered: int = 0
    applied_version: str | None = None
    mark: tuple[object, ...] = ()

    @property
    def is_busy(self) -> bool:
        """Tell whether something is under way, or asked for."""
        return self.state in {State.DUE, State.WAITING} or self.leased or bool(self.unanswered)

    @property
    def needs_a_person(self) -> bool:
        return self.state in {State.FAILED, State.HELD}

    @property
    def why(self) -> str:
        """Say in the ledger's words why it is not settled."""
        if self.leased:
            return "it is being synced"
        if self.unanswered:
            return "a write has no answer yet"
        if self.state is State.WAITING:
            return f"it waits for {self.waiting_for}"
        return ": ".join(filter(None, (self.reason, self.detail))) or "it is due"


@dataclass(frozen=True, slots=True)
class Finding:
    """One record that is not equal."""

    resource_type: str
    verdict: Verdict
    collection: str
    reference: str | None = None  # none: a record that is nobody's
    slot: str = ""
    key: str | None = field(default=None, repr=False)
    fields: tuple[str, ...] = ()
    detail: str = ""
    mend: Mend = Mend.NOTHING


@dataclass(frozen=True, slots=True)
class KeptFinding:
    """A finding as the ledger has it."""

    id: int
    at: datetime
    finding: Finding


@dataclass(frozen=True, slots=True)
class Run:
    """One comparison of both sides. `counts` are numbers by resource type and verdict."""

    id: int
    arguments: Mapping[str, Any]
    who: str
    action: int | None
    started_at: datetime
    touched_at: datetime
    ended_at: datetime | None
    pages: int
    position: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]

    def total(self, *verdicts: str) -> int:
        """Count what came of it over all types."""
        return sum(numbers.get(verdict, 0) for numbers in self.counts.values() for verdict in verdicts)


@dataclass(frozen=True, slots=True)
class Page:
    """What was compared since the position before: the findings, and how many records came to the other verdicts."""

    position: Mapping[str, Any]
    findings: Sequence[Finding]
    counts: Mapping[str, Mapping[str, int]]
    marks: Mapping[str, tuple[object, ...]]  # of the findings' resources, as they stood before the comparison


class Reconciling(Store):
    """The verbs of `reverse-sync reconcile`."""

    @reads
    def unfinished_run(self, tx: Transaction, arguments: Mapping[str, Any]) -> Run | None:
        """Find the last run with these arguments that was broken off."""
        rows = tx.execute(
            select(reconciliations)
            .where(reconciliations.c.ended_at.is_(None))
            .order_by(reconciliations.c.id.desc())
            .limit(100)
        )
        return next((_run(row) for row in rows if row.arguments == dict(arguments)), None)

    @writes
    def begin_run(
        self,
        tx: Transaction,
        arguments: Mapping[str, Any],
        position: Mapping[str, Any],
        *,
        who: str,
        action: int | None,
    ) -> Run:
        """Begin a run. Those with the same arguments that were broken off are given up, old findings are dropped."""
        open_ones = tx.execute(select(reconciliations).where(reconciliations.c.ended_at.is_(None))).all()
        for row in open_ones:
            if row.arguments == dict(arguments):
                given_up = {"arguments": {**row.arguments, GIVEN_UP: True}, "ended_at": tx.now}
                tx.execute(update(reconciliations).where(reconciliations.c.id == row.id).values(**given_up))
                tx.execute(delete(findings).where(findings.c.run == row.id))
        newest = select(reconciliations.c.id).order_by(reconciliations.c.id.desc()).limit(RUNS_KEPT)
        tx.execute(delete(findings).where(findings.c.run.not_in(newest)))
        new = {
            "arguments": dict(arguments),
            "position": dict(position),
            "who": who,
            "action": action,
            "counts": {},
            "started_at": tx.now,
            "touched_at": tx.now,
        }
        began = insert(tx, reconciliations).values(**new).returning(*reconciliations.c)
        return _run(tx.execute(began).one())

    @reads
    def run(self, tx: Transaction, number: int) -> Run:
        """Tell where a run stands, and what came of it."""
        return _run(tx.execute(select(reconciliations).where(reconciliations.c.id == number)).one())

    @writes
    def keep_page(self, tx: Transaction, run: Run, page: Page, *, repair: bool) -> Run:
        """Keep what was found on a page together with the position after it, and give it to the sync if it is to be.

        A resource to which something happened since it was compared is in flight: nothing is said of it, and nothing
        is done to it. Links that are to be given up are not given up here: see `forget_record`.

        Raises:
            LedgerError: another process has gone on with this run, or begun anew.
        """
        _lock_mirrors(tx, [found.reference for found in page.findings if found.reference])
        now = _standings(tx, list(page.marks))
        given_up = [
            found for found in page.findings if repair and found.mend is Mend.FORGET
        ]  # they have changed by that
        settled = [found if found in given_up else _as_it_stands(found, page.marks, now) for found in page.findings]
        counts = _added(run.counts, page.counts, settled)
        mine = (
            reconciliations.c.id == run.id,
            reconciliations.c.pages == run.pages,
            reconciliations.c.ended_at.is_(None),
        )
        taken = tx.execute(
            update(reconciliations)
            .where(*mine)
            .values(pages=run.pages + 1, position=dict(page.position), counts=counts, touched_at=tx.now)
            .returning(*reconciliations.c)
        ).one_or_none()
        if taken is None:
            raise LedgerError(f"another process goes on with run {run.id}, or began anew: let only one do so")
        if settled:
            tx.execute(insert(tx, findings), [_row(tx, run.id, found) for found in settled])
        given = [found for found in settled if found.mend in {Mend.DUE, Mend.RELINK}] if repair else []
        _give(tx, given)
        if run.action is not None and repair:
            _count(tx, run.action, sum(found.mend in GIVEN for found in settled))
        return _run(taken)

    @writes
    def end_run(self, tx: Transaction, run: Run) -> Run:
        """Note that everything was looked at."""
        mine = reconciliations.c.id == run.id, reconciliations.c.pages == run.pages
        ended = tx.execute(
            update(reconciliations).where(*mine).values(ended_at=tx.now).returning(*reconciliations.c)
        ).one_or_none()
        if ended is None:
            raise LedgerError(f"another process goes on with run {run.id}, or began anew: let only one do so")
        return _run(ended)

    @reads
    def findings_after(
        self, tx: Transaction, run: int, after: int, *, limit: int, verdict: Verdict | None = None
    ) -> tuple[KeptFinding, ...]:
        """List the findings of a run in their order, those beyond `after`."""
        rows = select(findings).where(findings.c.run == run, findings.c.id > after)
        if verdict is not None:
            rows = rows.where(findings.c.verdict == verdict)
        return tuple(map(_found, tx.execute(rows.order_by(findings.c.id).limit(limit))))

    @reads
    def given_to_the_sync(self, tx: Transaction, run: int) -> dict[str, int]:
        """Count a run's findings by what mends them."""
        by_mend = select(findings.c.mend, func.count().label("n")).where(findings.c.run == run)
        return {str(row.mend): int(row.n) for row in tx.execute(by_mend.group_by(findings.c.mend))}

    @reads
    def reasons(self, tx: Transaction, run: int) -> list[tuple[str, str, str, int]]:
        """Count why a run's records could not be judged, or were not: by type, verdict and reason."""
        untold = findings.c.verdict.in_([Verdict.UNREADABLE, Verdict.PERSON, Verdict.IN_FLIGHT])
        by = findings.c.resource_type, findings.c.verdict, findings.c.detail
        rows = tx.execute(select(*by, func.count().label("n")).where(findings.c.run == run, untold).group_by(*by))
        return sorted((row.resource_type, row.verdict, row.detail or "", int(row.n)) for row in rows)

    @reads
    def told_keys(self, tx: Transaction, run: int, collection: str, keys: Sequence[str]) -> frozenset[str]:
        """Tell which of these records a run has found already."""
        mine = findings.c.run == run, findings.c.collection == collection, findings.c.key.in_(keys)
        return frozenset(tx.execute(select(findings.c.key).where(*mine)).scalars())

    @reads
    def last_reconciled(self, tx: Transaction) -> dict[str, dict[str, float]]:
        """Tell of each type how many seconds ago it was last compared as a whole, and what came of it."""
        rows = tx.execute(
            select(reconciliations).where(reconciliations.c.ended_at.is_not(None)).order_by(reconciliations.c.ended_at)
        )
        return {
            name: {"seconds": round((tx.now - row.ended_at).total_seconds(), 3), **numbers}
            for row in rows
            if not any(row.arguments.get(each) for each in ("sample", "since", GIVEN_UP))
            for name, numbers in row.counts.items()
        }

    @reads
    def standings(self, tx: Transaction, references: Sequence[str]) -> dict[str, Standing]:
        """Tell where resources stand, whether the ledger ever heard of them or not."""
        return _standings(tx, references)

    @reads
    def known_of_type(self, tx: Transaction, resource_type: str) -> int:
        """Count the resources of a type that the ledger has heard of."""
        mine = mirrors.c.resource_type == resource_type
        return int(tx.execute(select(func.count()).select_from(mirrors).where(mine)).scalar_one())

    @reads
    def last_link(self, tx: Transaction) -> int:
        """Tell the newest link's id."""
        return int(tx.execute(select(func.max(links.c.id))).scalar_one() or 0)

    @reads
    def linked_after(
        self, tx: Transaction, after: int, *, upto: int, resource_type: str, since: datetime | None, limit: int
    ) -> tuple[tuple[int, str], ...]:
        """List the first link of each resource by id, whatever its state, those beyond `after`: id and resource.

        With `since` it is the first of the links that have changed since then.
        """
        other = links.alias("other")
        before = [other.c.reference == links.c.reference, other.c.id < links.c.id]
        rows = select(links.c.id, links.c.reference).where(
            links.c.id > after, links.c.id <= upto, links.c.resource_type == resource_type
        )
        if since is not None:
            rows = rows.where(links.c.updated_at >= since)
            before.append(other.c.updated_at >= since)
        rows = rows.where(~exists(select(other.c.id).where(*before)))
        return tuple((row.id, row.reference) for row in tx.execute(rows.order_by(links.c.id).limit(limit)))

    @reads
    def led_to(
        self, tx: Transaction, references: Sequence[str], *, upto: int, since: datetime | None = None
    ) -> frozenset[str]:
        """Tell which resources `linked_after` has given out by the same arguments."""
        rows = select(links.c.reference).where(links.c.reference.in_(references), links.c.id <= upto)
        if since is not None:
            rows = rows.where(links.c.updated_at >= since)
        return frozenset(tx.execute(rows).scalars())

    @reads
    def parents_after(self, tx: Transaction, after: int, *, resource_type: str, limit: int) -> tuple[Link, ...]:
        """List links whose records are in the legacy system by id, those beyond `after`, with their keys."""
        rows = select(links).where(links.c.id > after, links.c.resource_type == resource_type, links.c.state.in_(THERE))
        return tuple(map(_link, tx.execute(rows.order_by(links.c.id).limit(limit))))

    @reads
    def known_after(self, tx: Transaction, after: str, *, resource_type: str, limit: int) -> tuple[str, ...]:
        """List the resources of a type that the ledger has heard of, in the order of their references."""
        rows = select(mirrors.c.reference).where(mirrors.c.resource_type == resource_type, mirrors.c.reference > after)
        return tuple(tx.execute(rows.order_by(mirrors.c.reference).limit(limit)).scalars())

    @reads
    def open_creates(self, tx: Transaction, collection: str) -> frozenset[int]:
        """List the creates of a kind that have no answer yet: each may have made a record that no link owns so far."""
        mine = announced.c.collection == collection, announced.c.operation == Operation.CREATE
        return frozenset(tx.execute(select(announced.c.id).where(*mine, announced.c.outcome.is_(None))).scalars())


def _run(row: Any) -> Run:
    return Run(
        row.id,
        row.arguments,
        row.who,
        row.action,
        row.started_at,
        row.touched_at,
        row.ended_at,
        row.pages,
        row.position,
        row.counts,
    )


def _link(row: Any) -> Link:
    """Take a link without what is sealed of it. Its digest is not told: here nothing is believed but what is read."""
    return Link(
        id=row.id,
        reference=row.reference,
        slot=row.slot,
        collection=row.collection,
        keys=row.record_keys,
        state=LinkState(row.state),
        digest="",
        epoch=row.epoch,
        parents=row.parents,
        look_at=None,
    )


def _standings(tx: Transaction, references: Sequence[str]) -> dict[str, Standing]:
    if not references:
        return {}
    owned: dict[str, list[Any]] = {}
    for row in tx.execute(select(links).where(links.c.reference.in_(references)).order_by(links.c.id)):
        owned.setdefault(row.reference, []).append(row)
    known = {row.reference: row for row in tx.execute(select(mirrors).where(mirrors.c.reference.in_(references)))}
    open_writes = tx.execute(
        select(announced.c.reference, func.count().label("n"))
        .where(announced.c.reference.in_(references), announced.c.outcome.is_(None))
        .group_by(announced.c.reference)
    )
    unanswered = {row.reference: int(row.n) for row in open_writes}
    return {
        each: _standing(tx, each, known.get(each), owned.get(each, ()), unanswered.get(each, 0)) for each in references
    }


def _standing(tx: Transaction, reference: str, mirror: Any, rows: Iterable[Any], unanswered: int) -> Standing:
    held = tuple(map(_link, rows))
    said = tuple((row.id, row.state, row.key, row.epoch, row.version_id, row.digest) for row in rows)
    if mirror is None:
        return Standing(reference, held, unanswered=unanswered, mark=(said, unanswered))
    asked = mirror.due_at is not None and mirror.due_at <= tx.now
    return Standing(
        reference,
        held,
        State.DUE if asked and mirror.state == State.CURRENT else State(mirror.state),
        mirror.reason,
        mirror.detail,
        mirror.waiting_for,
        mirror.lease_until is not None and mirror.lease_until > tx.now,
        unanswered,
        mirror.applied_version,
        (said, unanswered, mirror.token, mirror.hints, mirror.state, mirror.lease_owner),
    )


def _as_it_stands(found: Finding, marks: Mapping[str, tuple[object, ...]], now: Mapping[str, Standing]) -> Finding:
    """Take back what was said of a resource to which something has happened since."""
    if found.reference is None or found.verdict is Verdict.IN_FLIGHT:
        return found
    if now[found.reference].mark == marks[found.reference]:
        return found
    return Finding(
        found.resource_type,
        Verdict.IN_FLIGHT,
        found.collection,
        found.reference,
        found.slot,
        found.key,
        detail="it was synced while it was compared",
    )


def _added(
    before: Mapping[str, Mapping[str, int]], more: Mapping[str, Mapping[str, int]], found: Sequence[Finding]
) -> dict[str, dict[str, int]]:
    counts = {name: dict(numbers) for name, numbers in before.items()}
    for name, numbers in more.items():
        mine = counts.setdefault(name, {})
        for verdict, number in numbers.items():
            mine[str(verdict)] = mine.get(str(verdict), 0) + number
    for each in found:
        mine = counts.setdefault(each.resource_type, {})
        mine[each.verdict.value] = mine.get(each.verdict.value, 0) + 1
    return counts


def _lock_mirrors(tx: Transaction, references: Iterable[str]) -> None:
    if not tx.on_sqlite:
        held = select(mirrors.c.reference).where(mirrors.c.reference.in_(sorted(set(references))))
        tx.execute(held.order_by(mirrors.c.reference).with_for_update()).all()


def _give(tx: Transaction, given: Sequence[Finding]) -> None:
    """Mark resources due, and believe nothing of what their records say. What holds a delete back stays in force."""
    for found in given:
        if found.mend is Mend.RELINK:
            mine = links.c.reference == found.reference, links.c.slot == found.slot, links.c.state.not_in(THERE)
            tx.execute(update(links).where(*mine).values(state=LinkState.LINKED, reason=None, updated_at=tx.now))
    references = sorted({found.reference for found in given if found.reference})
    if not references:
        return
    rows = [
        {"reference": each, "resource_type": each.partition("/")[0], "state": State.CURRENT, "since": tx.now}
        for each in references
    ]
    tx.execute(insert(tx, mirrors).on_conflict_do_nothing(), rows)
    tx.execute(
        update(mirrors)
        .where(mirrors.c.reference.in_(references), mirrors.c.state != State.HELD)
        .values(
            state=State.DUE,
            due_at=func.coalesce(mirrors.c.due_at, tx.now),
            hints=mirrors.c.hints + 1,
            attempts=0,
            waiting_for=None,
            absent_since=None,
            since=DUE_SINCE,
        ),
        {"now": tx.now},
    )
    tx.execute(update(links).where(links.c.reference.in_(references)).values(digest=None, epoch=links.c.epoch + 1))


def _count(tx: Transaction, action: int, given: int) -> None:
    mine = operator_actions.c.id == action
    tx.execute(update(operator_actions).where(mine).values(affected=operator_actions.c.affected + given))


def _row(tx: Transaction, run: int, found: Finding) -> dict[str, Any]:
    return {
        "run": run,
        "at": tx.now,
        "resource_type": found.resource_type,
        "reference": found.reference,
        "slot": found.slot,
        "collection": found.collection,
        "key": found.key,
        "verdict": found.verdict,
        "fields": list(found.fields),
        "detail": found.detail or None,
        "mend": found.mend,
    }


def _found(row: Any) -> KeptFinding:
    finding = Finding(
        row.resource_type,
        Verdict(row.verdict),
        row.collection,
        row.reference,
        row.slot,
        row.key,
        tuple(row.fields),
        row.detail or "",
        Mend(row.mend),
    )
    return KeptFinding(row.id, row.at, finding)
