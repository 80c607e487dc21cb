"""The community's ``.pth`` files, both ways (upstream ``infer/lib/train/process_ckpt.py``).

A ``.pth`` is a pickle in a zip. It is read with ``weights_only=True`` and nothing else, and still only in a
jailed process, by :mod:`services.engines.rvc.exchange`; what it leaves is plain tensors.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.common.community import VERSION_OF_ENCODER, check_exportable
from services.common.errors import Reason, VoxfleetError, invalid
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.files import replaced
from services.engines.rvc.state import load_weights
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, inference_weights

_ENCODER_OF_WIDTH = {768: "contentvec", 256: "contentvec-v1"}
_MAX_ENTRIES = 10_000
_MAX_PICKLE_BYTES = 4 << 20
_MAX_BYTES = 2 << 30
_MAX_INFO = 1000


@dataclass(frozen=True, slots=True)
class Community:
    """What a ``.pth`` holds: the model's shape, its 16-bit inference weights, and its author's note."""

    config: ModelConfig
    content_encoder: str
    weights: Mapping[str, Tensor]
    info: str


def write_pth(facts: VoiceFacts, weights: Mapping[str, Tensor], sink: BinaryIO) -> None:
    """Write a voice as a community inference file.

    Raises:
        VoxfleetError: ``UNSUPPORTED_ENGINE`` where the voice's content encoder is not ContentVec.
    """
    check_exportable("this voice", facts.content_encoder)
    document = {
        "weight": dict(weights),
        "config": facts.config.to_list(),
        "info": str(facts.training.get("info") or f"{facts.training.get('epochs', 0)}epoch"),
        "sr": facts.config.rate_label,
        "f0": 1,
        "version": VERSION_OF_ENCODER[facts.content_encoder],
    }
    torch.save(document, sink)


def read_pth(source: BinaryIO, name: str) -> Community:
    """What a community inference file holds, with no key missing and none left over.

    Args:
        source: the file, open and seekable.
        name: what to call it in errors.

    Raises:
        VoxfleetError: ``MODEL_CORRUPT`` where the file is none or its tensors do not fit,
            ``UNSUPPORTED_ENGINE`` for models without F0.
    """
    document = _unpickle(source, name)
    weights = _tensors(document.get("weight"), name)
    if not _number(document.get("f0", 1), name):
        raise invalid(Reason.UNSUPPORTED_ENGINE, "models trained without F0 are not offered; train with F0")
    first = weights.get("enc_p.emb_phone.weight")
    width = int(first.shape[1]) if first is not None and first.ndim == 2 else 0
    if width not in _ENCODER_OF_WIDTH:
        raise _corrupt(name, f"its content features are {width} wide, RVC's are 256 or 768")
    stated = document.get("config")
    values = list(stated) if isinstance(stated, list | tuple) else []
    speakers = weights.get("emb_g.weight")
    if len(values) == 18 and speakers is not None and speakers.ndim == 2:
        # Upstream writes 109 speakers whatever the table holds: the table is right.
        values[-3] = int(speakers.shape[0])
    config = ModelConfig.from_list(values, content_width=width)
    kept = inference_weights(weights)
    check_weights(config, kept, name)
    return Community(config, _ENCODER_OF_WIDTH[width], kept, str(document.get("info", ""))[:_MAX_INFO])


def check_weights(config: ModelConfig, weights: Mapping[str, Tensor], name: str) -> None:
    """Refuses inference weights that are not those of their configuration. Errors: MODEL_CORRUPT."""
    # Sizes come from the file: they are compared before memory is taken for them.
    with torch.device("meta"):
        wanted = {
            key: tensor.shape
            for key, tensor in Synthesizer(config, with_posterior=False).state_dict().items()
        }
    if wanted.keys() != weights.keys():
        missing, more = len(wanted.keys() - weights.keys()), len(weights.keys() - wanted.keys())
        raise _corrupt(name, f"of its tensors {missing} are missing and {more} belong to no RVC model")
    wrong = [key for key, shape in wanted.items() if weights[key].shape != shape]
    if wrong:
        raise _corrupt(name, f"{wrong[0]} has not the shape that its configuration says")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise _corrupt(name, "some of its weights are no numbers")
    load_weights(Synthesizer(config, with_posterior=False), dict(weights))


def import_base_pth(source: Path, target: Path) -> None:
    """Turn base weights to train from (``f0G40k.pth``, ``f0D40k.pth``) into a safetensors file."""
    with source.open("rb") as file:
        weights = _tensors(_unpickle(file, source.name).get("model"), source.name)
    with replaced(target) as draft:
        save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, str(draft))


def _unpickle(source: BinaryIO, name: str) -> Mapping[str, Any]:
    _check_container(source, name)
    try:
        document = torch.load(source, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        raise _corrupt(name, f"it does not load as plain tensors: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise _corrupt(name, "it holds no dictionary")
    return document


def _check_container(source: BinaryIO, name: str) -> None:
    """Refuses what is no zip as ``torch.save`` writes it: uncompressed, and of a size that can be held."""
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise _corrupt(name, "it is no zip as torch.save writes it, or it was cut short") from error
    if len(entries) > _MAX_ENTRIES:
        raise _corrupt(name, f"it holds {len(entries)} entries")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _corrupt(name, "it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > _MAX_BYTES:
        raise _corrupt(name, f"it holds more than {_MAX_BYTES >> 30} GiB")
    if any(entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES for entry in entries):
        raise _corrupt(name, f"its description has more than {_MAX_PICKLE_BYTES >> 20} MiB")
    source.seek(0)


def _tensors(value: object, name: str) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not value:
        raise _corrupt(name, "it holds no weights")
    if not all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items()):
        raise _corrupt(name, "its weights are not all tensors")
    if not all(item.layout is torch.strided and item.is_floating_point() for item in value.values()):
        raise _corrupt(name, "its weights are not all plain floating-point tensors")
    # A tensor may claim any shape over a byte of storage: counted is what it takes when it is written out.
    if sum(item.numel() for item in value.values()) * 2 > _MAX_BYTES:
        raise _corrupt(name, f"its tensors have more than {_MAX_BYTES >> 30} GiB")
    return dict(value)


def _number(value: object, name: str) -> float:
    try:
        return float(str(value))
    except ValueError as error:
        raise _corrupt(name, f"it says {str(value)[:20]!r} where a number stands") from error


def _corrupt(name: str, why: str) -> VoxfleetError:
    return invalid(
        Reason.MODEL_CORRUPT, f"{name} is not a community RVC file that can be imported: {why}", file=name
    )
