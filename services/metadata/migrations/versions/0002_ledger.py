"""The job ledger: order of service, quotas, dependencies, attempts, batches.

Revision ID: 0002
"""

from services.metadata.migrations import run_sql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0002_ledger.sql")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0002: attempts were rewritten; restore a backup")
