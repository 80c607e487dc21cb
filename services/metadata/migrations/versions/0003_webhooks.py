"""Webhooks: their addresses, and the outbox that deliveries leave by.

Revision ID: 0003
"""

from services.metadata.migrations import run_sql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0003_webhooks.sql")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0003: secrets would be lost; restore a backup")
