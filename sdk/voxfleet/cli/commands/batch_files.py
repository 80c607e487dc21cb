"""The files of a batch: its lines in, its audios out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxfleet.cli import output
from voxfleet.client.errors import InvalidArgument

if TYPE_CHECKING:
    from voxfleet.cli.session import Session
    from voxfleet.v1 import job_pb2, synthesis_pb2

_ENDINGS = {"wav": ".wav", "flac": ".flac", "mp3": ".mp3", "opus": ".ogg", "aac": ".m4a"}


def read_items(source: str) -> list[synthesis_pb2.BatchItem]:
    """The lines of a JSONL file, or of standard input for ``-``. Raises InvalidArgument."""
    if source == "-":
        return list(parse_items(sys.stdin.read()))
    return list(parse_items(Path(source).read_text(encoding="utf-8-sig")))


def parse_items(text: str) -> Iterator[synthesis_pb2.BatchItem]:
    """The items that JSON lines describe; empty lines are passed over."""
    from google.protobuf import json_format

    from voxfleet.v1 import synthesis_pb2

    # Not splitlines: JSON may hold U+2028 inside of a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json_format.ParseDict(json.loads(line), synthesis_pb2.BatchItem())
        except (ValueError, AttributeError, json_format.ParseError) as error:
            raise InvalidArgument(
                f'line {number} is not an object like {{"text": "…", "id": "…"}}: {error}',
                reason="INVALID_ARGUMENT",
            ) from error


def download_items(
    session: Session,
    batch: job_pb2.Job,
    folder: Path,
    format: str,  # noqa: A002
    *,
    words: bool = False,
    names: Sequence[str] = (),
) -> None:
    """Downloads the audio of each item that succeeded, and says why the others did not.

    Where ``words`` are wanted, a file ``.words.json`` beside each says when each word is spoken. ``names``
    are what to call the items, in their order, in place of their ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    taken: set[str] = set()
    for item in session.client.jobs.items(batch.name):
        item_id = item.item_id or str(item.item_index)
        if names:
            item_id = names[item.item_index]
        if not item.result.audios:
            files.append({"item_id": item_id, "error": output.to_json(item.error)})
            session.remark(f"{item_id}: {item.error.reason}: {item.error.message}")
            continue
        path = folder / file_name(item_id, item.item_index, _ENDINGS.get(format.lower(), ""), taken)
        session.client.audio.download(item.result.audios[0], path)
        made: dict[str, Any] = {"item_id": item_id, "file": str(path)}
        if words:
            made["words"] = _write_words(session, item.result.audios[0], path)
        files.append(made)
        session.say(str(path))
    counts = batch.batch_counts
    what = "recordings" if names else "lines"
    session.remark(f"{counts.succeeded} of {counts.total} {what} succeeded, {counts.failed} failed")
    if session.as_json:
        output.print_json({"job": output.to_json(batch), "files": files})
    session.note_weights([batch])


def _write_words(session: Session, audio: str, path: Path) -> str:
    """When each word of an audio is said, beside its file; the name of what was written."""
    found = output.to_json(session.client.audio.get(audio))["words"]
    beside = path.with_name(path.name + ".words.json")
    beside.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return str(beside)


def file_name(item_id: str, index: int, ending: str, taken: set[str]) -> str:
    """A file's name for an item: its id, made harmless; with its index where that name is taken."""
    stem = re.sub(r"[^\w.-]+", "_", item_id).strip(".")[:120] or f"item-{index}"
    # Some file systems do not tell upper from lower case.
    if stem.casefold() in taken:
        stem = f"{stem}-{index}"
    taken.add(stem.casefold())
    return stem + ending
