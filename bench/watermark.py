"""How surely the inaudible mark is found again, and how seldom where it is not.

Real speech: all prompts of five recorded speakers (Debian's Asterisk sounds, two hours; ``--packages DIR``
where apt cannot fetch them), cut into windows of two seconds, the shortest that is promised. Where they
cannot be had, the project's own two and a half minutes serve, in windows that overlap; the answer says so.

``detection_rate_mp3_128``: of windows marked at 24 kHz, encoded as MP3 of 128 kbit/s and decoded, and cut by
a random part of a frame, so that nothing lies where it lay. ``false_positive_rate``: of unmarked windows,
each with several keys; with the bound above it that is certain to 95 % (Clopper and Pearson 1934).
``mark_snr_db``: power of the speech over power of what the mark adds to it. Fails where a rate misses what
is promised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from scripts.fetch_speech_fixture import SPEAKERS, faded, read_g722, unpack
from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from services.common.media.loudness import integrated_lufs
from services.common.media.resample import resample
from services.engines.watermark import detect, mark

LEAST_DETECTED = 0.95
MOST_FALSE = 0.001
SPEECH = Path(__file__).parents[1] / "tests" / "fixtures" / "speech"
RECORDED_HZ = 16_000
ENGINE_HZ = 24_000
WINDOW_S = 2.0
_QUIET = 1e-4
"""Mean square below which a window is a pause and no speech (-40 dBFS)."""
_GAP_S = 0.15

Samples = NDArray[np.float32]


def main() -> int:
    """Measures, prints one line of JSON, and says by its status whether what is promised holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder with the .deb files; else apt")
    parser.add_argument("--marked", type=int, default=500, help="windows that are marked and encoded")
    parser.add_argument("--keys", type=int, default=4, help="keys with which unmarked windows are searched")
    arguments = parser.parse_args()
    windows, source = speech(arguments.packages)
    chosen = np.random.default_rng(1).permutation(len(windows))[: arguments.marked]
    found: dict[str, float | str] = {
        "source": source,
        "windows": len(windows),
        "window_s": WINDOW_S,
        **detection([windows[number] for number in chosen]),
        **false_positives(windows, [f"key {number}" for number in range(arguments.keys)]),
    }
    print(json.dumps(found))
    detected, wrong = float(found["detection_rate_mp3_128"]), float(found["false_positive_rate"])
    return 0 if detected >= LEAST_DETECTED and wrong <= MOST_FALSE else 1


def speech(packages: Path | None) -> tuple[list[Samples], str]:
    """Windows of speech at 16 kHz, and where they come from."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            sounds = unpack(packages, Path(scratch))
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            print(f"no prompts ({error}): the fixture serves", file=sys.stderr)
            recordings = [decode(path, rate_hz=RECORDED_HZ).samples for path in sorted(SPEECH.glob("*.flac"))]
            return list(_windows(recordings, step_s=0.05)), "fixture, overlapping"
        recordings = [joined(sounds / speaker.folder) for speaker in SPEAKERS.values()]
        return list(_windows(recordings, step_s=WINDOW_S)), "asterisk-core-sounds, 5 speakers"


def joined(folder: Path) -> Samples:
    """All prompts of a speaker, one after the other."""
    gap = np.zeros(round(_GAP_S * RECORDED_HZ), np.float32)
    found = sorted(folder.rglob("*.g722"))
    prompts = [path for path in found if path.parent.name != "silence" and path.stat().st_size]
    return np.concatenate([part for path in prompts for part in (faded(read_g722(path)), gap)])


def _windows(recordings: Sequence[Samples], *, step_s: float) -> Iterator[Samples]:
    size, step = round(WINDOW_S * RECORDED_HZ), round(step_s * RECORDED_HZ)
    for recording in recordings:
        for start in range(0, recording.size - size + 1, step):
            window = recording[start : start + size]
            if float(np.mean(window * window)) > _QUIET:
                yield window


def detection(windows: Sequence[Samples]) -> dict[str, float]:
    """What is found of marked windows after each way of spoiling them, and how loud the mark is."""
    chance = np.random.default_rng(2)
    found: dict[str, list[bool]] = {name: [] for name in ("as_made", "mp3_128", "mp3_64", "opus_64", "16khz")}
    plain, added, ratios = [], [], []
    marking_s = searching_s = 0.0
    for window in windows:
        speech = resample(window, RECORDED_HZ, ENGINE_HZ)
        began_s = time.perf_counter()
        marked = mark(speech, ENGINE_HZ)
        marking_s += time.perf_counter() - began_s
        plain.append(speech)
        added.append(marked - speech)
        ratios.append(_power_db(speech) - _power_db(marked - speech))
        cut = int(chance.integers(1, ENGINE_HZ // 50))
        heard = {
            "as_made": (marked, ENGINE_HZ),
            "mp3_128": _coded(marked, Format.MP3, 128, cut),
            "mp3_64": _coded(marked, Format.MP3, 64, cut),
            "opus_64": _coded(marked, Format.OPUS, 64, cut),
            "16khz": (resample(marked, ENGINE_HZ, 16_000)[cut:], 16_000),
        }
        for name, (samples, rate_hz) in heard.items():
            began_s = time.perf_counter()
            found[name].append(detect(samples, rate_hz).present)
            searching_s += time.perf_counter() - began_s
    whole, mark_alone = np.concatenate(plain), np.concatenate(added)
    seconds = len(windows) * WINDOW_S
    return {
        "marked_windows": len(windows),
        **{f"detection_rate_{name}": sum(seen) / len(seen) for name, seen in found.items()},
        "mark_snr_db": round(_power_db(whole) - _power_db(mark_alone), 1),
        "mark_snr_median_db": round(float(np.median(ratios)), 1),
        "mark_snr_p05_db": round(float(np.quantile(ratios, 0.05)), 1),
        "mark_below_speech_lu": round(
            integrated_lufs(whole, ENGINE_HZ) - integrated_lufs(mark_alone, ENGINE_HZ), 1
        ),
        "marking_rtf": round(marking_s / seconds, 5),
        "searching_rtf": round(searching_s / (len(found) * seconds), 5),
    }


def _coded(samples: Samples, fmt: Format, kbps: int, cut: int) -> tuple[Samples, int]:
    audio = decode(encode(samples, ENGINE_HZ, fmt, bitrate_kbps=kbps))
    return audio.samples[cut:], audio.rate_hz


def _power_db(samples: Samples) -> float:
    return 10.0 * float(np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-20))


def false_positives(windows: Sequence[Samples], keys: Sequence[str]) -> dict[str, float]:
    """How often a mark is found that nobody made."""
    wrong = sum(detect(window, RECORDED_HZ, key).present for key in keys for window in windows)
    trials = len(windows) * len(keys)
    return {
        "unmarked_trials": trials,
        "false_positives": wrong,
        "false_positive_rate": wrong / trials,
        "false_positive_rate_upper_95": float(beta.ppf(0.95, wrong + 1, trials - wrong)),
    }


if __name__ == "__main__":
    sys.exit(main())
