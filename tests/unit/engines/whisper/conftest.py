import pytest

from services.engines.whisper.bundle import whisper_base


@pytest.fixture(scope="session")
def whisper_dir(tmp_path_factory):
    """Whisper base, joined once."""
    return whisper_base(tmp_path_factory.mktemp("models"))
