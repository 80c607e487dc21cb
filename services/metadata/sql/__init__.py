"""Named statements: ``-- name: x`` begins each."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def statements(file: str) -> dict[str, str]:
    """The statements of a file beside this one, by name."""
    text = (Path(__file__).parent / file).read_text()
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
