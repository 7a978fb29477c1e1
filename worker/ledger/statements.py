"""Pieces of SQL that several verbs share.

The statements of the hot path are built once, at import, with named parameters: building one anew costs more than
running it. A parameter that is no column's value has a name that no column has, or SQLAlchemy would take it for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BindParameter,
    ColumnElement,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger.database import Transaction
from worker.ledger.prepared import Prepared
from worker.ledger.tables import Utc, changes, counters, mirrors, pauses, routes
from worker.ledger.values import Disposition, Phase, State

NOW = bindparam("now", type_=Utc)
OF: BindParameter[str] = bindparam("of")  # the reference that a statement is about
SLOT: BindParameter[str] = bindparam("in_slot")

UNSETTLED = or_(changes.c.disposition.is_(None), changes.c.disposition == Disposition.FAILED)

RUNNABLE = and_(
    mirrors.c.state != State.HELD,
    or_(mirrors.c.due_at <= NOW, mirrors.c.look_at <= NOW),
    or_(mirrors.c.not_before.is_(None), mirrors.c.not_before <= NOW),
    or_(mirrors.c.lease_until.is_(None), mirrors.c.lease_until <= NOW),
)

NOT_PAUSED = and_(
    ~exists(select(pauses.c.scope).where(or_(pauses.c.scope == "*", pauses.c.scope == mirrors.c.resource_type))),
    ~exists(
        select(routes.c.phase).where(routes.c.resource_type == mirrors.c.resource_type, routes.c.phase == Phase.PAUSED)
    ),
)


def insert(tx: Transaction, table: Table) -> Any:
    """Begin an INSERT that knows ON CONFLICT, which each dialect spells in a class of its own."""
    return dialect_of(tx.on_sqlite).insert(table)


def routed_types(tx: Transaction) -> frozenset[str]:
    """List the resource types that have a route, whatever its phase."""
    return frozenset(tx.execute(_types).scalars())


_types = select(routes.c.resource_type)


def dialect_of(on_sqlite: bool) -> Any:
    """Return the dialect whose INSERT knows ON CONFLICT: each spells it in a class of its own."""
    return sqlite if on_sqlite else postgresql


def among(column: ColumnElement[str], name: str, *, on_sqlite: bool) -> ColumnElement[bool]:
    """Say that a column is in a list that comes as one parameter: IN with its many is put together anew each time."""
    if on_sqlite:
        return column.in_(select(func.json_each(bindparam(name, type_=JSON)).table_valued("value").c.value))
    return column == any_(bindparam(name, type_=ARRAY(Text)))


def _count(on_sqlite: bool) -> Any:
    statement = dialect_of(on_sqlite).insert(counters)
    return statement.on_conflict_do_update(
        index_elements=["name", "source", "resource_type"],
        set_={"value": counters.c.value + statement.excluded.value},
    )


_count_up = Prepared(_count)


def add_up(tx: Transaction, name: str, amounts: Mapping[tuple[str, str], int]) -> None:
    """Raise counters by (source, resource type)."""
    rows = [
        {"name": name, "source": str(source), "resource_type": resource_type, "value": amount}
        for (source, resource_type), amount in sorted(amounts.items())
    ]
    _count_up.run(tx, rows)


def due_anew(tx: Transaction) -> dict[str, Any]:
    """Give the columns of a mirror that a person wants tried again at once, as if nothing had been tried before."""
    return {
        "state": State.DUE,
        "due_at": tx.now,
        "not_before": None,
        "queued_at": None,
        "waiting_for": None,
        "hints": mirrors.c.hints + 1,
        "attempts": 0,
        "starts": 0,
        "since": tx.now,
    }
