"""One rank of a training on CPUs, as a process of its own; what it comes to is written by each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from services.engines.rvc.features import FeatureSet
from services.engines.rvc.parallel import joined
from services.engines.rvc.state import TrainParams, new_state
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.training import train
from tests.unit.engines.rvc.conftest import NANO


def alike():
    """Draws that are the same in every row: how a batch is divided then changes nothing that is drawn."""

    def drawn(*shape, **named):
        sizes = shape[0] if len(shape) == 1 else shape
        wave = torch.sin(torch.arange(sizes[-1], dtype=named.get("dtype") or torch.float32))
        return torch.full(sizes, 0.5) if len(sizes) == 1 else wave.expand(sizes).clone()

    return mock.patch.multiple(torch, randn=drawn, rand=drawn)


def main(folder: str, rank: str, size: str, full: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder)
    params = TrainParams(**json.loads((path / "params.json").read_text()))
    seen: list[int] = []
    forward = Synthesizer.forward

    def crowded(self, content, *args, **named):
        seen.append(len(content))
        if full == rank and len(content) > 1:
            raise torch.OutOfMemoryError("it is full")
        return forward(self, content, *args, **named)

    with (
        alike(),
        mock.patch.object(Synthesizer, "forward", crowded),
        joined(int(rank), int(size), path / "meeting", "cpu") as group,
    ):
        state = new_state(NANO, params)
        result = train(state, FeatureSet.load(path / "features"), group=group)
    save_file(
        {name: tensor.clone() for name, tensor in state.synthesizer.state_dict().items()},
        path / f"rank-{rank}.safetensors",
    )
    told = {
        "step": result.step,
        "rows": seen,
        "loss_g": result.last.loss_g if result.last else None,
        "micro_batch": state.micro_batch,
    }
    (path / f"rank-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
