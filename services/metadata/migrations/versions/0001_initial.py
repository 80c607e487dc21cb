"""The first schema.

Revision ID: 0001
"""

from services.metadata.migrations import run_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0001_initial.sql")


def downgrade() -> None:
    raise RuntimeError("there is nothing before the first schema")
