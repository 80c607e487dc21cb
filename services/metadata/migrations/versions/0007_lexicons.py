"""Lexicons of teams.

Revision ID: 0007
"""

from services.metadata.migrations import run_sql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0007_lexicons.sql")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0007; restore a backup")
