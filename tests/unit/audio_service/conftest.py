from __future__ import annotations

import pytest

from tests.unit.audio_service.bench import Bench, speech_file


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def speech() -> bytes:
    return speech_file()
