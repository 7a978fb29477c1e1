"""Medplum's Subscriptions as this service keeps them: what was applied, how each stands, and the secrets of each.

What is in doubt because one of them did not work becomes a window, which catch-up proves. Nothing here knows Medplum.
"""

from __future__ import annotations

import secrets as random_source
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import SecretStr
from sqlalchemy import and_, delete, exists, func, or_, select, update

from worker.ledger.backlog import STALE_HEARTBEAT
from worker.ledger.database import Transaction, reads, writes
from worker.ledger.sealing import SealBroken
from worker.ledger.statements import among, insert
from worker.ledger.store import Store
from worker.ledger.tables import changes, instances, jobs, subscription_secrets, subscriptions
from worker.ledger.values import Kind, Source

RECEIVER = "web"
"""The role under which receivers say that they live, and which secrets they know."""


class SubscriptionState(StrEnum):
    """How a Subscription stands, as far as the watch can see."""

    OK = "ok"
    FAILING = "failing"  # Medplum still tries to deliver some events
    SILENT = "silent"  # Medplum has newer versions, and sent none of them
    CHANGED = "changed"  # somebody changed it by hand
    OFF = "off"  # switched off: nothing is sent, and nothing queued
    ERROR = "error"  # the same, by a status of Medplum's own
    MISSING = "missing"  # a route needs it, and it is not there


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a Subscription found; `reason` is in words, free of values and secrets."""

    state: SubscriptionState
    reason: str = ""
    failing: int = 0
    oldest_attempt: int | None = None
    gives_up_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A Subscription that was applied, and what the last look at it found."""

    resource_type: str
    medplum_id: str | None
    fingerprints: Mapping[str, str]
    look: Look
    since: datetime
    sure_until: datetime | None
    looked_at: datetime | None
    last_delivery_at: datetime | None


@dataclass(frozen=True, slots=True)
class KeptSecret:
    """A secret that notifications of a type may be signed with."""

    name: str
    resource_type: str
    value: SecretStr = field(repr=False)
    made_at: datetime
    set_at: datetime | None  # in Medplum; none: only the receivers know it yet
    used_at: datetime | None
    medplum_id: str | None  # of the Subscription that signs with it, if there is one yet


@dataclass(frozen=True, slots=True)
class Notified:
    """One notification of a resource that was accepted."""

    kind: Kind
    subscription: str | None
    accepted_at: datetime


