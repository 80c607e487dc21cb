"""A voice on disk: ``voice.json``, ``model.safetensors`` and ``index.faiss``.

The weights are 16-bit, without the posterior encoder; ``voice.json`` holds each file's SHA-256.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.content import ContentEncoder, ContentSources, content_encoder
from services.engines.rvc.f0 import DEFAULT_METHOD
from services.engines.rvc.files import sha256_of
from services.engines.rvc.layers import fold_weight_norm
from services.engines.rvc.retrieval import Retrieval, load_index, save_index
from services.engines.rvc.state import load_weights
from services.engines.rvc.synthesizer import Synthesizer

FORMAT = "voxfleet-rvc-voice"
VERSION = 1
FACTS_FILE = "voice.json"
MODEL_FILE = "model.safetensors"
INDEX_FILE = "index.faiss"
_POSTERIOR = "enc_q."


@dataclass(frozen=True, slots=True)
class VoiceFacts:
    """What ``voice.json`` says.

    Args:
        content_encoder: name of the encoder that the weights expect.
        f0_method: what it was trained with, and the default in conversion.
        training: facts of the run (epochs, steps, seconds of audio, last losses), JSON data.
        files: SHA-256 of each file beside it.
    """

    config: ModelConfig
    content_encoder: str
    f0_method: str = DEFAULT_METHOD
    training: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice ready to convert: folded weights on a device, its index, its content encoder."""

    facts: VoiceFacts
    synthesizer: Synthesizer
    retrieval: Retrieval | None
    encoder: ContentEncoder
    device: torch.device


def save_voice(
    directory: Path, facts: VoiceFacts, weights: Mapping[str, Tensor], retrieval: Retrieval | None
) -> VoiceFacts:
    """Write a voice as a whole: ``directory`` must not exist, and appears complete.

    Returns:
        The facts with the files' hashes filled in.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save_file(inference_weights(weights), str(draft / MODEL_FILE))
        if retrieval is not None:
            save_index(draft / INDEX_FILE, retrieval)
        files = {path.name: sha256_of(path) for path in sorted(draft.iterdir())}
        complete = VoiceFacts(facts.config, facts.content_encoder, facts.f0_method, facts.training, files)
        (draft / FACTS_FILE).write_bytes(facts_to_json(complete))
        draft.chmod(0o755)
        draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return complete


def inference_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """16-bit weights on the CPU, without the posterior encoder that only training uses."""
    return {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in weights.items()
        if not name.startswith(_POSTERIOR)
    }


def read_facts(directory: Path) -> VoiceFacts:
    """Parse ``voice.json``; ``MODEL_NOT_FOUND`` where it is absent, ``MODEL_CORRUPT`` where it is wrong."""
    path = directory / FACTS_FILE
    if not path.is_file():
        raise VoxfleetError(
            Reason.MODEL_NOT_FOUND,
            f"{directory.name} holds no voice: {FACTS_FILE} is missing",
            kind=Kind.NOT_FOUND,
        )
    return facts_from_json(path.read_bytes())


def facts_from_json(text: bytes) -> VoiceFacts:
    """The facts that ``voice.json`` says; ``MODEL_CORRUPT`` where it does not hold."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise corrupt(f"{FACTS_FILE} is not {FORMAT} version {VERSION}")
        return VoiceFacts(
            ModelConfig.from_dict(data["config"]),
            str(data["content_encoder"]),
            str(data["f0_method"]),
            dict(data["training"]),
            {str(name): str(total) for name, total in data["files"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(f"{FACTS_FILE} does not parse: {error!r}") from error


def load_weights_of(directory: Path, facts: VoiceFacts) -> dict[str, Tensor]:
    """The 16-bit weights, after checking every file's hash; ``MODEL_CORRUPT`` where one is wrong."""
    if MODEL_FILE not in facts.files:
        raise corrupt(f"{FACTS_FILE} names no {MODEL_FILE}")
    for name, expected in facts.files.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise corrupt(f"{name} is missing")
        if sha256_of(path) != expected:
            raise corrupt(f"{name} does not match its SHA-256")
    try:
        return load_file(str(directory / MODEL_FILE))
    except SafetensorError as error:
        raise corrupt(f"{MODEL_FILE} does not parse: {error}") from error


def load_voice(
    directory: Path, sources: ContentSources, *, device: str = "cpu", encoder: ContentEncoder | None = None
) -> Voice:
    """A voice from disk, with its content encoder (found in ``sources`` where none is given).

    Raises:
        VoxfleetError: ``MODEL_NOT_FOUND``, ``MODEL_CORRUPT``, ``UNSUPPORTED_ENGINE``.
    """
    facts = read_facts(directory)
    weights = load_weights_of(directory, facts)
    synthesizer = Synthesizer(facts.config, with_posterior=False)
    load_weights(synthesizer, {name: tensor.float() for name, tensor in weights.items()})
    synthesizer = synthesizer.to(device).eval().requires_grad_(False)
    fold_weight_norm(synthesizer)
    retrieval = load_index(directory / INDEX_FILE) if INDEX_FILE in facts.files else None
    used = encoder or content_encoder(facts.content_encoder, sources)
    for what, width in (("index", retrieval and retrieval.width), ("content encoder", used.width)):
        if width is not None and width != facts.config.content_width:
            raise corrupt(f"the {what} is {width} wide, the model {facts.config.content_width}")
    return Voice(facts, synthesizer, retrieval, used, torch.device(device))


def corrupt(why: str) -> VoxfleetError:
    """The error of a voice that cannot be trusted."""
    return VoxfleetError(Reason.MODEL_CORRUPT, f"the voice cannot be loaded: {why}", kind=Kind.DATA_LOSS)


def facts_to_json(facts: VoiceFacts) -> bytes:
    """What ``voice.json`` holds."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": facts.config.to_dict(),
        "content_encoder": facts.content_encoder,
        "f0_method": facts.f0_method,
        "training": dict(facts.training),
        "files": dict(facts.files),
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
