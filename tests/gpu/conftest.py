"""The GPU tier: never required, and visibly skipped where there is no GPU."""

import pytest
import torch

from services.engines import torchaudio_shim

torchaudio_shim.install()


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")
