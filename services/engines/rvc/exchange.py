"""Voices in from outside and out again: what runs in a jail, with open files in and open files out.

A file from outside goes through two processes. The first (:data:`OPEN`) reads it, whatever it is, and leaves
plain numbers: safetensors and raw float32. The second (:data:`WRITE`) never sees the file: of those numbers
it makes the package that conversion loads, so that not even a first process that was taken over can hand a
pickle or a faiss file of its own making to a worker.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jail.work import Work
from services.engines.rvc.audio import Floats
from services.engines.rvc.community import check_weights, read_pth, write_pth
from services.engines.rvc.config import TINY_40K, ModelConfig
from services.engines.rvc.content import encoder_spec
from services.engines.rvc.f0 import DEFAULT_METHOD, METHODS
from services.engines.rvc.package import pack_parts, read_parts
from services.engines.rvc.retrieval import IndexParts, build_index, put_together, take_apart
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import (
    FACTS_FILE,
    INDEX_FILE,
    MODEL_FILE,
    VoiceFacts,
    facts_from_json,
    facts_to_json,
    inference_weights,
)

_MAX_PACKAGE_BYTES = 2 << 30
_MAX_FACTS_BYTES = 64 * 1024
_MAX_FACTS, _MAX_NAME_CHARS, _MAX_FACT_CHARS = 32, 64, 300

Files = Mapping[str, BinaryIO]
Facts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A voice as plain numbers and words."""

    facts: VoiceFacts
    weights: Mapping[str, Tensor]
    index: IndexParts | None


def open_voice(model: BinaryIO, name: str, index: BinaryIO | None = None, index_name: str = "") -> Opened:
    """A voice of a community ``.pth`` (and its ``.index``), or of a package of ours.

    Args:
        model: the file, open and seekable; its content decides which of the two it is.
        name: what to call it in errors.
        index: of a ``.pth``, where there is one.
        index_name: what to call that.

    Raises:
        VoxfleetError: ``MODEL_CORRUPT``; ``UNSUPPORTED_ENGINE`` for models without F0 and unknown encoders.
    """
    if _is_package(model):
        if index is not None:
            raise _corrupt(name, "a package brings its own index: leave the other out")
        opened = _open_package(model, name)
    else:
        found = read_pth(model, name)
        facts = VoiceFacts(found.config, found.content_encoder, DEFAULT_METHOD, {"info": found.info})
        parts = take_apart(index.read(), index_name) if index is not None else None
        opened = Opened(facts, found.weights, parts)
    return _checked(opened, name)


def write_voice(opened: Opened, sink: BinaryIO) -> VoiceFacts:
    """Writes a package as training publishes it: the same bytes for the same voice."""
    parts = {MODEL_FILE: save(dict(sorted(opened.weights.items())))}
    if opened.index is not None:
        parts[INDEX_FILE] = put_together(opened.index)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    facts = dataclasses.replace(opened.facts, files=hashes)
    pack_parts({FACTS_FILE: facts_to_json(facts), **parts}, sink)
    return facts


def write_community(package: BinaryIO, pth: BinaryIO, index: BinaryIO) -> bool:
    """Writes a package as a ``.pth`` and an ``.index``; returns whether it has an index.

    Raises:
        VoxfleetError: ``UNSUPPORTED_ENGINE`` where its content encoder is not ContentVec; ``MODEL_CORRUPT``.
    """
    opened, parts = _parts_of(package, "the voice's package")
    write_pth(opened.facts, opened.weights, pth)
    index.write(parts.get(INDEX_FILE, b""))
    return INDEX_FILE in parts


def _is_package(model: BinaryIO) -> bool:
    try:
        with zipfile.ZipFile(model) as archive:
            return FACTS_FILE in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return False
    finally:
        model.seek(0)


def _open_package(model: BinaryIO, name: str) -> Opened:
    opened, parts = _parts_of(model, name)
    index = take_apart(parts[INDEX_FILE], INDEX_FILE) if INDEX_FILE in parts else None
    return dataclasses.replace(opened, index=index)


def _parts_of(package: BinaryIO, name: str) -> tuple[Opened, dict[str, bytes]]:
    parts = read_parts(package, most_bytes=_MAX_PACKAGE_BYTES)
    if len(parts[FACTS_FILE]) > _MAX_FACTS_BYTES:
        raise _corrupt(name, f"its {FACTS_FILE} has more than {_MAX_FACTS_BYTES >> 10} KiB")
    facts = facts_from_json(parts[FACTS_FILE])
    hashes = {key: hashlib.sha256(data).hexdigest() for key, data in parts.items() if key != FACTS_FILE}
    if hashes != facts.files:
        raise _corrupt(name, "its files do not match their SHA-256")
    return Opened(facts, _weights(parts[MODEL_FILE], name), None), parts


