"""F5's flow, one evaluation at a time, for any set of segments, each exactly as if it were alone.

Differs from ``CFM.sample`` (``f5_tts/model/cfm.py``) in what a batch shares. There one seed and one row of
times serve all, text is embedded in the padded batch (its norm runs over the padding too), and attention
sees the padding. Here each segment has its own noise, its own times and its own text embedding, and the
rest is masked; so segments may join and leave between any two evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.engines.f5 import schedule
from services.engines.f5.model import MEL_CHANNELS, LoadedF5


@dataclass(frozen=True, slots=True)
class Flow:
    """One segment to be computed.

    Args:
        tokens: vocabulary indices.
        mel: [reference frames, 100] that the speech continues.
        frames: of the whole.
        seed: of its noise.
        cfg_strength: how much to lean on text and clip; 0 halves the work.
        steps: evaluations of the flow.
    """

    tokens: Sequence[int]
    mel: Tensor
    frames: int
    seed: int
    cfg_strength: float
    steps: int

    @property
    def guided(self) -> bool:
        """Whether each evaluation is two, with text and clip and without; only like may share a batch."""
        return self.cfg_strength > 0


class FlowState:
    """How far a segment is. Everything lies on the model's device.

    Args:
        model: the weights.
        flow: the segment.
    """

    @torch.inference_mode()
    def __init__(self, model: LoadedF5, flow: Flow) -> None:
        self.flow = flow
        self.step = 0
        self._times = schedule.times(flow.steps)
        device, frames = model.device, flow.frames
        # Always drawn on the CPU: a seed then means the same on every device.
        generator = torch.Generator().manual_seed(flow.seed)
        self.x = torch.randn(frames, MEL_CHANNELS, generator=generator).to(device)
        self.cond = torch.zeros(frames, MEL_CHANNELS, device=device)
        self.cond[: len(flow.mel)] = flow.mel.to(device)
        tokens = torch.tensor([list(flow.tokens)], dtype=torch.long, device=device)
        # Over its own frames: in a padded batch its norm would run over the padding too.
        embed = model.transformer.get_submodule("text_embed")
        self.informed = embed(tokens, seq_len=frames, drop_text=False)[0].to(model.dtype)
        self.uninformed = (
            embed(tokens, seq_len=frames, drop_text=True)[0].to(model.dtype) if flow.guided else self.informed
        )

    @property
    def time(self) -> float:
        """Where it is, from 0 (noise) to 1 (speech)."""
        return self._times[self.step]

    @property
    def stride(self) -> float:
        """How far its next evaluation takes it."""
        return self._times[self.step + 1] - self._times[self.step]

    @property
    def done(self) -> bool:
        """Whether it has arrived."""
        return self.step == self.flow.steps

    @torch.inference_mode()
    def mel(self) -> Tensor:
        """[frames, 100] float32: the reference as it was, and what was made."""
        kept = len(self.flow.mel)
        return torch.cat([self.cond[:kept], self.x[kept:]])


class Evaluator:
    """Evaluates the network for sets of segments; keeps a set packed for as long as it stays the same.

    For one thread at a time.

    Args:
        model: the weights.
    """

    def __init__(self, model: LoadedF5) -> None:
        self._model = model
        self._packed: _Packed | None = None

    @torch.inference_mode()
    def advance(self, states: Sequence[FlowState]) -> None:
        """One evaluation for each segment; all of them guided, or none. Where it raises, none has moved."""
        packed = self._packed
        if packed is None or packed.states != tuple(states):
            packed = self._packed = _Packed(self._model, tuple(states))
        packed.advance()
        for state in states:
            state.step += 1

    def forget(self) -> None:
        """Lets go of the set that was last evaluated."""
        self._packed = None
        _set_text(self._model.transformer, None, None)


class _Packed:
    """A set of segments in tensors of one length; a segment's ``x`` is a view into them."""

    def __init__(self, model: LoadedF5, states: tuple[FlowState, ...]) -> None:
        self.states = states
        self._model = model
        lengths = [state.flow.frames for state in states]
        longest, device = max(lengths), model.device
        self._guided = states[0].flow.guided
        self._x = _padded([state.x for state in states], longest)
        for index, state in enumerate(states):
            state.x = self._x[index, : state.flow.frames]
        self._cond = _padded([state.cond for state in states], longest).to(model.dtype)
        self._informed = _padded([state.informed for state in states], longest)
        self._uninformed = (
            _padded([state.uninformed for state in states], longest) if self._guided else self._informed
        )
        self._mask = _mask(lengths, longest, device)
        strengths = [state.flow.cfg_strength for state in states]
        self._strength = torch.tensor(strengths, device=device).view(-1, 1, 1)
        self._no_tokens = torch.zeros((len(states), 1), dtype=torch.long, device=device)

    def advance(self) -> None:
        device = self._model.device
        times = torch.tensor([state.time for state in self.states], device=device)
        strides = torch.tensor([state.stride for state in self.states], device=device)
        # With the text's embeddings set beforehand, the network does not look at the tokens.
        _set_text(self._model.transformer, self._informed, self._uninformed)
        try:
            predicted: Tensor = self._model.transformer(
                x=self._x.to(self._model.dtype),
                cond=self._cond,
                text=self._no_tokens,
                time=times,
                mask=self._mask,
                cfg_infer=self._guided,
                cache=True,
            ).float()
        finally:
            _set_text(self._model.transformer, None, None)
        if self._guided:
            informed, uninformed = predicted.chunk(2)
            predicted = informed + (informed - uninformed) * self._strength
        # In place and last: whatever fails before has moved nothing.
        self._x += strides.view(-1, 1, 1) * predicted


def sample(model: LoadedF5, flows: Sequence[Flow]) -> list[Tensor]:
    """The mel of every segment, all computed together: [its frames, 100] float32.

    Args:
        model: the weights.
        flows: either all guided (``cfg_strength`` above 0) or none.
    """
    evaluator = Evaluator(model)
    states = [FlowState(model, flow) for flow in flows]
    while moving := [state for state in states if not state.done]:
        evaluator.advance(moving)
    evaluator.forget()
    return [state.mel() for state in states]


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


def _set_text(transformer: nn.Module, cond: Tensor | None, uncond: Tensor | None) -> None:
    # DiT keeps these per thread, so that requests in several threads do not mix.
    transformer.text_cond = cond  # type: ignore[assignment]
    transformer.text_uncond = uncond  # type: ignore[assignment]
