"""The first schema.

Revision ID: 0001
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    sql = (Path(__file__).parents[1] / "sql" / "0001_initial.sql").read_text()
    # The driver's own cursor: the file holds colons and percent signs that text() would read as binds.
    op.get_bind().connection.cursor().execute(sql)


def downgrade() -> None:
    raise RuntimeError("there is nothing before the first schema")
