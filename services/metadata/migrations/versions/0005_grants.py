"""GPU grants: what workers hold, and the memory of whoever divides.

Revision ID: 0005
"""

from services.metadata.migrations import run_sql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0005_grants.sql")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0005; restore a backup")
