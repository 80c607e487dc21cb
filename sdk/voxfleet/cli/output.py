"""How things are printed: JSON for programs, lines and tables for people."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from voxfleet.client.errors import VoxfleetError
    from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2, voice_pb2

UNTRAINED = "untrained weights"
# How much of a long list people are shown: a loss curve has a thousand points.
_SHOWN = 20

_T = TypeVar("_T")
Column = tuple[str, Callable[[_T], object]]


def to_json(message: Message) -> dict[str, Any]:
    """Protobuf's own JSON mapping with the fields' own names; unset fields included."""
    from google.protobuf import json_format

    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def print_json(data: Mapping[str, Any], *, line: bool = False) -> None:
    """One document on standard output, or one line of many."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=None if line else 2) + "\n")
    sys.stdout.flush()


def print_error(error: VoxfleetError, hint: str, *, as_json: bool) -> None:
    """On standard error: the reason, what is wrong, what to do."""
    if as_json:
        facts = {**error.to_dict(), "hint": hint}
        sys.stderr.write(json.dumps({"error": facts}, ensure_ascii=False) + "\n")
        return
    lines = [f"error: {error}"]
    lines += [f"  {violation.field}: {violation.description}" for violation in error.violations]
    if error.metadata:
        lines.append("  " + ", ".join(f"{key}={value}" for key, value in sorted(error.metadata.items())))
    if hint:
        lines.append(f"  to do: {hint}")
    if error.trace_id:
        lines.append(f"  trace id: {error.trace_id}")
    sys.stderr.write("\n".join(lines) + "\n")


def print_untrained(weights: str, *, as_json: bool) -> None:
    """Says that what was shown or made comes of weights that nobody trained."""
    if as_json:
        sys.stderr.write(json.dumps({"note": UNTRAINED, "weights": weights}) + "\n")
    else:
        sys.stderr.write(f"note: {UNTRAINED} ({weights}): this proves the machinery, not the quality\n")


def print_table(columns: Sequence[Column[_T]], rows: Iterable[_T]) -> None:
    """A table on a terminal; in a pipe a heading and rows parted by tabs, nothing cut off."""
    cells = ([_cell(value(row)) for _, value in columns] for row in rows)
    headings = [heading for heading, _ in columns]
    if not sys.stdout.isatty():
        sys.stdout.write("\t".join(headings) + "\n")
        for row in cells:
            sys.stdout.write("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in cells:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def print_message(message: Message) -> None:
    """All that is set in a message, a line each."""
    for line in describe(message):
        sys.stdout.write(line + "\n")


def describe(message: Message, indent: str = "") -> Iterator[str]:
    """The lines of :func:`print_message`; of long lists their beginning."""
    from google.protobuf.descriptor import FieldDescriptor

    for field, value in message.ListFields():
        label = f"{indent}{field.name.replace('_', ' ')}: "
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            values = value if field.is_repeated else [value]
            yield label + ", ".join(_scalar(field, one) for one in values[:_SHOWN]) + _rest(values)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield label + ", ".join(f"{key}={_cell(one)}" for key, one in sorted(value.items()))
        elif field.is_repeated:
            yield label.rstrip()
            for one in value[:_SHOWN]:
                yield f"{indent}  - " + "; ".join(line.strip() for line in describe(one))
            if rest := _rest(value):
                yield f"{indent}  {rest.strip()}"
        elif (short := _well_known(value)) is not None:
            yield label + short
        else:
            yield label.rstrip()
            yield from describe(value, indent + "  ")


def _rest(values: Sequence[Any]) -> str:
    return f" … and {len(values) - _SHOWN} more (--json has them)" if len(values) > _SHOWN else ""


def _scalar(field: Any, value: Any) -> str:
    if field.enum_type is None:
        return _cell(value)
    names = [one.name for one in field.enum_type.values]
    # Names are PREFIX_WORD; the first is PREFIX_UNSPECIFIED.
    prefix = names[0].removesuffix("UNSPECIFIED")
    known = field.enum_type.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else str(value)


def _well_known(value: Message) -> str | None:
    kind = value.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        return when(value)
    if kind == "google.protobuf.Duration":
        return f"{value.ToTimedelta().total_seconds():.3g} s"  # type: ignore[attr-defined]
    if kind == "google.protobuf.Struct":
        return json.dumps(to_json(value), ensure_ascii=False)
    return None


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def when(stamp: Any) -> str:
    """A protobuf timestamp in the reader's time zone; empty where unset."""
    if not stamp.seconds:
        return ""
    return dt.datetime.fromtimestamp(stamp.seconds, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(size_bytes: int) -> str:
    """Bytes for people."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return ""


def untrained_weights(
    message: audio_pb2.Audio
    | voice_pb2.Voice
    | job_pb2.Job
    | synthesis_pb2.Bundle
    | audio_pb2.Provenance
    | Message,
) -> str:
    """The name of the untrained weights behind something; empty where they are trained or there are none."""
    found: Any = message
    kind = message.DESCRIPTOR.name
    if kind == "Audio" and found.HasField("provenance"):
        return untrained_weights(found.provenance)
    if kind == "Provenance" and found.generated and not found.weights_trained:
        return str(found.weights or found.engine or "unnamed")
    if kind == "Provenance" and found.speaker and not found.speaker_weights_trained:
        return str(found.speaker_weights or "unnamed")
    if kind == "Voice" and found.state in _READY and not found.weights_trained:
        return str(found.bundle or found.engine or "unnamed")
    if kind == "Job" and found.result.weights and not found.result.weights_trained:
        return str(found.result.weights)
    if kind == "Bundle" and not found.trained:
        return str(found.name)
    return ""


# VoiceState: READY, and DELETED, which was ready.
_READY = (2, 4)
