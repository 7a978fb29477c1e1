"""Subscriptions as the watch sees them, and the secrets that their notifications are signed with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "subscriptions",
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("medplum_id", sa.String(64)),
        sa.Column("fingerprints", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("sure_until", TIME),
        sa.Column("looked_at", TIME),
        sa.Column("last_delivery_at", TIME),
        sa.Column("failing", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("oldest_attempt", sa.Integer),
        sa.Column("gives_up_at", TIME),
        sa.PrimaryKeyConstraint("resource_type", name="pk_subscriptions"),
    )
    op.create_table(
        "subscription_secrets",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("secret", sa.LargeBinary),
        sa.Column("made_at", TIME, nullable=False),
        sa.Column("set_at", TIME),
        sa.Column("used_at", TIME),
        sa.PrimaryKeyConstraint("name", name="pk_subscription_secrets"),
    )
    op.create_index("ix_subscription_secrets_type", "subscription_secrets", ["resource_type"])
