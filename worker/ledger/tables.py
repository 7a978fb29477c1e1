"""The ledger's tables. Every column says what it may hold; a test fails for one that does not say.

open           nothing about a person: states, times, counts, names of rules
pseudonymous   points at a person for somebody who has Medplum or the legacy system: references, keys, digests
sealed         content of a record: AES-GCM ciphertext with its key's id, see `sealing`
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


class Holds(StrEnum):
    """What a column may hold."""

    OPEN = "open"
    PSEUDONYMOUS = "pseudonymous"
    SEALED = "sealed"


class Utc(TypeDecorator[datetime]):
    """An aware UTC time; SQLite keeps it as sortable text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


BigId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up only in a column that is INTEGER


def _column(holds: Holds) -> Callable[..., Column[Any]]:
    def make(name: str, kind: Any, **options: Any) -> Column[Any]:
        options.setdefault("nullable", options.get("primary_key", False) is False and "server_default" not in options)
        return Column(name, kind, info={"holds": holds}, **options)

    return make


plain = _column(Holds.OPEN)
pseudonymous = _column(Holds.PSEUDONYMOUS)


def sealed(name: str) -> Column[Any]:
    return Column(name, LargeBinary, nullable=True, info={"holds": Holds.SEALED})


def partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    condition = text(where)
    return Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def counted(name: str) -> Column[Any]:
    return plain(name, Integer, nullable=False, server_default=text("0"))


