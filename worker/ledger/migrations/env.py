"""What Alembic runs around the migrations. It never connects by itself: `migrate` brings the transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
