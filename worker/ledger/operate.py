"""What people decide: routes and phases, pauses, replays, whose ledger it is. Each is recorded with who and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, delete, or_, select, update

from worker.errors import LedgerForeign
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.sealing import NoKey, SealBroken
from worker.ledger.statements import due_anew, insert
from worker.ledger.store import Store
from worker.ledger.tables import deployment, links, mirrors, operator_actions, pauses, routes
from worker.ledger.tables import writes as announced
from worker.ledger.values import Phase, RouteRow, State

EVERYTHING = "*"
ADOPT = "use that system's own ledger, or `reverse-sync adopt --why …`"
UNDECLARED = ""  # the mapping version of a type that no release declares


@dataclass(frozen=True, slots=True)
class Selection:
    """Which mirrors an action is for: named ones, or those that need a person, narrowed down."""

    references: tuple[str, ...] = ()
    resource_type: str | None = None
    reason: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """One standing pause."""

    scope: str
    who: str
    why: str
    at: datetime


class Operate(Store):
    """The verbs of operators and of deployment."""

    @writes
    def register_routes(self, tx: Transaction, declared: Mapping[str, tuple[Phase, str]]) -> None:
        """Make the declared routes known: type → (first phase, mapping version). What a known route has of both stays.

        So a new mapping waits until it is activated: see `Phasing.activate`.
        A type that is no longer declared goes off, and its changes are settled as skipped, until it is declared again.
        Only a deployment's release step calls this: an old worker that starts during a roll-out must not take a new
        type off.
        """
        for resource_type, (phase, version) in sorted(declared.items()):
            statement = insert(tx, routes).values(
                resource_type=resource_type, phase=phase, mapping_version=version, registered_at=tx.now
            )
            tx.execute(
                statement.on_conflict_do_update(
                    index_elements=["resource_type"],
                    set_={
                        "phase": case((routes.c.mapping_version == UNDECLARED, phase), else_=routes.c.phase),
                        "mapping_version": case(
                            (routes.c.mapping_version == UNDECLARED, version), else_=routes.c.mapping_version
                        ),
                    },
                )
            )
        tx.execute(
            update(routes)
            .where(routes.c.resource_type.not_in(sorted(declared)), routes.c.phase != Phase.RETIRED)
            .values(phase=Phase.OFF, mapping_version=UNDECLARED)
        )

    @reads
    def routes(self, tx: Transaction) -> dict[str, RouteRow]:
        """List the routes by resource type."""
        return {
            row.resource_type: RouteRow(row.resource_type, Phase(row.phase), row.mapping_version)
            for row in tx.execute(select(routes))
        }

    @writes
    def belong_to(self, tx: Transaction, systems: Mapping[str, str]) -> None:
        """Bind a new ledger to its Medplum and legacy systems, or check that it is bound to these.

        Raises:
            LedgerForeign: names each system that is another one than the ledger's.
        """
        if foreign := _foreign(tx, systems):
            raise LedgerForeign("\n".join([*foreign, ADOPT]))
        self._bind(tx, systems)

    @reads
    def foreign(self, tx: Transaction, systems: Mapping[str, str]) -> list[str]:
        """Name each system that is another one than the ledger's; one that the ledger does not know is none."""
        return _foreign(tx, systems)

    @writes
    def adopt_systems(self, tx: Transaction, systems: Mapping[str, str], *, who: str, why: str) -> None:
        """Bind the ledger to other systems, by a person's decision."""
        tx.execute(delete(deployment))
        self._bind(tx, systems)
        note_action(tx, who=who, action="adopt", why=why, arguments=dict(systems), affected=len(systems))

    @writes
    def pause(self, tx: Transaction, scopes: Sequence[str], *, who: str, why: str) -> None:
        """Stop claims and announcements of these types, or of everything, within seconds."""
        for scope in scopes or (EVERYTHING,):
            statement = insert(tx, pauses).values(scope=scope, who=who, why=why, at=tx.now)
            tx.execute(
                statement.on_conflict_do_update(index_elements=["scope"], set_={"who": who, "why": why, "at": tx.now})
            )
        note_action(tx, who=who, action="pause", why=why, arguments={"scopes": list(scopes)}, affected=len(scopes) or 1)

    @writes
    def resume(self, tx: Transaction, scopes: Sequence[str], *, who: str, why: str) -> int:
        """End pauses: these, or every one. Returns how many there were."""
        statement = delete(pauses)
        ended = tx.execute(statement.where(pauses.c.scope.in_(scopes)) if scopes else statement).rowcount
        note_action(tx, who=who, action="resume", why=why, arguments={"scopes": list(scopes)}, affected=ended)
        return int(ended)

    @reads
    def paused(self, tx: Transaction) -> tuple[Pause, ...]:
        """List the standing pauses."""
        rows = tx.execute(select(pauses).order_by(pauses.c.scope))
        return tuple(Pause(row.scope, row.who, row.why, row.at) for row in rows)

    @reads
    def replayable(self, tx: Transaction, selection: Selection) -> tuple[str, ...]:
        """List the mirrors that a replay of this selection would mark due."""
        return _selected(tx, selection)

    @writes
    def replay(self, tx: Transaction, selection: Selection, *, who: str, why: str | None = None) -> tuple[str, ...]:
        """Mark mirrors due and void their digests, so that they are written whatever is known. Returns which.

        What was announced without an answer keeps its bound: a replay never overtakes a write that may still land.
        """
        chosen = _selected(tx, selection)
        for start in range(0, len(chosen), 500):
            part = chosen[start : start + 500]
            tx.execute(
                update(mirrors)
                .where(mirrors.c.reference.in_(part))
                .values(**due_anew(tx), released=True, absent_since=None)
            )
            tx.execute(update(links).where(links.c.reference.in_(part)).values(digest=None, epoch=links.c.epoch + 1))
        named = {"references": list(selection.references), "type": selection.resource_type, "reason": selection.reason}
        note_action(tx, who=who, action="replay", why=why, arguments=named, affected=len(chosen))
        return chosen

    @writes
    def words(self, tx: Transaction, reference: str, *, who: str) -> dict[int, str]:
        """Open what the legacy API itself said to a resource's writes: by the write's id. Who looked is recorded.

        The words can hold values of this record and of others. What no key opens is left out.

        Raises:
            NoKey: no payload key is given.
        """
        if not self.sealer.can_seal:
            raise NoKey
        answered = select(announced).where(announced.c.reference == reference, announced.c.answer.is_not(None))
        opened = {row.id: self._opened_words(row) for row in tx.execute(answered.order_by(announced.c.id))}
        told = {number: words for number, words in opened.items() if words is not None}
        note_action(tx, who=who, action="words", why=None, arguments={"reference": reference}, affected=len(told))
        return told

    def _opened_words(self, row: Any) -> str | None:
        place = {"table": "writes", "reference": row.reference, "version": row.version_id or "", "column": "answer"}
        try:
            return self.sealer.open(row.answer, **place).decode(errors="replace")
        except SealBroken:
            return None

    def _bind(self, tx: Transaction, systems: Mapping[str, str]) -> None:
        for name, value in sorted(systems.items()):
            tx.execute(
                insert(tx, deployment).values(name=name, value=value, recorded_at=tx.now).on_conflict_do_nothing()
            )


