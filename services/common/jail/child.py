"""The jailed process: ``python -m services.common.jail.child TICKET``.

It imports what it needs, gives up everything else, and only then reads the file. It is started with an empty
environment; what it was handed are descriptors, and it answers with one JSON object.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from services.common.errors import VoxfleetError
from services.common.jail import kernel
from services.common.jail.work import LOCKED, Ticket, Work


def main(text: str) -> None:
    """Does the work of a ticket, and ends the process."""
    ticket = Ticket(**json.loads(text))
    kernel.die_with(ticket.parent)
    module, _, name = ticket.work.partition(":")
    work = getattr(importlib.import_module(module), name)
    assert isinstance(work, Work)
    work.prepare()
    inputs = {name: os.fdopen(number, "rb") for name, number in ticket.inputs.items()}
    outputs = {name: os.fdopen(number, "r+b") for name, number in ticket.outputs.items()}
    kernel.bound_resources(
        memory_bytes=ticket.memory_bytes, cpu_s=ticket.cpu_s, output_bytes=ticket.output_bytes
    )
    try:
        held = kernel.lock(landlock=ticket.landlock)
    except kernel.JailUnavailableError as error:
        _say(ticket.answer, {"unavailable": str(error)})
        os._exit(0)
    os.write(ticket.answer, LOCKED)
    answer: dict[str, Any]
    try:
        made = work.run(inputs, outputs, ticket.facts)
        for sink in outputs.values():
            sink.flush()
        answer = {"made": dict(made), "landlock": held}
    except VoxfleetError as error:
        answer = {"refused": [error.reason.value, error.message, error.metadata]}
    except MemoryError:
        answer = {"broke": "memory"}
    except BaseException as error:  # noqa: BLE001 - whatever it is, the file is at fault
        # torch says so in words where memory is refused to it.
        lacking = "allocate memory" in str(error) or "bad_alloc" in str(error)
        answer = {"broke": "memory" if lacking else type(error).__name__}
    _say(ticket.answer, answer)
    # Not by way of exit handlers: libraries would try what they may no longer do.
    os._exit(0)


def _say(descriptor: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main(sys.argv[1])
