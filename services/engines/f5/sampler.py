"""Solves F5's flow for a batch of segments, each exactly as if it were alone.

Differs from ``CFM.sample`` (``f5_tts/model/cfm.py``) in what a batch shares. There one seed serves all,
text is embedded in the padded batch (its norm runs over the padding too), and attention sees the
padding. Here each segment has its own noise and its own text embedding, and the rest is masked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.engines.f5 import schedule
from services.engines.f5.model import MEL_CHANNELS, LoadedF5

Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Flow:
    """One segment for the sampler.

    Args:
        tokens: vocabulary indices.
        mel: [reference frames, 100] that the speech continues.
        frames: of the whole.
        seed: of its noise.
        cfg_strength: how much to lean on text and clip.
    """

    tokens: Sequence[int]
    mel: Tensor
    frames: int
    seed: int
    cfg_strength: float


@torch.inference_mode()
def sample(
    model: LoadedF5, flows: Sequence[Flow], steps: int, *, cancelled: Cancelled | None = None
) -> list[Tensor]:
    """The mel of every segment: [its frames, 100] float32 on the model's device, reference included.

    Args:
        model: the weights.
        flows: the batch; either all guided (``cfg_strength`` above 0) or none.
        steps: evaluations of the flow.
        cancelled: asked before every step.

    Raises:
        VoxfleetError: CANCELLED; GPU_OUT_OF_MEMORY, which a smaller batch may cure.
    """
    try:
        return _solve(model, flows, steps, cancelled)
    except torch.cuda.OutOfMemoryError as error:
        raise VoxfleetError(
            Reason.GPU_OUT_OF_MEMORY,
            f"the GPU has no room for a batch of {len(flows)} segments this long",
            kind=Kind.EXHAUSTED,
            metadata={"batch_size": len(flows), "frames": max(flow.frames for flow in flows)},
            failure=FailureClass.RESOURCE,
        ) from error
    finally:
        _forget_text(model.transformer)


def _solve(model: LoadedF5, flows: Sequence[Flow], steps: int, cancelled: Cancelled | None) -> list[Tensor]:
    lengths = [flow.frames for flow in flows]
    longest = max(lengths)
    guided = flows[0].cfg_strength > 0
    cond = _padded([flow.mel for flow in flows], longest).to(model.device)
    mask = _mask(lengths, longest, model.device)
    strength = torch.tensor([flow.cfg_strength for flow in flows], device=model.device).view(-1, 1, 1)
    step_cond = cond.to(model.dtype)
    _embed_text(model, flows, longest, guided=guided)
    no_tokens = torch.zeros((len(flows), 1), dtype=torch.long, device=model.device)

    def velocity(x: Tensor, time: float) -> Tensor:
        # With the text's embeddings set beforehand, the network does not look at the tokens.
        predicted: Tensor = model.transformer(
            x=x.to(model.dtype),
            cond=step_cond,
            text=no_tokens,
            time=torch.tensor(time, device=model.device),
            mask=mask,
            cfg_infer=guided,
            cache=True,
        ).float()
        if not guided:
            return predicted
        informed, uninformed = predicted.chunk(2)
        return informed + (informed - uninformed) * strength

    x = _padded([_noise(flow) for flow in flows], longest).to(model.device)
    times = schedule.times(steps)
    for now, after in itertools.pairwise(times):
        if cancelled is not None and cancelled():
            raise VoxfleetError(Reason.CANCELLED, "synthesis was cancelled", kind=Kind.CANCELLED)
        x = x + (after - now) * velocity(x, now)
    return [
        torch.cat([cond[index, : len(flow.mel)], x[index, len(flow.mel) : flow.frames]])
        for index, flow in enumerate(flows)
    ]


def _noise(flow: Flow) -> Tensor:
    # Always drawn on the CPU: a seed then means the same on every device.
    generator = torch.Generator().manual_seed(flow.seed)
    return torch.randn(flow.frames, MEL_CHANNELS, generator=generator)


def _padded(parts: Sequence[Tensor], length: int) -> Tensor:
    """[parts, length, channels], zeros after each part's end."""
    whole = torch.zeros(len(parts), length, parts[0].shape[-1], device=parts[0].device, dtype=parts[0].dtype)
    for index, part in enumerate(parts):
        whole[index, : len(part)] = part
    return whole


def _mask(lengths: Sequence[int], longest: int, device: torch.device) -> Tensor | None:
    """[parts, longest], True where there is a frame; None where nothing is padded."""
    if all(length == longest for length in lengths):
        return None
    positions = torch.arange(longest, device=device)
    return positions[None, :] < torch.tensor(lengths, device=device)[:, None]


def _embed_text(model: LoadedF5, flows: Sequence[Flow], longest: int, *, guided: bool) -> None:
    """Embed each segment's text over its own frames and leave it where the network looks for it."""
    embed = model.transformer.get_submodule("text_embed")
    informed, uninformed = [], []
    for flow in flows:
        tokens = torch.tensor([list(flow.tokens)], dtype=torch.long, device=model.device)
        informed.append(embed(tokens, seq_len=flow.frames, drop_text=False)[0])
        if guided:
            uninformed.append(embed(tokens, seq_len=flow.frames, drop_text=True)[0])
    cond = _padded(informed, longest).to(model.dtype)
    _set_text(model.transformer, cond, _padded(uninformed, longest).to(model.dtype) if guided else cond)


def _set_text(transformer: nn.Module, cond: Tensor | None, uncond: Tensor | None) -> None:
    # DiT keeps these per thread, so that requests in several threads do not mix.
    transformer.text_cond = cond  # type: ignore[assignment]
    transformer.text_uncond = uncond  # type: ignore[assignment]


def _forget_text(transformer: nn.Module) -> None:
    _set_text(transformer, None, None)
