"""How far each route is let into the legacy system, by which mapping, and what would have been sent meanwhile.

Phase and active mapping version are rows that a person changes; each change is recorded with who and why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from worker.errors import LedgerError
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.linking import DUE_SINCE, THERE
from worker.ledger.operate import note_action
from worker.ledger.sealing import NoKey, SealBroken
from worker.ledger.statements import NOW, add_up
from worker.ledger.store import Store
from worker.ledger.tables import counters, links, mirrors, routes, shadows
from worker.ledger.values import Claim, Phase, State

OTHER_VERSION = "other version"  # the reason of an attempt whose worker maps by another version than the active one
COMPARED = "shadowed"  # the counter of first live writes that were compared with what was shadowed
SHADOWED = "shadow: nothing is sent"  # the rule by which a version is settled then
AT_A_TIME = 500


@dataclass(frozen=True, slots=True)
class Shadow:
    """One write that would have been sent; `content` is what its digest would be taken over, none for a delete."""

    slot: str
    collection: str
    operation: str
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class RouteState:
    """One route with what gathers behind it."""

    resource_type: str
    phase: Phase
    active: str
    mirrors: Mapping[str, int]  # by state
    links: int
    handed_back: int  # due, and handed back by workers with another version
    shadowed: Mapping[str, int]  # what would be sent, by operation
    compared: Mapping[str, int]  # first live writes against what was shadowed: equal, different, newer, unknown


class Phasing(Store):
    """The verbs over phases, mapping versions and shadows."""

    @writes
    def set_phase(self, tx: Transaction, resource_type: str, phase: Phase, *, who: str, why: str) -> Phase:
        """Let a route further in, or out. Returns the phase before.

        Raises:
            LedgerError: there is no such route.
            NoKey: it would be live, and what is sent could not be kept sealed.
        """
        if phase is Phase.LIVE and not self.sealer.can_seal:
            raise NoKey
        before = _route(tx, resource_type).phase
        tx.execute(update(routes).where(routes.c.resource_type == resource_type).values(phase=phase))
        arguments = {"type": resource_type, "from": before, "to": phase.value}
        note_action(tx, who=who, action="phase", why=why, arguments=arguments, affected=1)
        return Phase(before)

    def ask_for_all(self, resource_type: str) -> int:
        """Mark every mirror of a type due, but for those that are held; digests stay. Returns how many.

        It goes in chunks, so that a type with a million mirrors keeps nobody waiting. Broken off, it is run again.
        """
        asked, after = 0, ""
        while part := self._next_of(resource_type, after):
            asked += self._ask_for(part)
            after = part[-1]
        return asked

    @reads
    def _next_of(self, tx: Transaction, resource_type: str, after: str) -> list[str]:
        these = mirrors.c.resource_type == resource_type, mirrors.c.reference > after
        rows = tx.execute(select(mirrors.c.reference).where(*these).order_by(mirrors.c.reference).limit(AT_A_TIME))
        return list(rows.scalars())

    @writes
    def _ask_for(self, tx: Transaction, references: Sequence[str]) -> int:
        return int(tx.execute(_ask_for, {"references": sorted(references), "now": tx.now}).rowcount)

    @writes
    def activate(self, tx: Transaction, versions: Mapping[str, str], *, who: str, why: str) -> dict[str, str]:
        """Make these the active mapping versions, by type. Returns those that were others, with what they were.

        Raises:
            LedgerError: there is no such route; nothing was changed.
        """
        before = {name: _route(tx, name).mapping_version for name in sorted(versions)}
        changed = {name: old for name, old in before.items() if old != versions[name]}
        for name in changed:
            tx.execute(update(routes).where(routes.c.resource_type == name).values(mapping_version=versions[name]))
        arguments = {name: {"from": old, "to": versions[name]} for name, old in changed.items()}
        if changed:
            note_action(tx, who=who, action="activate", why=why, arguments=arguments, affected=len(changed))
        return changed

    @reads
    def route_states(self, tx: Transaction) -> list[RouteState]:
        """Tell of each route how far it is let in and what gathers behind it."""
        states = _grouped(tx, mirrors.c.resource_type, mirrors.c.state)
        operations = _grouped(tx, shadows.c.resource_type, shadows.c.operation)
        compared = tx.execute(select(counters).where(counters.c.name == COMPARED)).all()
        linked = dict(_pairs(tx, links.c.resource_type, links.c.state.in_(THERE)))
        handed = (mirrors.c.state == State.DUE) & (mirrors.c.reason == OTHER_VERSION)
        back = dict(_pairs(tx, mirrors.c.resource_type, handed))
        return [
            RouteState(
                resource_type=row.resource_type,
                phase=Phase(row.phase),
                active=row.mapping_version,
                mirrors=states[row.resource_type],
                links=linked.get(row.resource_type, 0),
                handed_back=back.get(row.resource_type, 0),
                shadowed=operations[row.resource_type],
                compared={one.source: int(one.value) for one in compared if one.resource_type == row.resource_type},
            )
            for row in tx.execute(select(routes).order_by(routes.c.resource_type)).all()
        ]

    @writes
    def keep_shadows(
        self, tx: Transaction, claim: Claim, version_id: str | None, mapping_version: str, sent: Sequence[Shadow]
    ) -> None:
        """Keep what an attempt would have sent, in place of what an earlier one would have; fenced as an end is."""
        if tx.execute(_mine(claim)).first() is None:
            return
        tx.execute(delete(shadows).where(shadows.c.reference == claim.reference))
        rows = [
            {
                "reference": claim.reference,
                "slot": shadow.slot,
                "resource_type": claim.resource_type,
                "collection": shadow.collection,
                "operation": shadow.operation,
                "version_id": version_id,
                "mapping_version": mapping_version,
                "body": self._sealed_shadow(claim.reference, shadow),
                "at": tx.now,
            }
            for shadow in sent
        ]
        if rows:
            tx.execute(insert(shadows), rows)

    @writes
    def drop_shadows(self, tx: Transaction, claim: Claim, version_id: str | None, sent: Sequence[Shadow]) -> str:
        """Compare what was sent with what was shadowed, count the verdict and forget the shadow.

        Returns the verdict: equal · different · newer (another version was shadowed) · unknown (no key opens it) ·
        nothing where there was no shadow.
        """
        rows = tx.execute(select(shadows).where(shadows.c.reference == claim.reference).with_for_update()).all()
        if not rows:
            return ""
        verdict = self._verdict(rows, version_id, sent)
        tx.execute(delete(shadows).where(shadows.c.reference == claim.reference))
        add_up(tx, COMPARED, {(verdict, claim.resource_type): 1})
        return verdict

    def _verdict(self, rows: Sequence[Any], version_id: str | None, sent: Sequence[Shadow]) -> str:
        if any(row.version_id != version_id for row in rows):
            return "newer"
        try:
            kept = {(row.slot, row.collection, row.operation, self._opened_shadow(row)) for row in rows}
        except (NoKey, SealBroken):
            return "unknown"
        return (
            "equal" if kept == {(one.slot, one.collection, one.operation, one.content) for one in sent} else "different"
        )

    def _sealed_shadow(self, reference: str, shadow: Shadow) -> bytes | None:
        if shadow.content is None or not self.sealer.can_seal:
            return None
        place = {"table": "shadows", "reference": reference, "version": shadow.slot, "column": "body"}
        return self.sealer.seal(shadow.content, **place)

    def _opened_shadow(self, row: Any) -> bytes | None:
        if row.body is None:
            if row.operation != "delete":
                raise SealBroken("it was kept without a key")
            return None
        return self.sealer.open(
            bytes(row.body), table="shadows", reference=row.reference, version=row.slot, column="body"
        )


_ask_for = (
    update(mirrors)
    .where(mirrors.c.reference.in_(bindparam("references", expanding=True)), mirrors.c.state != State.HELD)
    .values(
        state=State.DUE,
        due_at=func.coalesce(mirrors.c.due_at, NOW),
        waiting_for=None,
        hints=mirrors.c.hints + 1,
        attempts=0,
        since=DUE_SINCE,
    )
)


def _mine(claim: Claim) -> Any:
    held = (
        mirrors.c.reference == claim.reference,
        mirrors.c.token == claim.token,
        mirrors.c.lease_owner == claim.instance,
    )
    return select(mirrors.c.reference).where(*held).with_for_update()


def _route(tx: Transaction, resource_type: str) -> Any:
    row = tx.execute(select(routes).where(routes.c.resource_type == resource_type).with_for_update()).one_or_none()
    if row is None:
        raise LedgerError(f"the ledger knows no route for {resource_type}: run `reverse-sync migrate`")
    return row


def _pairs(tx: Transaction, by: Any, condition: Any) -> list[tuple[str, int]]:
    rows: list[Any] = list(tx.execute(select(by, func.count()).where(condition).group_by(by)))
    return [(str(name), int(number)) for name, number in rows]


def _grouped(tx: Transaction, by: Any, then: Any) -> Mapping[str, dict[str, int]]:
    told: dict[str, dict[str, int]] = defaultdict(dict)
    rows: list[Any] = list(tx.execute(select(by, then, func.count()).group_by(by, then)))
    for name, kind, number in rows:
        told[str(name)][str(kind)] = int(number)
    return told
