"""Write-back: which keys are still to be put on their Medplum resources, and which versions are our own.

`protocol.md` 14. Nothing here touches a mirror's state: a write-back that fails, fails alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Boolean, and_, bindparam, case, delete, exists, insert, or_, select, update

from worker.ledger.database import Transaction, reads, writes
from worker.ledger.statements import NOW, OF
from worker.ledger.statements import insert as insert_or
from worker.ledger.store import Store
from worker.ledger.tables import Utc, attempts, links, mirrors, own_versions, pauses, routes
from worker.ledger.values import Keys, LinkState, Phase

BOUNCES_ALARM = 2
"""So many writes in a row that our own versions led to are no coincidence any more."""

WRITE_BACK = "write-back"
"""The outcome under which a write-back stands among a resource's attempts. It has no token: it holds no mirror."""

_NO_TOKEN = 0

_live = and_(
    exists(select(routes.c.phase).where(routes.c.resource_type == links.c.resource_type, routes.c.phase == Phase.LIVE)),
    ~exists(select(pauses.c.scope).where(or_(pauses.c.scope == "*", pauses.c.scope == links.c.resource_type))),
)
TO_IDENTIFY = and_(links.c.identify_at.is_not(None), links.c.state == LinkState.LINKED)
_ready = and_(TO_IDENTIFY, links.c.identify_at <= NOW, _live)
_types = select(links.c.resource_type).where(_ready).distinct().order_by(links.c.resource_type)
_oldest = (
    select(links.c.id)
    .where(_ready, links.c.resource_type == bindparam("of_type"))
    .order_by(links.c.identify_at, links.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_ours = exists(
    select(own_versions.c.version_id).where(
        own_versions.c.reference == mirrors.c.reference, own_versions.c.version_id == bindparam("version")
    )
)
BOUNCES = case(
    (~bindparam("was_applied", type_=Boolean), mirrors.c.bounces),
    (or_(bindparam("by_us", type_=Boolean), _ours), mirrors.c.bounces + 1),
    else_=0,
)
"""What a mirror's count of bounces becomes when `version` is settled: 3g, what we wrote ourselves asks for no write."""


@dataclass(frozen=True, slots=True)
class ToIdentify:
    """A link whose key is to be put on its resource; whoever took it has it until `until`."""

    link_id: int
    reference: str
    slot: str
    keys: Keys
    former: str | None  # the key that the resource was given before
    others: tuple[Keys, ...]  # of the resource's other records
    attempts: int
    until: datetime


class Identifying(Store):
    """The verbs of write-back."""

    @reads
    def types_to_identify(self, tx: Transaction) -> tuple[str, ...]:
        """List the resource types of which a key is to be put on its resource now."""
        return tuple(tx.execute(_types, {"now": tx.now}).scalars())

    @writes
    def take_to_identify(
        self, tx: Transaction, resource_type: str, *, limit: int, within_s: float
    ) -> tuple[ToIdentify, ...]:
        """Take links of a type whose key is to be put on its resource, the longest waiting first.

        They are the caller's for `within_s` seconds; what it does not end by then is taken again.
        """
        chosen = tx.execute(_oldest, {"of_type": resource_type, "at_most": limit, "now": tx.now}).scalars().all()
        until = tx.now + timedelta(seconds=within_s)
        taken = tx.execute(
            update(links).where(links.c.id.in_(chosen)).values(identify_at=until).returning(*links.c)
        ).all()
        all_keys = _all_keys(tx, {row.reference for row in taken})
        order = {link_id: at for at, link_id in enumerate(chosen)}
        return tuple(
            ToIdentify(
                link_id=row.id,
                reference=row.reference,
                slot=row.slot,
                keys=row.record_keys,
                former=row.identified_key,
                others=tuple(keys for link_id, keys in all_keys[row.reference].items() if link_id != row.id),
                attempts=row.identify_attempts,
                until=until,
            )
            for row in sorted(taken, key=lambda row: order[row.id])
        )

    @writes
    def identified(
        self, tx: Transaction, taken: ToIdentify, *, key: str | None, version_id: str | None, detail: str
    ) -> None:
        """Note that nothing is left to do: the resource carries `key`, or (None) is gone or wants none.

        `version_id` is the version that this made: its notification is our own echo. It is noted whoever has the link
        by now; a key that is another one meanwhile stays to be put there.
        """
        if version_id is not None:
            made = {"reference": taken.reference, "version_id": version_id, "written_at": tx.now}
            tx.execute(insert_or(tx, own_versions).on_conflict_do_nothing(), made)
        tx.execute(
            update(links)
            .where(links.c.id == taken.link_id, links.c.identify_at == taken.until)
            .values(identify_at=None, identify_attempts=0, identified_key=key)
        )
        _note(tx, taken, detail, version_id)

    @writes
    def identify_later(self, tx: Transaction, taken: ToIdentify, *, after_s: float, detail: str) -> None:
        """Note that a try came to nothing, and when the next one is."""
        tx.execute(
            update(links)
            .where(links.c.id == taken.link_id, links.c.identify_at == taken.until)
            .values(identify_at=tx.now + timedelta(seconds=after_s), identify_attempts=links.c.identify_attempts + 1)
        )
        _note(tx, taken, detail, None)

    @writes
    def give_back_to_identify(self, tx: Transaction, taken: Collection[ToIdentify], *, after_s: float) -> None:
        """Give links back that were taken and not tried."""
        for each in taken:
            tx.execute(
                update(links)
                .where(links.c.id == each.link_id, links.c.identify_at == each.until)
                .values(identify_at=tx.now + timedelta(seconds=after_s))
            )

    @reads
    def is_own(self, tx: Transaction, reference: str, version_id: str) -> bool:
        """Tell whether we wrote this version ourselves. It chooses a word, and never skips a write."""
        mine = select(own_versions.c.written_at).where(
            own_versions.c.reference == OF, own_versions.c.version_id == bindparam("version")
        )
        return tx.execute(mine, {"of": reference, "version": version_id}).first() is not None

    @writes
    def forget_own_versions(self, tx: Transaction, *, after: timedelta) -> int:
        """Forget versions that we wrote so long ago that nobody tells of them any more. Returns how many."""
        old = delete(own_versions).where(own_versions.c.written_at < bindparam("before", type_=Utc))
        return int(tx.execute(old, {"before": tx.now - after}).rowcount)


def _all_keys(tx: Transaction, references: Collection[str]) -> dict[str, dict[int, Keys]]:
    there = links.c.state.in_((LinkState.LINKED, LinkState.LEFT_BEHIND))
    rows = tx.execute(
        select(links.c.reference, links.c.id, links.c.record_keys).where(links.c.reference.in_(references), there)
    )
    found: dict[str, dict[int, Keys]] = {}
    for row in rows:
        found.setdefault(row.reference, {})[row.id] = row.record_keys
    return found


def _note(tx: Transaction, taken: ToIdentify, detail: str, version_id: str | None) -> None:
    tx.execute(
        insert(attempts).values(
            reference=taken.reference,
            token=_NO_TOKEN,
            ended_at=tx.now,
            version_id=version_id,
            outcome=WRITE_BACK,
            detail=detail,
        )
    )
