"""Runs in the reference interpreter: one upstream package, asked by JSON lines, arrays in files.

``reference.py`` starts it and says what the requests are. The models are upstream's, unchanged; what they
take in and give is copied on the way (``_Recorder``), and their noise can be left out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from services.engines import torchaudio_shim

_RANDN_LIKE = torch.randn_like


class _Recorder:
    """Keeps what went through the models of the last conversion."""

    def __init__(self) -> None:
        self.seen: dict[str, np.ndarray[Any, Any]] = {}

    def wrap(self, owner: Any, name: str, keep: Callable[[Any, Any], dict[str, Any]]) -> None:
        """Call ``keep(arguments, result)`` at every call of a method, and store what it returns."""
        inner = getattr(owner, name)
        if getattr(inner, "recorded", False):
            return

        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            self.seen |= {key: np.asarray(value) for key, value in keep(args, result).items()}
            return result

        recorded.recorded = True  # type: ignore[attr-defined]
        setattr(owner, name, recorded)


class _RvcPython:
    """``rvc-python`` through its own class."""

    def __init__(self, hubert: str, rmvpe: str) -> None:
        del hubert, rmvpe  # the copy of the package holds links to them
        import rvc_python.infer as package
        from rvc_python.modules.vc.utils import load_hubert

        # Its constructor downloads what it does not see; what it needs is already there.
        package.download_rvc_models = lambda *_: None
        self.rvc = package.RVCInference(device="cpu:0")
        encoder = self.rvc.vc.hubert_model = load_hubert(self.rvc.config, self.rvc.lib_dir)
        self.recorder = _Recorder()
        self.recorder.wrap(encoder, "extract_features", lambda _, made: {"content": made[0][0].numpy()})
        # What v1 reads is projected after that.
        self.recorder.wrap(encoder.final_proj, "forward", lambda _, made: {"content": made[0].numpy()})

    def load(self, pth: str, index: str, version: str) -> None:
        self.rvc.models["voice"] = {"pth": pth, "index": index}
        self.rvc.load_model("voice", version)

    def convert(self, source: str, asked: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        vc = self.rvc.vc
        self.recorder.wrap(vc.net_g, "infer", _model_call)
        made = vc.vc_single(
            sid=0,
            input_audio_path=source,
            f0_up_key=asked["pitch_shift"],
            f0_file="",
            f0_method=asked["f0_method"],
            file_index=self.rvc.models["voice"]["index"] if asked["index_rate"] else "",
            file_index2="",
            index_rate=asked["index_rate"],
            filter_radius=asked["filter_radius"],
            resample_sr=0,
            rms_mix_rate=asked["rms_mix_rate"],
            protect=asked["protect"],
        )
        if not isinstance(made, np.ndarray):
            # It swallows whatever is raised, and returns the traceback as text.
            raise RuntimeError(str(made[0]))  # noqa: TRY004 - what upstream raised, not what we were given
        return made, int(vc.tgt_sr)


class _InferRvcPython:
    """``infer-rvc-python`` through its own class."""

    def __init__(self, hubert: str, rmvpe: str) -> None:
        from infer_rvc_python import BaseLoader

        self.loader = BaseLoader(only_cpu=True, hubert_path=hubert, rmvpe_path=rmvpe)
        self.recorder = _Recorder()
        self.voice = ("", "")

    def load(self, pth: str, index: str, version: str) -> None:
        del version  # it reads it from the file
        self.voice = (pth, index)

    def convert(self, source: str, asked: dict[str, Any]) -> tuple[np.ndarray[Any, Any], int]:
        # Its reader of files starts the ffmpeg program, and from arrays it has no harvest.
        samples, rate_hz = soundfile.read(source, dtype="float32")
        self.loader.apply_conf(
            tag="voice",
            file_model=self.voice[0],
            pitch_algo=asked["f0_method"],
            pitch_lvl=asked["pitch_shift"],
            file_index=self.voice[1],
            index_influence=asked["index_rate"],
            respiration_median_filtering=asked["filter_radius"],
            envelope_ratio=asked["rms_mix_rate"],
            consonant_breath_protection=asked["protect"],
        )
        made, rate_hz = self.loader.generate_from_cache(audio_data=(samples, rate_hz), tag="voice")
        return made, int(rate_hz)


def _model_call(args: Any, result: Any) -> dict[str, Any]:
    features, _, coarse, fine, _ = args
    return {
        "features": features[0].numpy(),
        "coarse": coarse[0].numpy(),
        "f0_hz": fine[0].numpy(),
        "samples": result[0][0, 0].numpy(),
    }


class _Desk:
    """Answers requests."""

    def __init__(self) -> None:
        self.package: Any = None

    def start(self, package: str, hubert: str, rmvpe: str) -> None:
        self.package = {"rvc-python": _RvcPython, "infer-rvc-python": _InferRvcPython}[package](hubert, rmvpe)

    def load(self, pth: str, index: str, version: str) -> None:
        self.package.load(pth, index, version)

    def convert(self, source: str, target: str, noise: bool, **asked: Any) -> dict[str, float]:
        vars(torch)["randn_like"] = _RANDN_LIKE if noise else torch.zeros_like
        began_s = time.perf_counter()
        made, rate_hz = self.package.convert(source, asked)
        took_s = time.perf_counter() - began_s
        np.savez(target, made=made, rate_hz=rate_hz, **self.package.recorder.seen)
        return {"took_s": took_s}

    def make(self, config: list[Any], version: str, seed: int, target: str, base: str) -> None:
        """Write random weights of upstream's own class: a community voice, and base weights to train from."""
        from rvc_python.lib.infer_pack import models

        kinds = {"v1": models.SynthesizerTrnMs256NSFsid, "v2": models.SynthesizerTrnMs768NSFsid}
        torch.manual_seed(seed)
        weights = kinds[version](*config, is_half=False).state_dict()
        torch.save({"model": weights, "iteration": 1}, base)
        kept = {name: tensor.half() for name, tensor in weights.items() if "enc_q" not in name}
        label = f"{config[-1] // 1000}k"
        torch.save(
            {"weight": kept, "config": config, "info": "1epoch", "sr": label, "f0": 1, "version": version},
            target,
        )

    def rmvpe(self, weights: str, source: str, target: str, seed: int) -> None:
        """Write random weights of upstream's RMVPE where there are none, and what they find in samples."""
        from infer_rvc_python.lib import rmvpe

        if not Path(weights).exists():
            torch.manual_seed(seed)
            torch.save(rmvpe.E2E(4, 1, (2, 2)).state_dict(), weights)
        model = rmvpe.RMVPE(weights, is_half=False, device="cpu")
        samples = np.load(source)
        mel = model.mel_extractor(torch.from_numpy(samples)[None], center=True)
        np.savez(
            target,
            salience=model.mel2hidden(mel)[0].numpy(),
            f0_hz=model.infer_from_audio(samples, thred=0.03),
        )


def main() -> None:
    """Answer until the input ends. What upstream prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torchaudio_shim.install()
    desk = _Desk()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": True, **(getattr(desk, request.pop("do"))(**request) or {})}
        except Exception as error:  # noqa: BLE001 - it is told
            answer = {"ok": False, "why": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
