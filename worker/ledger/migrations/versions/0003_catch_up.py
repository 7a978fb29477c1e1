"""What catch-up notes on its windows, one window for each route, and the rounds of the sweep."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OF_THE_ROUTE = sa.text("reason IS NULL")
NOUGHT = sa.text("0")


def upgrade() -> None:
    for name in ("proven_to", "asked_at", "next_at"):
        op.add_column("windows", sa.Column(name, TIME))
    op.create_index(
        "uq_windows_route",
        "windows",
        ["resource_type"],
        unique=True,
        sqlite_where=OF_THE_ROUTE,
        postgresql_where=OF_THE_ROUTE,
    )
    op.create_table(
        "sweeps",
        sa.Column("resource_type", sa.String(64), nullable=False),
        sa.Column("position", BIG_ID, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("hurried", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("total", sa.Integer, nullable=False, server_default=NOUGHT),
        sa.Column("read", sa.Integer, nullable=False, server_default=NOUGHT),
        sa.Column("found", sa.Integer, nullable=False, server_default=NOUGHT),
        sa.PrimaryKeyConstraint("resource_type", name="pk_sweeps"),
    )
