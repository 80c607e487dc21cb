"""A plain loop of the stock recipe over our model: what upstream's trainer does in a step, and no more.

After upstream's ``infer/modules/train/train.py`` and ``data_utils.py``: each batch is read from the files of
its slices, spectrograms among them; the critic judges real and made audio in passes of their own, and its
gradients are computed in the generator's step too; AdamW is not fused, ``cudnn.benchmark`` is off; the norm
of all gradients is read parameter by parameter after either backward pass. On a GPU it runs in fp16 with a
scaler.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from services.engines.rvc import f0 as pitch
from services.engines.rvc.features import FeatureSet
from services.engines.rvc.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss
from services.engines.rvc.mel import linear_spectrogram, log_mel
from services.engines.rvc.state import State
from services.engines.rvc.synthesizer import cut_frames

Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class SliceFiles(Dataset[Row]):
    """Slices as files: content at 50 Hz, coarse and fine F0, samples, and the spectrogram that was cached."""

    def __init__(self, folder: Path, features: FeatureSet, state: State) -> None:
        self._paths = []
        for number, part in enumerate(features.slices):
            path = folder / f"{number}"
            path.mkdir()
            np.save(path / "content.npy", part.content)
            np.save(path / "coarse.npy", pitch.coarse(part.f0_hz))
            np.save(path / "f0.npy", part.f0_hz)
            np.save(path / "samples.npy", part.samples)
            spectrogram = linear_spectrogram(torch.from_numpy(part.samples)[None], state.config)[0]
            torch.save(spectrogram, str(path / "spectrogram.pt"))
            self._paths.append(path)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Row:
        path = self._paths[index]
        content = np.repeat(np.load(path / "content.npy"), 2, axis=0)
        f0_hz = np.load(path / "f0.npy")
        return (
            torch.from_numpy(content[: len(f0_hz)]),
            torch.from_numpy(np.load(path / "coarse.npy")),
            torch.from_numpy(f0_hz),
            torch.from_numpy(np.load(path / "samples.npy")),
            torch.load(str(path / "spectrogram.pt"), weights_only=True),
        )


class StockTrainer:
    """The loop.

    Args:
        state: fresh; its models are used, not its optimisers.
        features: slices of equal length, so that no batch is padded.
        folder: an empty one, for the slices' files.
    """

    def __init__(self, state: State, features: FeatureSet, folder: Path) -> None:
        self._state = state
        params = state.params
        self._optimizer_g, self._optimizer_d = (
            torch.optim.AdamW(
                model.parameters(),
                params.learning_rate,
                betas=(params.beta_1, params.beta_2),
                eps=params.epsilon,
            )
            for model in (state.synthesizer, state.discriminator)
        )
        self._half = state.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(state.device.type, enabled=self._half)
        self._loader = DataLoader(
            SliceFiles(folder, features, state), batch_size=params.batch_size, shuffle=True, drop_last=True
        )
        self._batches = iter(self._loader)

    def step(self) -> float:
        """One update of either model; returns the generator's loss."""
        state, config, params = self._state, self._state.config, self._state.params
        rows = next(self._batches, None)
        if rows is None:
            self._batches = iter(self._loader)
            rows = next(self._batches)
        content, coarse, f0_hz, samples, spectrogram = (row.to(state.device) for row in rows)
        lengths = torch.full((len(content),), content.shape[1], device=state.device)
        autocast = torch.autocast(state.device.type, dtype=torch.float16, enabled=self._half)
        with autocast:
            made, starts, gaussians = state.synthesizer(
                content,
                coarse,
                f0_hz,
                spectrogram=spectrogram,
                lengths=lengths,
                speaker_ids=torch.zeros_like(lengths),
            )
        frames = samples.view(len(samples), -1, config.hop).transpose(1, 2)
        real = cut_frames(frames, starts, config.segment_frames).transpose(1, 2).flatten(1).unsqueeze(1)
        made = made.float()
        with autocast:
            judged = state.discriminator(real), state.discriminator(made.detach())
            loss_d = discriminator_loss(*judged)
        self._update(self._optimizer_d, state.discriminator, loss_d)
        with autocast:
            real_judged, made_judged = state.discriminator(real), state.discriminator(made)
            loss_fm = params.feature_weight * feature_loss(real_judged, made_judged)
            loss_adversarial = adversarial_loss(made_judged)
        target_mel = cut_frames(log_mel(spectrogram, config), starts, config.segment_frames)
        made_mel = log_mel(linear_spectrogram(made.squeeze(1), config), config)
        loss_mel = params.mel_weight * (target_mel - made_mel).abs().mean()
        loss_g = loss_adversarial + loss_fm + loss_mel + params.kl_weight * kl_loss(gaussians)
        self._update(self._optimizer_g, state.synthesizer, loss_g)
        self._scaler.update()
        return float(loss_g.detach())

    def _update(self, optimizer: torch.optim.AdamW, model: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(optimizer)
        sum(
            float(parameter.grad.norm(2)) ** 2
            for parameter in model.parameters()
            if parameter.grad is not None
        )
        self._scaler.step(optimizer)
