"""What runs in a jail, and what it says in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

Run = Callable[[Mapping[str, BinaryIO], Mapping[str, BinaryIO], Mapping[str, Any]], Mapping[str, Any]]
"""Takes open inputs, open outputs and plain facts; returns plain facts. It can open no file itself."""


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work, named by ``module:ATTRIBUTE``.

    Args:
        prepare: imports, and does once, everything that opens files: afterwards nothing can be opened.
        run: reads the inputs. It refuses by a ``VoxfleetError``, of which reason, message and metadata come
            through.
    """

    prepare: Callable[[], None]
    run: Run


@dataclass(frozen=True, slots=True)
class JailLimits:
    """What one child may use.

    Args:
        memory_bytes: beyond what its libraries take.
        cpu_s: of processor time, once it is locked in.
        wall_s: of time, once it is locked in.
        output_bytes: of each output.
        start_s: for its imports.
        landlock: whether the second layer is asked for where the kernel has it.
    """

    memory_bytes: int = 4 << 30
    cpu_s: int = 120
    wall_s: float = 180.0
    output_bytes: int = 2 << 30
    start_s: float = 120.0
    landlock: bool = True


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the child is told on its command line, as JSON: descriptors by name, never paths."""

    work: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    answer: int
    parent: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory_bytes: int = 0
    cpu_s: int = 0
    output_bytes: int = 0
    landlock: bool = True


ANSWER_BYTES = 96 * 1024
"""Of all that a child says: a longer answer is none, and this one fits another's ticket (Linux: 128 KiB)."""
LOCKED = b"locked\n"
"""Its first line, once nothing holds it back any more from reading the file."""
