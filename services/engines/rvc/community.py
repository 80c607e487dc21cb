"""The community's ``.pth`` files, both ways (upstream ``infer/lib/train/process_ckpt.py``).

A ``.pth`` is a pickle. It is read with ``weights_only=True`` and nothing else, and still only in a
jailed child process: call :func:`import_pth` and :func:`import_base_pth` there, hand their output on.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.files import replaced
from services.engines.rvc.retrieval import Retrieval, load_index
from services.engines.rvc.state import load_weights
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, inference_weights, load_weights_of, read_facts, save_voice

_ENCODER_OF_WIDTH = {768: "contentvec", 256: "contentvec-v1"}
_VERSION_OF_ENCODER = {"contentvec": "v2", "contentvec-v1": "v1"}


def export_pth(directory: Path, target: Path, *, info: str = "") -> None:
    """Write a voice on disk as a community inference file.

    Raises:
        VoxfleetError: ``UNSUPPORTED_ENGINE`` where the voice's content encoder is not ContentVec:
            other programs would feed it features that it has never seen.
    """
    facts = read_facts(directory)
    if facts.content_encoder not in _VERSION_OF_ENCODER:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"a .pth is read with ContentVec features, and this voice was trained on "
            f"{facts.content_encoder}: export it in Voxfleet's own format",
            content_encoder=facts.content_encoder,
        )
    document = {
        "weight": load_weights_of(directory, facts),
        "config": facts.config.to_list(),
        "info": info or f"{facts.training.get('epochs', 0)}epoch",
        "sr": facts.config.rate_label,
        "f0": 1,
        "version": _VERSION_OF_ENCODER[facts.content_encoder],
    }
    with replaced(target) as draft:
        torch.save(document, str(draft))


def import_pth(source: Path, directory: Path, *, index: Path | None = None) -> VoiceFacts:
    """Turn a community inference file, and its ``.index`` where there is one, into a voice on disk.

    Raises:
        VoxfleetError: ``MODEL_CORRUPT`` where the file is none or its tensors do not fit,
            ``UNSUPPORTED_ENGINE`` for models without F0.
    """
    document = _unpickle(source)
    weights = _tensors(document.get("weight"), source)
    if not int(document.get("f0", 1)):
        raise invalid(Reason.UNSUPPORTED_ENGINE, "models trained without F0 are not offered; train with F0")
    width = int(weights["enc_p.emb_phone.weight"].shape[1]) if "enc_p.emb_phone.weight" in weights else 0
    if width not in _ENCODER_OF_WIDTH:
        raise _corrupt(source, f"its content features are {width} wide, RVC's are 256 or 768")
    values = list(document.get("config") or [])
    if len(values) == 18 and "emb_g.weight" in weights:
        # Upstream writes 109 speakers whatever the table holds: the table is right.
        values[-3] = int(weights["emb_g.weight"].shape[0])
    config = ModelConfig.from_list(values, content_width=width)
    kept = inference_weights(weights)
    # Sizes come from the file: check before memory is taken for them.
    if sum(tensor.numel() for tensor in kept.values()) != _parameters(config):
        raise _corrupt(source, "its tensors are not those of its configuration")
    load_weights(Synthesizer(config, with_posterior=False), kept)
    retrieval: Retrieval | None = load_index(index) if index is not None else None
    if retrieval is not None and retrieval.width != width:
        raise _corrupt(source, f"its index is {retrieval.width} wide, the model {width}")
    training = {"imported_from": source.name, "info": str(document.get("info", ""))}
    facts = VoiceFacts(config, _ENCODER_OF_WIDTH[width], training=training)
    return save_voice(directory, facts, kept, retrieval)


def import_base_pth(source: Path, target: Path) -> None:
    """Turn base weights to train from (``f0G40k.pth``, ``f0D40k.pth``) into a safetensors file."""
    weights = _tensors(_unpickle(source).get("model"), source)
    with replaced(target) as draft:
        save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, str(draft))


def _unpickle(source: Path) -> Mapping[str, Any]:
    try:
        document = torch.load(str(source), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        KeyError,
        AttributeError,
    ) as error:
        raise _corrupt(source, f"it does not load as plain tensors: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise _corrupt(source, "it holds no dictionary")
    return document


def _tensors(value: object, source: Path) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not value:
        raise _corrupt(source, "it holds no weights")
    if not all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items()):
        raise _corrupt(source, "its weights are not all tensors")
    return dict(value)


def _parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(
            tensor.numel() for tensor in Synthesizer(config, with_posterior=False).state_dict().values()
        )


def _corrupt(source: Path, why: str) -> VoxfleetError:
    return VoxfleetError(
        Reason.MODEL_CORRUPT,
        f"{source.name} is not a community RVC file that can be imported: {why}",
        kind=Kind.INVALID,
        metadata={"file": source.name},
    )
