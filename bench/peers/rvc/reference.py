"""One of upstream's packages as a resident process in the interpreter of ``make rvc-reference``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.engines.rvc.conversion import ConvertParams
from services.stack.config import inherited

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / ".rvc-reference"
ABSENT = "upstream's RVC packages are not installed: make rvc-reference"
_HERE = Path(__file__).parent
_PACKAGES = ("rvc_python", "infer_rvc_python")


class ReferenceFailedError(RuntimeError):
    """Upstream raised, or its process ended; the text says what."""


def present() -> bool:
    """Whether ``make rvc-reference`` has been run."""
    return (REFERENCE / "made-from").is_file()


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion gave, and what went through upstream's models on the way (``rvc-python`` alone).

    Args:
        made: ``[n]`` 16-bit samples.
        rate_hz: of ``made``.
        took_s: seconds of the conversion itself, reading the file included.
        seen: ``content`` (of the encoder), ``features``, ``coarse`` and ``f0_hz`` (into the synthesiser),
            ``samples`` (out of it); of the last chunk.
    """

    made: NDArray[np.int16]
    rate_hz: int
    took_s: float
    seen: dict[str, NDArray[Any]]


class Reference:
    """The process; :func:`running` makes and ends it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """One request of ``child.py``. Errors: :class:`ReferenceFailedError`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"do": do, **request}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise ReferenceFailedError(f"upstream's process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise ReferenceFailedError(answer["why"])
        return answer

    def load(self, pth: Path, index: Path | None, *, version: str) -> None:
        """Load a community voice."""
        self.ask("load", pth=str(pth), index=str(index or ""), version=version)

    def convert(self, source: Path, params: ConvertParams, *, noise: bool = True) -> Converted:
        """Convert a sound file; without ``noise`` every random number that the model draws is 0."""
        target = self._folder / "made.npz"
        answer = self.ask(
            "convert",
            source=str(source),
            target=str(target),
            noise=noise,
            pitch_shift=round(params.pitch_shift),
            f0_method=params.f0_method,
            index_rate=params.index_rate,
            filter_radius=params.filter_radius,
            rms_mix_rate=params.rms_mix_rate,
            protect=params.protect,
        )
        with np.load(target) as arrays:
            seen = {name: arrays[name] for name in arrays.files}
        return Converted(seen.pop("made"), int(seen.pop("rate_hz")), float(answer["took_s"]), seen)


@contextmanager
def running(
    package: str, folder: Path, hubert: Path, *, threads: int, rmvpe: Path | None = None
) -> Iterator[Reference]:
    """A process with ``rvc-python`` or ``infer-rvc-python``.

    Args:
        package: which.
        folder: for copies of the packages, which rewrite their own files, and for what passes by file.
        hubert: the content encoder, a folder.
        threads: CPU threads of it.
        rmvpe: weights, where there are any.
    """
    assert present(), ABSENT
    site = next(REFERENCE.glob("lib/python*/site-packages"))
    copies = folder / "packages"
    for name in _PACKAGES:
        shutil.copytree(site / name, copies / name, ignore=shutil.ignore_patterns("__pycache__"))
    base = copies / "rvc_python" / "base_model"
    base.mkdir(exist_ok=True)
    (base / "hubert_base.pt").symlink_to(hubert)
    if rmvpe is not None:
        (base / "rmvpe.pt").symlink_to(rmvpe)
    roots = os.pathsep.join(map(str, (copies, _HERE / "stubs", ROOT)))
    env = inherited(os.environ) | {
        "PYTHONPATH": roots,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    with (folder / "upstream.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [REFERENCE / "bin" / "python", "-P", _HERE / "child.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
            cwd=folder,
        )
        try:
            reference = Reference(process, folder)
            reference.ask("start", package=package, hubert=str(hubert), rmvpe=str(rmvpe or ""))
            yield reference
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
