"""F5's batches on a real GPU. Not run yet: no GPU was at hand."""

import pytest
import torch

from bench.speech.exactness import half_errors, worst_batched_error
from services.engines.f5 import small
from services.engines.f5.model import load
from services.engines.f5.packing import Budget
from services.engines.f5.planning import SynthesisItem
from services.engines.f5.synthesis import F5Model
from tests.unit.engines.f5.conftest import alone, babble, bundle, loaded, voice  # noqa: F401 - fixtures

pytestmark = pytest.mark.gpu


def test_a_batch_is_as_exact_as_on_a_cpu(tmp_path):
    small.build(tmp_path)
    full = load(tmp_path, device="cuda", dtype=torch.float32)
    half = load(tmp_path, device="cuda", dtype=torch.bfloat16)
    assert worst_batched_error(full, 10) < 1e-3
    found = half_errors(full, half, 4)
    assert found.vs_single <= 1.0
    assert found.vs_exact <= 1.1


def test_a_compiled_network_speaks_the_same(tmp_path, voice):  # noqa: F811
    small.build(tmp_path)
    spoken = []
    for compiler in ("", "inductor"):
        model = F5Model.load(tmp_path, device="cuda", compiler=compiler)
        spoken.append(model.synthesize([SynthesisItem("Good morning to you.", voice, steps=7, seed=3)])[0])
    level = (spoken[0] ** 2).mean() ** 0.5
    assert ((spoken[0] - spoken[1]) ** 2).mean() ** 0.5 < 0.2 * level


def test_what_has_no_room_together_is_spoken_in_smaller_batches(tmp_path, voice):  # noqa: F811
    small.build(tmp_path)
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        model = F5Model(load(tmp_path, device="cuda"), budget=Budget(frames=10**9, free_frames=10**9))
        texts = ["A line that goes on for quite a while, and then a little further. " * 4] * 64
        items = [SynthesisItem(text, voice, steps=2, seed=seed) for seed, text in enumerate(texts)]
        assert len(model.synthesize(items)) == len(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
