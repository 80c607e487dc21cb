"""The losses of RVC training (upstream ``infer/lib/train/losses.py``; LSGAN, HiFi-GAN and VITS)."""

from __future__ import annotations

import torch
from torch import Tensor

from services.engines.rvc.discriminator import Judgement
from services.engines.rvc.synthesizer import Gaussians


def discriminator_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Least squares towards 1 for real and 0 for generated audio, summed over discriminators."""
    terms = [
        (1 - real_scores.float()).square().mean() + made_scores.float().square().mean()
        for (real_scores, _), (made_scores, _) in zip(real, made, strict=True)
    ]
    return torch.stack(terms).sum()


def adversarial_loss(made: list[Judgement]) -> Tensor:
    """Least squares of the generated audio's scores towards 1."""
    return torch.stack([(1 - scores.float()).square().mean() for scores, _ in made]).sum()


def feature_loss(real: list[Judgement], made: list[Judgement]) -> Tensor:
    """Mean absolute difference of every feature map, summed, not weighted."""
    terms = [
        (target.float().detach() - got.float()).abs().mean()
        for (_, real_maps), (_, made_maps) in zip(real, made, strict=True)
        for target, got in zip(real_maps, made_maps, strict=True)
    ]
    return torch.stack(terms).sum()


def kl_loss(gaussians: Gaussians) -> Tensor:
    """KL of posterior to prior per valid frame, estimated at the sample (VITS, equation 4)."""
    log_scale = gaussians.prior_log_scale.float()
    distance = (gaussians.flowed.float() - gaussians.prior_mean.float()).square()
    kl = log_scale - gaussians.posterior_log_scale.float() - 0.5 + 0.5 * distance * torch.exp(-2 * log_scale)
    return (kl * gaussians.mask).sum() / gaussians.mask.sum()
