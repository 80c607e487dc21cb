"""Zero-shot conversion through the public API: a recording spoken again, as long as it was."""

import numpy as np
import pytest

from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from tests.e2e.conftest import SPEECH
from voxfleet.client import VoxfleetError
from voxfleet.v1 import audio_pb2, synthesis_pb2

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """Two sentences of a real speaker, and two seconds of silence."""
    said = decode(SPEECH / "heldout_en.flac").samples[: round(9.3 * RATE_HZ)]
    return np.concatenate([said, np.zeros(2 * RATE_HZ + 1, np.float32)])


@pytest.fixture(scope="module")
def uploaded(alpha, recording, tmp_path_factory) -> audio_pb2.Audio:
    path = tmp_path_factory.mktemp("respeak") / "said.flac"
    path.write_bytes(encode(recording, RATE_HZ, Format.FLAC))
    return alpha.client.audio.upload(path)


def fast(**parameters: object) -> synthesis_pb2.ConversionParameters:
    return synthesis_pb2.ConversionParameters(
        seed=5, speaking=synthesis_pb2.SynthesisParameters(preset="fast", **parameters)
    )


def test_a_recording_is_spoken_again_with_its_own_timing(alpha, clone, uploaded, recording):
    job = alpha.client.synthesis.convert(
        uploaded.name, clone.name, engine="f5", parameters=fast(), format="flac", rate_hz=RATE_HZ
    )
    assert job.kind == "f5.convert"
    messages = list(alpha.client.jobs.watch(job.name))
    phases = list(dict.fromkeys(m.change.phase for m in messages if m.HasField("change") and m.change.phase))
    order = ["fetch", "listen", "speak", "encode", "store"]
    assert phases == [phase for phase in order if phase in phases]
    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    (name,) = done.result.audios
    output = alpha.client.audio.get(name)
    assert output.provenance.generated
    assert (output.provenance.engine, output.provenance.voice) == ("f5", clone.name)
    assert (output.provenance.weights, output.provenance.weights_trained) == ("f5-small-random", False)
    assert output.provenance.seed == 5
    after = decode(alpha.client.audio.download_bytes(name))
    assert (after.rate_hz, len(after.samples)) == (RATE_HZ, len(recording)), "exact to the sample"
    # Where the speaker says nothing, nor does this.
    silent = after.samples[round(9.4 * RATE_HZ) :]
    spoken = after.samples[round(0.5 * RATE_HZ) : round(5.0 * RATE_HZ)]
    assert np.abs(silent).max() < 1e-3
    assert np.sqrt(np.mean(spoken**2)) > 10 * np.sqrt(np.mean(silent**2) + 1e-9)


def test_what_cannot_be_spoken_again_says_why(alpha, clone, uploaded, tmp_path):
    noise = (0.05 * np.random.default_rng(0).standard_normal(3 * RATE_HZ)).astype(np.float32)
    path = tmp_path / "noise.flac"
    path.write_bytes(encode(noise, RATE_HZ, Format.FLAC))
    quiet = alpha.client.audio.upload(path)
    job = alpha.client.synthesis.convert(quiet.name, clone.name, engine="f5", parameters=fast())
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.jobs.wait(job.name, timeout_s=240)
    assert caught.value.reason == "SPEECH_NOT_HEARD"
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.synthesis.convert(uploaded.name, clone.name, engine="bark")
    assert caught.value.reason == "UNSUPPORTED_ENGINE"
    assert caught.value.metadata["supported_engines"] == "rvc, f5"
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.synthesis.convert(uploaded.name, clone.name)
    assert caught.value.reason == "UNSUPPORTED_ENGINE"
