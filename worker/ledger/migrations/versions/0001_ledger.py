"""The ledger as it began: every table of `worker.ledger.tables` at the first release.

A migration stands still: it names columns and types itself and never imports `tables`, which moves on. There is no
downgrade, here or later: what would have to be dropped is the only proof of what was synced. Restore the backup.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "routes",
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("mapping_version", sa.String(64), nullable=False),
        sa.Column("registered_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("resource_type", name="pk_routes"),
    )
    op.create_table(
        "changes",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("version_id", sa.String(64)),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("interaction", sa.String(16), nullable=False),
        sa.Column("subscription", sa.String(160)),
        sa.Column("last_updated", TIME),
        sa.Column("author", sa.String(160)),
        sa.Column("trace_id", sa.String(64)),
        sa.Column("accepted_at", TIME, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("receipts", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("hint", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("disposition", sa.String(16)),
        sa.Column("rule", sa.Text),
        sa.Column("settled_at", TIME),
        sa.Column("superseded_by", BIG_ID),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
    )
    op.create_index("ix_changes_open", "changes", ["accepted_at"], **_where("disposition IS NULL"))
    op.create_index(
        "uq_changes_open_delete",
        "changes",
        ["reference"],
        unique=True,
        **_where("kind = 'delete' AND disposition IS NULL"),
    )
    op.create_index("uq_changes_version", "changes", ["reference", "version_id"], unique=True)
    op.create_table(
        "mirrors",
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("hints", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("not_before", TIME),
        sa.Column("look_at", TIME),
        sa.Column("queued_at", TIME),
        sa.Column("token", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", TIME),
        sa.Column("starts", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("applied_version", sa.String(64)),
        sa.Column("applied_updated", TIME),
        sa.Column("applied_at", TIME),
        sa.Column("last_write_at", TIME),
        sa.Column("heat", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("waiting_for", sa.String(160)),
        sa.Column("reason", sa.String(32)),
        sa.Column("detail", sa.Text),
        sa.Column("since", TIME),
        sa.Column("absent_since", TIME),
        sa.Column("released", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("bounces", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("reference", name="pk_mirrors"),
    )
    op.create_index("ix_mirrors_due", "mirrors", ["resource_type", "due_at"], **_where("due_at IS NOT NULL"))
    op.create_index("ix_mirrors_lease", "mirrors", ["lease_owner"], **_where("lease_owner IS NOT NULL"))
    op.create_index("ix_mirrors_look", "mirrors", ["look_at"], **_where("look_at IS NOT NULL"))
    op.create_index("ix_mirrors_person", "mirrors", ["state", "since"], **_where("state IN ('failed', 'held')"))
    op.create_index("ix_mirrors_waiting", "mirrors", ["waiting_for"], **_where("waiting_for IS NOT NULL"))
    op.create_table(
        "links",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("slot", sa.String(120), nullable=False),
        sa.Column("collection", sa.String(120), nullable=False),
        sa.Column("key", sa.String(200)),
        sa.Column("record_keys", sa.JSON, nullable=False),
        sa.Column("parents", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("digest", sa.String(200)),
        sa.Column("epoch", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("version_id", sa.String(64)),
        sa.Column("mapping_version", sa.String(64)),
        sa.Column("before_image", sa.LargeBinary),
        sa.Column("look_at", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_links"),
    )
    op.create_index("ix_links_type_state", "links", ["resource_type", "state"])
    op.create_index("uq_links_key", "links", ["collection", "key"], unique=True)
    op.create_index("uq_links_slot", "links", ["reference", "slot"], unique=True)
    op.create_table(
        "dependencies",
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("depends_on", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("reference", "depends_on", "kind", name="pk_dependencies"),
    )
    op.create_index("ix_dependencies_on", "dependencies", ["depends_on"])
    op.create_table(
        "attempts",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("instance", sa.String(64)),
        sa.Column("started_at", TIME),
        sa.Column("ended_at", TIME, nullable=False),
        sa.Column("version_id", sa.String(64)),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
    )
    op.create_index("ix_attempts_ended", "attempts", ["ended_at"])
    op.create_index("ix_attempts_reference", "attempts", ["reference", "token"])
    op.create_table(
        "writes",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("slot", sa.String(120), nullable=False),
        sa.Column("collection", sa.String(120), nullable=False),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("template", sa.Text, nullable=False),
        sa.Column("version_id", sa.String(64)),
        sa.Column("mapping_version", sa.String(64)),
        sa.Column("parents", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(64)),
        sa.Column("announced_at", TIME, nullable=False),
        sa.Column("send_by", TIME, nullable=False),
        sa.Column("deadline_seconds", sa.Float, nullable=False),
        sa.Column("lands_within_seconds", sa.Float, nullable=False),
        sa.Column("bound_at", TIME, nullable=False),
        sa.Column("link_epoch", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("outcome", sa.String(16)),
        sa.Column("answered_at", TIME),
        sa.Column("status", sa.Integer),
        sa.Column("detail", sa.Text),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("key", sa.String(200)),
        sa.Column("late", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_writes"),
    )
    op.create_index("ix_writes_deletes", "writes", ["resource_type", "announced_at"], **_where("operation = 'delete'"))
    op.create_index("ix_writes_reference", "writes", ["reference", "id"])
    op.create_index("ix_writes_unresolved", "writes", ["reference"], **_where("outcome IS NULL"))
    op.create_table(
        "own_versions",
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("version_id", sa.String(64), nullable=False),
        sa.Column("written_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("reference", "version_id", name="pk_own_versions"),
    )
    op.create_table(
        "windows",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("from_at", TIME, nullable=False),
        sa.Column("to_at", TIME, nullable=False),
        sa.Column("proven_at", TIME),
        sa.Column("reason", sa.Text),
        sa.Column("position", sa.Text),
        sa.Column("found", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_windows"),
    )
    op.create_index("ix_windows_type", "windows", ["resource_type", "from_at"])
    op.create_table(
        "operator_actions",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who", sa.String(120), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("why", sa.Text),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("affected", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_operator_actions"),
    )
    op.create_table(
        "pauses",
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("who", sa.String(120), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_pauses"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("value", sa.BigInteger, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("name", "source", "resource_type", name="pk_counters"),
    )
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("next_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("outcome", sa.Text),
        sa.PrimaryKeyConstraint("name", name="pk_jobs"),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("heartbeat_at", TIME, nullable=False),
        sa.Column("detail", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_instances"),
    )
    op.create_table(
        "deployment",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_deployment"),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("value", sa.LargeBinary),
        sa.Column("expires_at", TIME),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", TIME),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