def _weights(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        return load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _corrupt(name, f"its weights do not parse: {type(error).__name__}") from error


def _checked(opened: Opened, name: str) -> Opened:
    """A voice whose parts fit one another, with such words of its making as are kept."""
    facts = opened.facts
    width = encoder_spec(facts.content_encoder).width
    if width != facts.config.content_width:
        raise _corrupt(
            name, f"{facts.content_encoder} is {width} wide, the model {facts.config.content_width}"
        )
    if opened.index is not None and opened.index.vectors.shape[1] != width:
        raise _corrupt(name, f"its index is {opened.index.vectors.shape[1]} wide, the model {width}")
    if facts.f0_method not in METHODS:
        raise _corrupt(name, f"its F0 method {facts.f0_method[:40]!r} is unknown")
    check_weights(facts.config, opened.weights, name)
    return dataclasses.replace(opened, facts=dataclasses.replace(facts, training=_plain(facts.training)))


def _plain(training: Mapping[str, Any]) -> dict[str, Any]:
    """What may be kept of words from outside: short ones, and numbers."""
    kept: dict[str, Any] = {}
    for key, value in list(training.items())[:_MAX_FACTS]:
        if isinstance(value, str) and key != "steps":
            kept[key[:_MAX_NAME_CHARS]] = value[:_MAX_FACT_CHARS]
        elif isinstance(value, int | float):
            kept[key[:_MAX_NAME_CHARS]] = value
    return kept


def _run_open(inputs: Files, outputs: Files, facts: Facts) -> Facts:
    opened = open_voice(
        inputs["model"], str(facts["name"]), inputs.get("index"), str(facts.get("index_name", ""))
    )
    outputs["weights"].write(save(dict(opened.weights)))
    if opened.index is not None:
        outputs["vectors"].write(opened.index.vectors.data)
        outputs["centres"].write(np.ascontiguousarray(opened.index.centres).data)
    return {
        "config": opened.facts.config.to_dict(),
        "content_encoder": opened.facts.content_encoder,
        "f0_method": opened.facts.f0_method,
        "training": opened.facts.training,
    }


def _run_write(inputs: Files, outputs: Files, facts: Facts) -> Facts:
    try:
        config = ModelConfig.from_dict(facts["config"])
        said = VoiceFacts(
            config, str(facts["content_encoder"]), str(facts["f0_method"]), dict(facts["training"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt("what was read of the file", "it is incomplete") from error
    vectors = _rows(inputs["vectors"].read(), config.content_width)
    centres = _rows(inputs["centres"].read(), config.content_width)
    index = IndexParts(vectors, centres) if len(vectors) and 1 <= len(centres) <= len(vectors) else None
    opened = Opened(said, _weights(inputs["weights"].read(), "what was read of the file"), index)
    checked = _checked(opened, "what was read of the file")
    training = {**checked.facts.training, **facts["more"]}
    complete = dataclasses.replace(checked.facts, training=training)
    written = write_voice(dataclasses.replace(checked, facts=complete), outputs["package"])
    return {
        "content_encoder": written.content_encoder,
        "rate_hz": written.config.rate_hz,
        "trained": float(training.get("steps", 1)) > 0,
        "vectors": len(vectors) if index is not None else 0,
    }


def _run_export(inputs: Files, outputs: Files, facts: Facts) -> Facts:
    return {"index": write_community(inputs["package"], outputs["pth"], outputs["index"])}


def _rows(data: bytes, width: int) -> Floats:
    if len(data) % (4 * width):
        raise _corrupt("what was read of the index", f"it is no rows of {width} values")
    rows = np.frombuffer(data, dtype=np.float32).reshape(-1, width)
    if not np.isfinite(rows).all():
        raise _corrupt("what was read of the index", "some of its values are no numbers")
    return rows


def _rehearse() -> None:
    """Does everything once with a small voice of our own, so that whatever opens files has opened them."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    config = dataclasses.replace(TINY_40K, content_width=768)
    weights = inference_weights(Synthesizer(config).state_dict())
    parts = IndexParts(*2 * (np.eye(2, 768, dtype=np.float32),))
    index = build_index(np.eye(2, 768, dtype=np.float32))
    package, pth, sink = io.BytesIO(), io.BytesIO(), io.BytesIO()
    write_voice(Opened(VoiceFacts(config, "contentvec"), weights, parts), package)
    write_community(package, pth, sink)
    pth.seek(0)
    open_voice(pth, "a voice", io.BytesIO(faiss.serialize_index(index.index).tobytes()), "an index")
    open_voice(package, "a voice")
    try:
        open_voice(io.BytesIO(b"none"), "no voice")
    except VoxfleetError:
        return


def _corrupt(name: str, why: str) -> VoxfleetError:
    return invalid(Reason.MODEL_CORRUPT, f"{name} cannot be imported as a voice: {why}", file=Path(name).name)


OPEN = Work(_rehearse, _run_open)
"""Inputs ``model`` and perhaps ``index``; outputs ``weights``, ``vectors``, ``centres``."""
WRITE = Work(_rehearse, _run_write)
"""Inputs ``weights``, ``vectors``, ``centres``; output ``package``."""
EXPORT = Work(_rehearse, _run_export)
"""Input ``package``; outputs ``pth`` and ``index``."""
