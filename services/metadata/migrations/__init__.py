"""The schema's history: one Python file and one SQL file per revision."""

from __future__ import annotations

from pathlib import Path

from alembic import op


def run_sql(file: str) -> None:
    """Runs a file of ``sql/`` in the migration's transaction."""
    text = (Path(__file__).parent / "sql" / file).read_text()
    # The driver's own cursor: the files hold colons and percent signs that text() would read as binds.
    op.get_bind().connection.cursor().execute(text)
