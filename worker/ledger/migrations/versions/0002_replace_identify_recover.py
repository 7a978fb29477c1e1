"""Records that are replaced, keys that go back to Medplum, shadows, and times after a restore."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TO_IDENTIFY = sa.text("identify_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("links", sa.Column("origin", sa.String(16), nullable=False, server_default=sa.text("'created'")))
    op.add_column("links", sa.Column("old_keys", sa.JSON))
    op.add_column("links", sa.Column("baseline", sa.LargeBinary))
    op.add_column("links", sa.Column("identify_at", TIME))
    op.add_column("links", sa.Column("identify_attempts", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("links", sa.Column("identified_key", sa.String(200)))
    op.create_index(
        "ix_links_identify", "links", ["identify_at"], sqlite_where=TO_IDENTIFY, postgresql_where=TO_IDENTIFY
    )
    op.add_column("writes", sa.Column("parent_keys", sa.JSON))
    op.add_column("writes", sa.Column("write_back", sa.Boolean, nullable=False, server_default=sa.text("false")))
    op.create_table(
        "shadows",
        sa.Column("reference", sa.String(160), nullable=False),
        sa.Column("slot", sa.String(120), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("collection", sa.String(120), nullable=False),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("version_id", sa.String(64)),
        sa.Column("mapping_version", sa.String(64)),
        sa.Column("body", sa.LargeBinary),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("reference", "slot", name="pk_shadows"),
    )
    op.create_index("ix_shadows_type", "shadows", ["resource_type"])
    op.create_table(
        "recoveries",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("since", TIME),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("who", sa.String(120), nullable=False),
        sa.Column("why", sa.Text),
        sa.Column("ended_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_recoveries"),
    )
