"""A training state as one file, never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.discriminator import Discriminator
from services.engines.rvc.heldout import Best
from services.engines.rvc.state import State, TrainParams, assemble
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.tensors import TensorsCorruptError, load_tensors, save_tensors

_FORMAT = "voxfleet-rvc-checkpoint"
_VERSION = 2
_READABLE = (1, 2)
"""Version 1 knew of no held-out slices and no rollbacks."""


def save_checkpoint(path: Path, state: State) -> str:
    """Write the whole state atomically; returns the SHA-256 of its contents."""
    tensors = {
        **_prefixed("g", state.synthesizer.state_dict()),
        **_prefixed("d", state.discriminator.state_dict()),
        **_moments("optimizer_g", state.optimizer_g),
        **_moments("optimizer_d", state.optimizer_d),
        **_prefixed("best", state.best.weights if state.best else {}),
    }
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": state.config.to_dict(),
        "params": state.params.to_dict(),
        "epoch": state.epoch,
        "position": state.position,
        # With the seed among the parameters, the step is the state of every random generator.
        "step": state.step,
        "scaler": state.scaler.state_dict(),
        "micro_batch": state.micro_batch,
        "rollbacks": state.rollbacks,
        "best": {"step": state.best.step, "error": state.best.error} if state.best else None,
        "unimproved": state.unimproved,
    }
    return save_tensors(path, tensors, header)


def load_checkpoint(path: Path, device: str = "cpu") -> State:
    """The state that :func:`save_checkpoint` wrote, on any device.

    Raises:
        VoxfleetError: ``CHECKPOINT_CORRUPT`` where the file is missing, cut short or altered, or was
            written by a version that this one does not know.
    """
    try:
        tensors, header = load_tensors(path)
        if header.get("format") != _FORMAT or header.get("version") not in _READABLE:
            raise TensorsCorruptError(f"{path.name} is no checkpoint of version {_VERSION}")
        return _restore(tensors, header, device)
    except (TensorsCorruptError, FileNotFoundError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise VoxfleetError(
            Reason.CHECKPOINT_CORRUPT,
            f"the checkpoint cannot be resumed: {error}; resume from an earlier one, or start again",
            kind=Kind.DATA_LOSS,
            metadata={"file": path.name},
        ) from error


def _restore(tensors: dict[str, Tensor], header: dict[str, Any], device: str) -> State:
    config = ModelConfig.from_dict(header["config"])
    synthesizer, discriminator = Synthesizer(config), Discriminator(config)
    synthesizer.load_state_dict(_unprefixed("g", tensors))
    discriminator.load_state_dict(_unprefixed("d", tensors))
    state = assemble(
        config, TrainParams(**header["params"]), torch.device(device), synthesizer, discriminator
    )
    for name, optimizer in (("optimizer_g", state.optimizer_g), ("optimizer_d", state.optimizer_d)):
        _load_moments(optimizer, _unprefixed(name, tensors))
    if state.scaler.is_enabled() and header["scaler"]:
        state.scaler.load_state_dict(header["scaler"])
    state.epoch, state.position, state.step = header["epoch"], header["position"], header["step"]
    state.micro_batch, state.rollbacks = header.get("micro_batch", 0), header.get("rollbacks", 0)
    if best := header.get("best"):
        state.best = Best(int(best["step"]), float(best["error"]), _unprefixed("best", tensors))
    state.unimproved = header.get("unimproved", 0)
    return state


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _moments(prefix: str, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{prefix}/{number}/{name}": tensor
        for number, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _load_moments(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split("/")
        moments.setdefault(int(number), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
