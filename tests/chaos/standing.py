"""Where everything stands at one moment: whether it is quiet, what both ends and the ledger's lists say. Asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, or_, select

from tests.acceptance.system import ROUTED, System
from tests.chaos.plan import RECIPES, Kind
from tests.chaos.verdict import BEHIND, stamp_of
from worker.ledger.tables import changes, links, mirrors, writes
from worker.ledger.values import LinkState, State, WriteOutcome

Json = dict[str, Any]

LATEST_S: Final = RECIPES[Kind.LATE_BEYOND].seconds[1] + 2.0
UNANSWERED: Final = (WriteOutcome.LAPSED, WriteOutcome.FOUND)
NEEDS_A_PERSON: Final = (State.FAILED, State.HELD)


@dataclass(frozen=True, slots=True)
class Standing:
    """One quiet moment."""

    disagreements: Mapping[str, tuple[str, ...]]  # reference → what of its legacy record is not as it should be
    strays: Mapping[str, str]  # active legacy record of no resource → the resource whose stamp it carries
    listed: Mapping[str, str]  # reference → the reason for which it needs a person, or waits for one that does
    untold: frozenset[str]  # Medplum's current version never came to the ledger
    unanswered: frozenset[str]  # references of which a write ever went without an answer


def busy(system: System, *, looks: bool) -> dict[str, int]:
    """Count what still moves by itself; empty: it is quiet. `looks`: so does what waits for its minute.

    That is what a delete was told of that Medplum does not confirm: a live resource, or one that nobody knows.
    """
    found = system.ledger.database.read(lambda tx: _busy(tx, looks=looks))
    found["undelivered"] = system.medplum.undelivered()
    found = {what: many for what, many in found.items() if many}
    if not found and (late := sum(map(_may_land, system.clinic.journal()))):
        return {"still to land in the clinic": late}
    return found


def take(system: System, reference_of: Mapping[int, str]) -> Standing:
    """Look at both ends."""
    disagreements: dict[str, list[str]] = {}
    strays: dict[str, str] = {}
    records = system.clinic.records()
    for line in system.disagreements():
        name, _, fault = line.partition(": ")
        if name in records:
            strays[name] = reference_of.get(stamp_of(records[name]["data"]), "nobody")
        else:
            disagreements.setdefault(name, []).append(fault)
    return Standing(
        {name: tuple(faults) for name, faults in disagreements.items()},
        strays,
        system.ledger.database.read(_listed),
        frozenset(_untold(system)),
        system.ledger.database.read(_unanswered),
    )


def _may_land(request: Json) -> bool:
    """Tell whether the clinic will still carry it out; a clinic that was killed meanwhile never does."""
    return bool(request["outcome"] == "pending" and request["received_at"] > time.time() - LATEST_S)


def _busy(tx: Any, *, looks: bool) -> dict[str, int]:
    listed = _listed(tx)
    due = select(mirrors.c.reference).where(mirrors.c.state == State.DUE)
    waiting = select(mirrors.c.reference).where(mirrors.c.state == State.WAITING)
    unresolved = select(writes.c.reference).where(writes.c.outcome.is_(None))
    second = select(links.c.reference).where(links.c.look_at.is_not(None), links.c.state == LinkState.LINKED)
    hints = select(changes.c.reference).where(changes.c.disposition.is_(None), changes.c.kind == "delete")
    counted = {
        "due": due if looks else due.where(mirrors.c.absent_since.is_(None)),
        "syncing": select(mirrors.c.reference).where(mirrors.c.lease_until > tx.now),
        "waiting": waiting,
        "unresolved": unresolved,
        "second looks": second,
        **({"delete hints": hints} if looks else {}),
    }
    return {what: len(set(tx.execute(query).scalars()) - listed.keys()) for what, query in counted.items()}


def _listed(tx: Any) -> dict[str, str]:
    """Name what needs a person, and what waits for a resource that does, however long the chain."""
    rows = tx.execute(select(mirrors.c.reference, mirrors.c.reason).where(mirrors.c.state.in_(NEEDS_A_PERSON)))
    listed = {row.reference: str(row.reason) for row in rows}
    waits = select(mirrors.c.reference, mirrors.c.waiting_for).where(mirrors.c.state == State.WAITING)
    waiting = {row.reference: row.waiting_for for row in tx.execute(waits)}
    while behind := {name: BEHIND + listed[on].removeprefix(BEHIND) for name, on in waiting.items() if on in listed}:
        listed |= behind
        waiting = {name: on for name, on in waiting.items() if name not in behind}
    return listed


def _unanswered(tx: Any) -> frozenset[str]:
    never = or_(writes.c.outcome.is_(None), writes.c.outcome.in_(UNANSWERED), writes.c.late)
    return frozenset(tx.execute(select(writes.c.reference).where(never)).scalars())


def _untold(system: System) -> set[str]:
    versions, deletes = system.ledger.database.read(_told)
    untold = set()
    for line in (line for resource_type in ROUTED for line in system.medplum.truth(resource_type)):
        reference, at = line["reference"], datetime.fromisoformat(line["lastUpdated"])
        told = deletes.get(reference) is not None and deletes[reference] >= at
        if line["versionId"] not in versions and not (line["deleted"] and told):
            untold.add(reference)
    return untold


def _told(tx: Any) -> tuple[set[str], dict[str, datetime]]:
    versions = set(tx.execute(select(changes.c.version_id).where(changes.c.version_id.is_not(None))).scalars())
    last = select(changes.c.reference, func.max(changes.c.received_at).label("at")).where(changes.c.kind == "delete")
    return versions, {row.reference: row.at for row in tx.execute(last.group_by(changes.c.reference))}
