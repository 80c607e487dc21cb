"""What Postgres refuses inside text and JSON, taken out of what workers say.

A worker's words are ours: a loss that is no number or an error that quotes a file's NUL must not keep an
attempt from being ended. What a client sends is not mended here; it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def storable(value: Any) -> Any:
    """JSON data without NUL characters; numbers that JSON does not have are left out."""
    if isinstance(value, str):
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, Mapping):
        return {storable(key): storable(each) for key, each in value.items() if _is_json(each)}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value if _is_json(each)]
    return value


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
