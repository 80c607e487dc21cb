"""The engines on a real GPU agree with themselves on a CPU. Not run yet: no GPU was at hand."""

import numpy as np
import pytest
import torch

from services.engines.f5 import reference, small
from services.engines.f5.synthesis import F5Model, SynthesisItem
from services.engines.rvc import pipeline
from tests.unit.engines.f5.conftest import babble
from tests.unit.engines.rvc import conftest as rvc

pytestmark = pytest.mark.gpu

# The fixtures of the unit tests: the same small features and network.
nano, features, params, encoder, tracker = rvc.nano, rvc.features, rvc.params, rvc.encoder, rvc.tracker


def test_f5_speaks_the_same_on_a_gpu(tmp_path):
    """bfloat16 on the GPU against float32 on the CPU: the same length, nearly the same level."""
    small.build(tmp_path)
    clip = reference.prepare("voice", babble(2.0), 24_000, "Some call me nature, others call.")
    spoken = {}
    for device in ("cpu", "cuda"):
        model = F5Model.load(tmp_path, device=device)
        item = SynthesisItem("Good morning to you.", model.reference(clip), steps=7, seed=3)
        (spoken[device],) = model.synthesize([item])
    assert len(spoken["cpu"]) == len(spoken["cuda"])
    levels = {device: 20 * np.log10(np.sqrt(np.mean(audio**2))) for device, audio in spoken.items()}
    assert abs(levels["cpu"] - levels["cuda"]) < 1.0


def test_rvc_trains_on_a_gpu_and_its_checkpoint_loads_on_a_cpu(nano, features, params, tmp_path):
    seen = []
    state = pipeline.new_state(nano, params, "cuda")
    pipeline.train(state, features, params, on_progress=seen.append)
    assert all(np.isfinite(point.loss_mel) for point in seen)
    path = tmp_path / "state.safetensors"
    pipeline.save_checkpoint(path, state)
    again = pipeline.load_checkpoint(path, "cpu")
    assert again.step == state.step


def test_no_memory_is_left_after_training(nano, features, params):
    before = torch.cuda.memory_allocated()
    state = pipeline.new_state(nano, params, "cuda")
    pipeline.train(state, features, params)
    del state
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 1 << 20
