"""Retention: what is condemned before its bytes go, and batches that go in parts.

Revision ID: 0004
"""

from services.metadata.migrations import run_sql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0004_retention.sql")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0004: what is condemned would come back; restore a backup")
