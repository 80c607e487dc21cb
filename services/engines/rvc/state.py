"""What training carries from step to step, and the recipe it follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.common.errors import Reason, invalid
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.discriminator import Discriminator
from services.engines.rvc.heldout import Best
from services.engines.rvc.synthesizer import Synthesizer

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class TrainParams:
    """The recipe.

    Args:
        epochs: passes over the slices.
        max_steps: ends after so many steps at the latest; 0 is no bound.
        precision: ``auto`` is bf16 where a GPU has it, fp16 on older GPUs, fp32 on a CPU.
        mel_weight, kl_weight, feature_weight: of the generator's losses.
        micro_batch: rows that a GPU takes at once; gradients of a batch's parts are added up, so that a
            small memory changes nothing but the time. 0 is all of them.
        validate_steps: how often what is held out is judged; 0 is never.
        patience: judgements without a better one, after which training ends; 0 is never.
        compile: whether the decoder and the critics are compiled (CUDA alone).
        checkpoint_steps, checkpoint_s: how often ``on_checkpoint`` is called; 0 is never.
        progress_s: at most how often ``on_progress`` is called; 0 is every step.
    """

    epochs: int = 200
    max_steps: int = 0
    batch_size: int = 8
    learning_rate: float = 1e-4
    seed: int = 0
    precision: str = "auto"
    lr_decay: float = 0.999875
    beta_1: float = 0.8
    beta_2: float = 0.99
    epsilon: float = 1e-9
    mel_weight: float = 45.0
    kl_weight: float = 1.0
    feature_weight: float = 2.0
    micro_batch: int = 0
    validate_steps: int = 0
    patience: int = 0
    compile: bool = False
    checkpoint_steps: int = 0
    checkpoint_s: float = 0.0
    progress_s: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 1, 100_000), ("batch_size", 1, 256), ("learning_rate", 1e-8, 1.0)):
            if not low <= getattr(self, name) <= high:
                raise invalid(Reason.INVALID_ARGUMENT, f"{name} must be within {low} and {high}", field=name)
        if self.precision not in ("auto", *_PRECISIONS):
            raise invalid(
                Reason.INVALID_ARGUMENT, "precision must be auto, fp32, bf16 or fp16", field="precision"
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


@dataclass(slots=True)
class State:
    """Everything that training carries from one step to the next.

    Args:
        position: slices of this epoch already seen: a resumed run may use another batch size.
        micro_batch: rows at once, where memory did not do for what was asked; 0 is as asked.
        rollbacks: how often a loss was no number. Each halves the learning rate and draws other numbers.
        best: what did best on what is held out, once that was judged.
        unimproved: judgements since then.
    """

    config: ModelConfig
    params: TrainParams
    device: torch.device
    synthesizer: Synthesizer
    discriminator: Discriminator
    optimizer_g: torch.optim.AdamW
    optimizer_d: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    epoch: int = 0
    position: int = 0
    step: int = 0
    micro_batch: int = 0
    rollbacks: int = 0
    best: Best | None = None
    unimproved: int = 0


def new_state(
    config: ModelConfig,
    params: TrainParams,
    device: str = "cpu",
    *,
    pretrained_g: dict[str, Tensor] | None = None,
    pretrained_d: dict[str, Tensor] | None = None,
) -> State:
    """A fresh state, the same for the same seed.

    Args:
        config: sizes of the models.
        params: the recipe.
        device: ``cpu`` or ``cuda``.
        pretrained_g: base weights of the synthesiser to start from. A first layer of another content
            width stays fresh; anything else that does not fit is ``MODEL_CORRUPT``.
        pretrained_d: base weights of the discriminator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        synthesizer = Synthesizer(config)
        discriminator = Discriminator(config)
    if pretrained_g is not None:
        load_weights(synthesizer, pretrained_g, may_differ=("enc_p.emb_phone.weight", "emb_g.weight"))
    if pretrained_d is not None:
        load_weights(discriminator, pretrained_d)
    return assemble(config, params, torch.device(device), synthesizer, discriminator)


def assemble(
    config: ModelConfig,
    params: TrainParams,
    device: torch.device,
    synthesizer: Synthesizer,
    discriminator: Discriminator,
) -> State:
    """Put models on the device and give them optimisers."""
    on_cuda = device.type == "cuda"
    synthesizer, discriminator = synthesizer.to(device).train(), discriminator.to(device).train()
    optimizer_g, optimizer_d = (
        torch.optim.AdamW(
            model.parameters(),
            lr=params.learning_rate,
            betas=(params.beta_1, params.beta_2),
            eps=params.epsilon,
            # The stock trainer is bound by the host's launches: one kernel for all parameters.
            fused=True,
        )
        for model in (synthesizer, discriminator)
    )
    if on_cuda:
        # What is decoded has one length, so the search for the fastest kernels pays off at once.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if params.compile and on_cuda:
        # In place: a wrapper would rename the parameters.
        synthesizer.dec.compile()
        discriminator.compile()
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_type(params, device) == torch.float16)
    return State(config, params, device, synthesizer, discriminator, optimizer_g, optimizer_d, scaler)


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, may_differ: tuple[str, ...] = ()) -> None:
    """Load by name; keys in ``may_differ`` keep the model's own values where shapes disagree."""
    own = model.state_dict()
    merged = {
        name: own[name] if name in may_differ and name in own and own[name].shape != tensor.shape else tensor
        for name, tensor in weights.items()
    }
    try:
        model.load_state_dict(merged)
    except RuntimeError as error:
        raise invalid(Reason.MODEL_CORRUPT, f"the weights do not fit the model: {error}") from error


def autocast_type(params: TrainParams, device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this device; ``None`` is full precision."""
    if device.type != "cuda":
        # Reduced precision on a CPU is slower, and no longer repeatable bit for bit.
        return None
    if params.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return _PRECISIONS[params.precision]