def _foreign(tx: Transaction, systems: Mapping[str, str]) -> list[str]:
    known = {row.name: row.value for row in tx.execute(select(deployment))}
    return [
        f"{name}: the ledger belongs to {known[name]}, the settings say {value}"
        for name, value in sorted(systems.items())
        if known.get(name, value) != value
    ]


def note_action(
    tx: Transaction, *, who: str, action: str, why: str | None, arguments: Mapping[str, Any], affected: int
) -> None:
    """Record what a person did."""
    tx.execute(
        insert(tx, operator_actions).values(
            at=tx.now, who=who, action=action, why=why, arguments=dict(arguments), affected=affected
        )
    )


def _selected(tx: Transaction, selection: Selection) -> tuple[str, ...]:
    chosen = select(mirrors.c.reference).order_by(mirrors.c.reference)
    if selection.references:
        chosen = chosen.where(mirrors.c.reference.in_(selection.references))
    else:
        chosen = chosen.where(or_(mirrors.c.state == State.FAILED, mirrors.c.state == State.HELD))
    if selection.resource_type:
        chosen = chosen.where(mirrors.c.resource_type == selection.resource_type)
    if selection.reason:
        chosen = chosen.where(mirrors.c.reason == selection.reason)
    if selection.since:
        chosen = chosen.where(mirrors.c.since >= selection.since)
    return tuple(tx.execute(chosen).scalars())
