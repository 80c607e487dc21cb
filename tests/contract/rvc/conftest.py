"""The same voices for ours and for upstream's packages, which run in their own interpreter."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bench.peers.rvc import material, reference
from services.engines.rvc.content import ContentSources, content_encoder
from services.engines.rvc.conversion import ConvertParams, convert
from services.engines.rvc.voice import Voice, load_voice

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
RATE_HZ = 16_000
THREADS = 1


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not reference.present():
            item.add_marker(pytest.mark.skip(reason=reference.ABSENT))


@dataclass(frozen=True)
class Clip:
    samples: np.ndarray
    path: Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rvc-reference")


@pytest.fixture(scope="session")
def clip(folder):
    """Real speech of whole content frames, within silence: each filter begins in its own way at the edges."""
    samples, rate_hz = soundfile.read(SPEECH / "target_en.flac", dtype="float32")
    assert rate_hz == RATE_HZ
    said = samples[: RATE_HZ * 3 // 2]
    silence = np.zeros(RATE_HZ // 4, np.float32)
    # Upstream turns down what peaks over 0.95.
    whole = np.concatenate([silence, 0.9 * said / np.abs(said).max(), silence]).astype(np.float32)
    path = folder / "clip.wav"
    soundfile.write(path, whole, RATE_HZ, subtype="FLOAT")
    return Clip(whole, path)


@pytest.fixture(scope="session")
def hubert(folder):
    return material.random_hubert(folder / "hubert")


@pytest.fixture(scope="session")
def sources(folder, hubert):
    # Both sides sum in the same order with as many threads, and a lone one waits for no other.
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield ContentSources(folder, contentvec_dir=hubert)
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def voices(folder, sources, clip):
    """A voice by the name of its shape, made where it is first asked for."""
    made = {}

    def voice(name: str) -> material.RandomVoice:
        if name not in made:
            config = material.CONFIGS[name]
            encoder = "contentvec-v1" if config.content_width == 256 else "contentvec"
            vectors = material.near_vectors(content_encoder(encoder, sources).encode(clip.samples))
            made[name] = material.random_voice(folder / name, config, vectors)
        return made[name]

    return voice


@pytest.fixture(scope="session")
def upstream(folder, hubert):
    """A package's process by name."""
    with contextlib.ExitStack() as stack:
        running = {}

        def process(package: str) -> reference.Reference:
            if package not in running:
                place = folder / package
                place.mkdir()
                running[package] = stack.enter_context(
                    reference.running(package, place, hubert, threads=THREADS)
                )
            return running[package]

        yield process


@pytest.fixture
def reference_packages(monkeypatch):
    """F0 packages that only the reference interpreter has (``pm``)."""
    site = next(reference.REFERENCE.glob("lib/python*/site-packages"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])


@dataclass(frozen=True)
class Ours:
    """What a conversion gave, and what went through the models, as ``reference.Converted`` names it."""

    made: np.ndarray
    rate_hz: int
    seen: dict


@pytest.fixture(scope="session")
def ours(sources):
    """Converts with every random number 0, and keeps what the models took in and gave."""

    def run(voice: material.RandomVoice, clip: Clip, params: ConvertParams) -> Ours:
        loaded: Voice = load_voice(voice.directory, sources)
        seen = {}
        encode, synthesise = loaded.encoder.encode, loaded.synthesizer.convert

        def encoded(samples):
            seen["content"] = encode(samples)
            return seen["content"]

        def synthesised(content, pitch, f0_hz, *rest, only):
            made = synthesise(content, pitch, f0_hz, *rest, only=only)
            inputs = {"features": content, "coarse": pitch, "f0_hz": f0_hz}
            seen.update({name: tensor[0].numpy() for name, tensor in inputs.items()})
            seen["samples"] = made[0, 0].numpy()
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loaded.encoder, "encode", encoded)
            patch.setattr(loaded.synthesizer, "convert", synthesised)
            patch.setattr(torch, "randn", _no_noise)
            made, rate_hz = convert(loaded, clip.samples, RATE_HZ, params)
        return Ours(made, rate_hz, seen)

    return run


def _no_noise(shape, *, generator=None, device=None, dtype=None):
    return torch.zeros(shape, device=device, dtype=dtype)