routes = Table(
    "routes",
    metadata,
    plain("resource_type", String(64), primary_key=True),
    plain("phase", String(16), nullable=False),
    plain(
        "mapping_version", String(64), nullable=False
    ),  # the active one; a worker with another hands its mirrors back
    plain("registered_at", Utc, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    pseudonymous("reference", String(160), nullable=False),
    plain("resource_type", String(64), nullable=False),
    plain("kind", String(16), nullable=False),
    pseudonymous("version_id", String(64)),  # none on a delete hint: Medplum does not tell it
    plain("source", String(16), nullable=False),
    plain("interaction", String(16), nullable=False),
    pseudonymous("subscription", String(160)),
    plain("last_updated", Utc),
    pseudonymous("author", String(160)),
    pseudonymous("trace_id", String(64)),
    plain("accepted_at", Utc, nullable=False),
    plain("received_at", Utc, nullable=False),  # the last time: a repeated delete hint is looked at anew from here
    counted("receipts"),
    counted("hint"),  # the mirror's count when this row went in; what a claim covers is told by it
    sealed("body"),
    plain("disposition", String(16)),
    plain("rule", Text),
    plain("settled_at", Utc),
    plain("superseded_by", BigId),
    Index("uq_changes_version", "reference", "version_id", unique=True),
    partial("uq_changes_open_delete", "reference", where="kind = 'delete' AND disposition IS NULL", unique=True),
    partial("ix_changes_open", "accepted_at", where="disposition IS NULL"),
)

mirrors = Table(
    "mirrors",
    metadata,
    pseudonymous("reference", String(160), primary_key=True),
    plain("resource_type", String(64), nullable=False),
    plain("state", String(16), nullable=False),
    counted("hints"),
    plain("due_at", Utc),  # somebody asked
    plain("not_before", Utc),  # backoff, Retry-After, spacing, the bound of an announced write
    plain("look_at", Utc),  # nobody asked: a delete hint, a waiting mirror or a fresh record is looked at again
    plain("queued_at", Utc),
    counted("token"),
    plain("lease_owner", String(64)),
    plain("lease_until", Utc),
    counted("starts"),  # consecutive starts without an end
    counted("attempts"),  # since the last hint or success
    pseudonymous("applied_version", String(64)),
    plain("applied_updated", Utc),
    plain("applied_at", Utc),
    plain("last_write_at", Utc),
    counted("heat"),  # how many writes in a row came as soon as spacing let them
    pseudonymous("waiting_for", String(160)),
    plain("reason", String(32)),  # a code that can be selected by: refused, unmappable, conflict …
    plain("detail", Text),  # the same in words, free of values
    plain("since", Utc),
    plain("absent_since", Utc),
    plain("released", Boolean, nullable=False, server_default=text("false")),  # a person let it past a budget
    counted("bounces"),
    partial("ix_mirrors_due", "resource_type", "due_at", where="due_at IS NOT NULL"),
    partial("ix_mirrors_look", "look_at", where="look_at IS NOT NULL"),
    partial("ix_mirrors_lease", "lease_owner", where="lease_owner IS NOT NULL"),
    partial("ix_mirrors_waiting", "waiting_for", where="waiting_for IS NOT NULL"),
    partial("ix_mirrors_person", "state", "since", where="state IN ('failed', 'held')"),
)

links = Table(
    "links",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    pseudonymous("reference", String(160), nullable=False),
    plain("resource_type", String(64), nullable=False),
    pseudonymous("slot", String(120), nullable=False),
    plain("collection", String(120), nullable=False),
    pseudonymous("key", String(200)),  # the first key as text, for uniqueness; none while half replaced
    pseudonymous("record_keys", JSON, nullable=False),
    pseudonymous("parents", JSON, nullable=False),  # name -> reference; a delete needs them when the resource is gone
    plain("state", String(16), nullable=False),
    plain("reason", Text),
    pseudonymous("digest", String(200)),  # HMAC of what was last written, with its key's id; none: not known
    counted("epoch"),  # raised by each late answer
    pseudonymous("version_id", String(64)),
    plain("mapping_version", String(64)),
    sealed("before_image"),
    plain("look_at", Utc),
    plain("created_at", Utc, nullable=False),
    plain("updated_at", Utc, nullable=False),
    plain("origin", String(16), nullable=False, server_default=text("'created'")),
    pseudonymous("old_keys", JSON),  # of the record that this one replaces, until that is deleted
    sealed("baseline"),  # the record as the API last answered or gave it back: what a conflict is told by
    plain("identify_at", Utc),  # when the key is next to be put on the Medplum resource; none: nothing to do
    counted("identify_attempts"),
    pseudonymous("identified_key", String(200)),  # the key that the Medplum resource was given
    Index("uq_links_slot", "reference", "slot", unique=True),
    Index("uq_links_key", "collection", "key", unique=True),
    Index("ix_links_type_state", "resource_type", "state"),
    partial("ix_links_identify", "identify_at", where="identify_at IS NOT NULL"),
)

dependencies = Table(
    "dependencies",
    metadata,
    pseudonymous("reference", String(160), primary_key=True),
    pseudonymous("depends_on", String(160), primary_key=True),
    plain("kind", String(16), primary_key=True),  # parent, fetch, search
    Index("ix_dependencies_on", "depends_on"),
)

attempts = Table(
    "attempts",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    pseudonymous("reference", String(160), nullable=False),
    plain("token", Integer, nullable=False),
    plain("instance", String(64)),
    plain("started_at", Utc),
    plain("ended_at", Utc, nullable=False),
    pseudonymous("version_id", String(64)),
    plain("outcome", String(32), nullable=False),
    plain("detail", Text),
    Index("ix_attempts_reference", "reference", "token"),
    Index("ix_attempts_ended", "ended_at"),
)

writes = Table(
    "writes",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    pseudonymous("reference", String(160), nullable=False),
    plain("resource_type", String(64), nullable=False),
    plain("token", Integer, nullable=False),
    pseudonymous("slot", String(120), nullable=False),
    plain("collection", String(120), nullable=False),
    plain("operation", String(16), nullable=False),
    plain("template", Text, nullable=False),
    pseudonymous("version_id", String(64)),
    plain("mapping_version", String(64)),
    pseudonymous("parents", JSON, nullable=False),
    pseudonymous("idempotency_key", String(64)),
    plain("announced_at", Utc, nullable=False),
    plain("send_by", Utc, nullable=False),
    plain("deadline_seconds", Float, nullable=False),
    plain("lands_within_seconds", Float, nullable=False),
    plain("bound_at", Utc, nullable=False),  # send_by + deadline + lands_within: after it the write can act no more
    counted("link_epoch"),
    sealed("body"),
    plain("outcome", String(16)),
    plain("answered_at", Utc),
    plain("status", Integer),
    plain("detail", Text),
    sealed("answer"),
    pseudonymous("key", String(200)),
    plain("late", Boolean, nullable=False, server_default=text("false")),
    pseudonymous("parent_keys", JSON),  # name -> keys, as they were sent: the parent may have other ones by now
    plain("write_back", Boolean, nullable=False, server_default=text("false")),  # the new key goes back to Medplum
    partial("ix_writes_unresolved", "reference", where="outcome IS NULL"),
    Index("ix_writes_reference", "reference", "id"),
    partial("ix_writes_deletes", "resource_type", "announced_at", where="operation = 'delete'"),
)

own_versions = Table(
    "own_versions",
    metadata,
    pseudonymous("reference", String(160), primary_key=True),
    pseudonymous("version_id", String(64), primary_key=True),
    plain("written_at", Utc, nullable=False),
)

windows = Table(
    "windows",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    plain("resource_type", String(64), nullable=False),
    plain("from_at", Utc, nullable=False),
    plain("to_at", Utc, nullable=False),
    plain("proven_at", Utc),
    plain("reason", Text),  # why the time is in doubt; none: the route's own window, whose end is the watermark
    pseudonymous("position", Text),  # where the reading that is under way stands; none: none is
    counted("found"),
    plain("created_at", Utc, nullable=False),
    plain("proven_to", Utc),  # as far as it is proven already, where that is not yet the end
    plain("asked_at", Utc),  # Medplum's own time when the reading that is under way began
    plain("next_at", Utc),  # when it is next to be read; none: now
    Index("ix_windows_type", "resource_type", "from_at"),
    partial("uq_windows_route", "resource_type", where="reason IS NULL", unique=True),
)

shadows = Table(  # what would have been sent while a route only shadows
    "shadows",
    metadata,
    pseudonymous("reference", String(160), primary_key=True),
    pseudonymous("slot", String(120), primary_key=True),
    plain("resource_type", String(64), nullable=False),
    plain("collection", String(120), nullable=False),
    plain("operation", String(16), nullable=False),
    pseudonymous("version_id", String(64)),
    plain("mapping_version", String(64)),
    sealed("body"),
    plain("at", Utc, nullable=False),
    Index("ix_shadows_type", "resource_type"),
)

recoveries = Table(  # times after a restore, until a person says that all is well
    "recoveries",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    plain("kind", String(16), nullable=False),  # ledger, legacy, medplum
    plain("since", Utc),  # what was restored is as it was then
    plain("started_at", Utc, nullable=False),
    plain("who", String(120), nullable=False),
    plain("why", Text),
    plain("ended_at", Utc),
)

operator_actions = Table(
    "operator_actions",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    plain("at", Utc, nullable=False),
    plain("who", String(120), nullable=False),
    plain("action", String(32), nullable=False),
    plain("why", Text),
    pseudonymous("arguments", JSON, nullable=False),
    counted("affected"),
)

pauses = Table(
    "pauses",
    metadata,
    plain("scope", String(64), primary_key=True),  # a resource type, or * for everything
    plain("who", String(120), nullable=False),
    plain("why", Text, nullable=False),
    plain("at", Utc, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    plain("name", String(32), primary_key=True),  # accepted, repeated, purged
    plain("source", String(16), primary_key=True),
    plain("resource_type", String(64), primary_key=True),
    plain("value", BigInteger, nullable=False, server_default=text("0")),
)

jobs = Table(
    "jobs",
    metadata,
    plain("name", String(64), primary_key=True),
    plain("lease_owner", String(64)),
    plain("next_at", Utc, nullable=False),
    plain("started_at", Utc),
    plain("ended_at", Utc),
    plain("outcome", Text),
)

instances = Table(
    "instances",
    metadata,
    plain("id", String(64), primary_key=True),
    plain("role", String(32), nullable=False),
    plain("host", String(255), nullable=False),
    plain("pid", Integer, nullable=False),
    plain("started_at", Utc, nullable=False),
    plain("heartbeat_at", Utc, nullable=False),
    plain("detail", Text),
)

deployment = Table(
    "deployment",
    metadata,
    plain("name", String(64), primary_key=True),  # medplum, legacy:<api>
    plain("value", Text, nullable=False),
    plain("recorded_at", Utc, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    plain("name", String(120), primary_key=True),  # tokens of legacy APIs that rotate
    sealed("value"),
    plain("expires_at", Utc),
    plain("lease_owner", String(64)),
    plain("lease_until", Utc),
    plain("updated_at", Utc, nullable=False),
)

sweeps = Table(  # the round in which a type's known ids are read back
    "sweeps",
    metadata,
    plain("resource_type", String(64), primary_key=True),
    plain("position", BigId, nullable=False),  # the last link that was read back
    plain("started_at", Utc, nullable=False),
    plain("ended_at", Utc),
    plain("hurried", Boolean, nullable=False, server_default=text("false")),  # a person asked for it: at once
    counted("total"),  # links when it began
    counted("read"),
    counted("found"),
)

subscriptions = Table(  # those of Medplum that `subscriptions apply` made, as the watch last saw them
    "subscriptions",
    metadata,
    plain("resource_type", String(64), primary_key=True),
    plain("medplum_id", String(64)),  # none: a route needs one, and nobody has made it
    plain("fingerprints", JSON, nullable=False),  # member -> HMAC of what was applied: what was changed by hand
    plain("state", String(16), nullable=False),
    plain("since", Utc, nullable=False),
    plain("reason", Text),
    plain("sure_until", Utc),  # until then nothing is in doubt, or a window of catch-up covers it
    plain("looked_at", Utc),
    plain("last_delivery_at", Utc),
    counted("failing"),  # events that Medplum still tries to deliver
    plain("oldest_attempt", Integer),
    plain("gives_up_at", Utc),  # on the first of them
)

subscription_secrets = Table(  # what notifications may be signed with; a rotation needs two for a while
    "subscription_secrets",
    metadata,
    plain("name", String(32), primary_key=True),
    plain("resource_type", String(64), nullable=False),
    sealed("secret"),
    plain("made_at", Utc, nullable=False),
    plain("set_at", Utc),  # in Medplum; none: only the receivers know it yet
    plain("used_at", Utc),  # the last delivery that it signed, give or take some seconds
    Index("ix_subscription_secrets_type", "resource_type"),
)

reconciliations = Table(  # comparisons of both sides: how far each has come, and what came of it
    "reconciliations",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    plain("arguments", JSON, nullable=False),  # types, sample, seed, since, repair: a run goes on with the same ones
    plain("who", String(120), nullable=False),
    plain("action", BigId),  # the operator's action that gives findings to the sync
    plain("started_at", Utc, nullable=False),
    plain("touched_at", Utc, nullable=False),
    plain("ended_at", Utc),
    counted("pages"),  # raised with each page: two processes cannot go on with one run
    pseudonymous("position", JSON, nullable=False),
    plain("counts", JSON, nullable=False),  # type -> verdict -> number
    Index("ix_reconciliations_ended", "ended_at"),
)

findings = Table(  # what a comparison found that is not equal
    "findings",
    metadata,
    plain("id", BigId, primary_key=True, autoincrement=True),
    plain("run", BigId, nullable=False),
    plain("at", Utc, nullable=False),
    plain("resource_type", String(64), nullable=False),
    pseudonymous("reference", String(160)),  # none: a record that is nobody's
    pseudonymous("slot", String(120), nullable=False),
    plain("collection", String(120), nullable=False),
    pseudonymous("key", String(200)),
    plain("verdict", String(16), nullable=False),
    plain("fields", JSON, nullable=False),  # names, never values
    plain("detail", Text),
    plain("mend", String(16), nullable=False),  # what mends it
    Index("ix_findings_run", "run", "id"),
    partial("ix_findings_extra", "run", "collection", "key", where="key IS NOT NULL"),
)
