"""Teams: which licences of weights they may use.

Revision ID: 0006
"""

from services.metadata.migrations import run_sql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run_sql("0006_team_licences.sql")


def downgrade() -> None:
    raise RuntimeError("there is no way back from 0006; restore a backup")
