"""A file of tensors that vouches for itself: safetensors, with a JSON header and a SHA-256 over all of it.

The file stays plain safetensors, which any tool reads. The sum covers the header and every tensor's
name, type, shape and bytes, so that no flipped bit and no cut end goes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.engines.rvc.files import replaced

_HEADER = "voxfleet"
_SUM = "sha256"


class TensorsCorruptError(Exception):
    """The file is cut short, altered, or not of this kind."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Write atomically; returns the hex SHA-256 of the contents."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    total = _digest(plain, text)
    with replaced(path) as draft:
        save_file(plain, str(draft), metadata={_HEADER: text, _SUM: total})
    return total


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and header of a file that :func:`save_tensors` wrote, after checking its sum.

    Raises:
        TensorsCorruptError: for everything that is wrong with the file's contents.
        FileNotFoundError: there is no file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(str(path), framework="pt") as data:
            metadata = data.metadata() or {}
            tensors = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise TensorsCorruptError(f"{path.name} does not parse: {error}") from error
    if _HEADER not in metadata or _SUM not in metadata:
        raise TensorsCorruptError(f"{path.name} has no Voxfleet header")
    if _digest(tensors, metadata[_HEADER]) != metadata[_SUM]:
        raise TensorsCorruptError(f"{path.name} does not match its SHA-256")
    header = json.loads(metadata[_HEADER])
    if not isinstance(header, dict):
        raise TensorsCorruptError(f"{path.name} has no header object")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # A view as bytes works for every type, 16-bit floats without a numpy twin included.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