class Subscribing(Store):
    """The verbs around Subscriptions."""

    @reads
    def subscriptions(self, tx: Transaction) -> tuple[Subscribed, ...]:
        """List the Subscriptions that were applied, or are missing, by type."""
        rows = tx.execute(select(subscriptions).order_by(subscriptions.c.resource_type))
        return tuple(_subscribed(row) for row in rows)

    @reads
    def watches(self, tx: Transaction) -> bool:
        """Tell whether there is any Subscription to look at."""
        return tx.execute(select(subscriptions.c.resource_type).limit(1)).first() is not None

    @writes
    def subscribed(
        self, tx: Transaction, resource_type: str, *, medplum_id: str, fingerprints: Mapping[str, str]
    ) -> None:
        """Note that a Subscription is in Medplum as it should be, from now on."""
        applied = {
            "medplum_id": medplum_id,
            "fingerprints": dict(fingerprints),
            "state": SubscriptionState.OK.value,
            "since": tx.now,
            "reason": None,
            "sure_until": tx.now,
        }
        made = insert(tx, subscriptions).values(resource_type=resource_type, **applied)
        tx.execute(made.on_conflict_do_update(index_elements=["resource_type"], set_=applied))

    @writes
    def unsubscribed(self, tx: Transaction, resource_type: str) -> None:
        """Forget a Subscription that was taken away on purpose, with its secrets."""
        tx.execute(delete(subscriptions).where(subscriptions.c.resource_type == resource_type))
        tx.execute(delete(subscription_secrets).where(subscription_secrets.c.resource_type == resource_type))

    @writes
    def note_look(self, tx: Transaction, resource_type: str, look: Look, *, sure_until: datetime | None) -> bool:
        """Note what a look found, and until when nothing is in doubt (None: as before). True if the state is new."""
        row = tx.execute(
            select(subscriptions).where(subscriptions.c.resource_type == resource_type).with_for_update()
        ).one_or_none()
        new = row is None or row.state != look.state
        found = {
            "state": look.state.value,
            "since": tx.now if row is None or new else row.since,
            "reason": look.reason or None,
            "sure_until": sure_until or (None if row is None else row.sure_until),
            "looked_at": tx.now,
            "failing": look.failing,
            "oldest_attempt": look.oldest_attempt,
            "gives_up_at": look.gives_up_at,
        }
        if row is None:
            made = insert(tx, subscriptions).values(resource_type=resource_type, fingerprints={}, **found)
            tx.execute(made.on_conflict_do_nothing())
        else:
            tx.execute(update(subscriptions).where(subscriptions.c.resource_type == resource_type).values(**found))
        return new

    # secrets

    @reads
    def subscription_secrets(self, tx: Transaction) -> tuple[KeptSecret, ...]:
        """List the secrets that notifications may be signed with, the newest of each type last.

        One that no key opens any more is left out: nothing can be verified with it.
        """
        of_type = subscriptions.c.resource_type == subscription_secrets.c.resource_type
        rows = tx.execute(
            select(subscription_secrets, subscriptions.c.medplum_id)
            .join(subscriptions, of_type, isouter=True)
            .order_by(subscription_secrets.c.resource_type, subscription_secrets.c.made_at, subscription_secrets.c.name)
        )
        return tuple(kept for row in rows if (kept := self._kept(row)) is not None)

    @writes
    def keep_subscription_secret(self, tx: Transaction, resource_type: str, value: SecretStr) -> str:
        """Keep a new secret of a type, sealed, and return its name. From now on receivers come to know it.

        Raises:
            NoKey: REVERSE_SYNC_PAYLOAD_KEY is missing.
        """
        name = random_source.token_hex(8)
        place = {"table": "subscription_secrets", "reference": resource_type, "version": name, "column": "secret"}
        sealed = self.sealer.seal(value.get_secret_value().encode(), **place)
        row = {"name": name, "resource_type": resource_type, "secret": sealed, "made_at": tx.now}
        tx.execute(subscription_secrets.insert().values(**row))
        return name

    @writes
    def subscription_secret_set(self, tx: Transaction, name: str) -> None:
        """Note that Medplum signs with this secret from now on."""
        first = and_(subscription_secrets.c.name == name, subscription_secrets.c.set_at.is_(None))
        tx.execute(update(subscription_secrets).where(first).values(set_at=tx.now))

    @writes
    def retire_subscription_secrets(
        self, tx: Transaction, *, unused_for: timedelta, keep: Collection[str] = ()
    ) -> dict[str, str]:
        """Forget secrets that gave way to a newer one and signed nothing for so long. Returns type by name."""
        newer = subscription_secrets.alias("newer")
        succeeded = exists(
            select(newer.c.name).where(
                newer.c.resource_type == subscription_secrets.c.resource_type,
                newer.c.made_at > subscription_secrets.c.made_at,
                newer.c.set_at <= tx.now - unused_for,
            )
        )
        used_at = subscription_secrets.c.used_at
        unused = or_(used_at.is_(None), used_at <= tx.now - unused_for)
        gone = tx.execute(
            delete(subscription_secrets)
            .where(succeeded, unused, subscription_secrets.c.name.not_in(list(keep)))
            .returning(subscription_secrets.c.name, subscription_secrets.c.resource_type)
        )
        return {row.name: row.resource_type for row in gone}

    # receivers

    @writes
    def note_deliveries(self, tx: Transaction, *, types: Collection[str], secrets: Collection[str]) -> None:
        """Note that notifications of these types came just now, and which secrets signed some."""
        if types:
            of_type = subscriptions.c.resource_type.in_(sorted(types))
            tx.execute(update(subscriptions).where(of_type).values(last_delivery_at=tx.now))
        if secrets:
            named = subscription_secrets.c.name.in_(sorted(secrets))
            tx.execute(update(subscription_secrets).where(named).values(used_at=tx.now))

    @reads
    def receivers(self, tx: Transaction) -> dict[str, str]:
        """List the receivers that live, with what each has said of itself."""
        lives = and_(instances.c.role == RECEIVER, instances.c.heartbeat_at >= tx.now - STALE_HEARTBEAT)
        rows = tx.execute(select(instances.c.id, instances.c.detail).where(lives).order_by(instances.c.id))
        return {row.id: row.detail or "" for row in rows}

    @reads
    def last_job(self, tx: Transaction, name: str) -> str | None:
        """Tell how the last turn of a periodic job ended, and when."""
        row = tx.execute(select(jobs.c.ended_at, jobs.c.outcome).where(jobs.c.name == name)).one_or_none()
        return None if row is None or row.ended_at is None else f"{row.ended_at:%Y-%m-%d %H:%M:%S}Z, {row.outcome}"

    # what came

    @reads
    def notified(self, tx: Transaction, reference: str) -> tuple[Notified, ...]:
        """List the notifications of a resource that were accepted, the oldest first."""
        told = and_(changes.c.reference == reference, changes.c.source == Source.NOTIFICATION.value)
        columns = (changes.c.kind, changes.c.subscription, changes.c.accepted_at)
        rows = tx.execute(select(*columns).where(told).order_by(changes.c.id))
        return tuple(Notified(Kind(row.kind), row.subscription, row.accepted_at) for row in rows)

    @reads
    def was_notified(self, tx: Transaction, reference: str, version_id: str) -> bool:
        """Tell whether a notification of this version was ever accepted, whoever found it before."""
        read_before = and_(changes.c.source == Source.READ.value, changes.c.receipts > 0)
        told = or_(changes.c.source == Source.NOTIFICATION.value, read_before)
        mine = and_(changes.c.reference == reference, changes.c.version_id == version_id, told)
        return tx.execute(select(changes.c.id).where(mine).limit(1)).first() is not None

    @reads
    def last_heard(self, tx: Transaction, references: Collection[str]) -> dict[str, datetime]:
        """Tell when a hint of each of these resources last came in, by whatever way; unknown ones are left out."""
        asked = {"references": sorted(references)}
        which = among(changes.c.reference, "references", on_sqlite=tx.on_sqlite)
        heard_at = func.max(changes.c.received_at).label("heard_at")
        last = select(changes.c.reference, heard_at).where(which).group_by(changes.c.reference)
        return {row.reference: row.heard_at for row in tx.execute(last, asked)}

    @reads
    def was_settled_by(self, tx: Transaction, reference: str, rule: str) -> bool:
        """Tell whether a version of a resource was skipped by this rule."""
        mine = and_(changes.c.reference == reference, changes.c.rule == rule)
        return tx.execute(select(changes.c.id).where(mine).limit(1)).first() is not None

    def _kept(self, row: Any) -> KeptSecret | None:
        place = {"table": "subscription_secrets", "reference": row.resource_type, "version": row.name}
        try:
            plain = self.sealer.open(row.secret, column="secret", **place)
        except SealBroken:
            return None
        value = SecretStr(plain.decode())
        return KeptSecret(row.name, row.resource_type, value, row.made_at, row.set_at, row.used_at, row.medplum_id)


def in_short(tx: Transaction) -> dict[str, Any]:
    """Tell of all Subscriptions in three numbers, for the status: in trouble, events that fail, and until when."""
    troubled = subscriptions.c.state != SubscriptionState.OK.value
    in_trouble = tx.execute(select(func.count()).select_from(subscriptions).where(troubled)).scalar_one()
    failing = tx.execute(select(func.coalesce(func.sum(subscriptions.c.failing), 0))).scalar_one()
    gives_up_at = tx.execute(select(func.min(subscriptions.c.gives_up_at))).scalar_one()
    return {
        "subscriptions_in_trouble": int(in_trouble),
        "deliveries_failing": int(failing),
        "medplum_gives_up_seconds": None if gives_up_at is None else round((gives_up_at - tx.now).total_seconds(), 3),
    }


def _subscribed(row: Any) -> Subscribed:
    look = Look(SubscriptionState(row.state), row.reason or "", int(row.failing), row.oldest_attempt, row.gives_up_at)
    return Subscribed(
        *(row.resource_type, row.medplum_id, row.fingerprints, look),
        *(row.since, row.sure_until, row.looked_at, row.last_delivery_at),
    )
