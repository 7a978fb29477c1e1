"""Comparisons of both sides, and what they found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TIME = sa.DateTime(timezone=True)
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
HAS_KEY = sa.text("key IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "reconciliations",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("arguments", sa.JSON, nullable=False),
        sa.Column("who", sa.String(120), nullable=False),
        sa.Column("action", BIG_ID),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("touched_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("pages", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("position", sa.JSON, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reconciliations"),
    )
    op.create_index("ix_reconciliations_ended", "reconciliations", ["ended_at"])
    op.create_table(
        "findings",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("run", BIG_ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("reference", sa.String(160)),
        sa.Column("slot", sa.String(120), nullable=False),
        sa.Column("collection", sa.String(120), nullable=False),
        sa.Column("key", sa.String(200)),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("mend", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
    )
    op.create_index("ix_findings_run", "findings", ["run", "id"])
    op.create_index(
        "ix_findings_extra",
        "findings",
        ["run", "collection", "key"],
        sqlite_where=HAS_KEY,
        postgresql_where=HAS_KEY,
    )
