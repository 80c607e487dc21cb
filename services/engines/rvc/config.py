"""The shape of an RVC model: one frozen record, its community list of 18 values, and our presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from services.common.errors import Reason, invalid

FRAMES_PER_S = 100
"""RVC's frame rate: content features, F0 and spectrogram all step by 10 ms."""

_MEL_BANDS = {32_000: 80, 40_000: 125, 48_000: 128}
_ALL_PERIODS = (2, 3, 5, 7, 11, 17, 23, 37)
_MOST_PARTS = 64
"""Layers, heads, upsamplings and the like: upstream has 6 at most, and each is built to be judged."""
_MOST_RATE_HZ = 192_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one synthesiser and its discriminator.

    The first 18 fields are, in this order, the ``config`` list of a community ``.pth`` (upstream
    ``infer/modules/train/train.py`` and ``process_ckpt.py``). The rest that list leaves unsaid.

    Args:
        spec_channels: bins of the linear spectrogram, ``n_fft // 2 + 1``.
        segment_frames: frames that the decoder trains on at a time (upstream: segment size // hop).
        rate_hz: sampling rate of the output; a frame is ``rate_hz // 100`` samples.
        content_width: width of the content features (ContentVec 768, Whisper base 512, v1 256).
        discriminator_periods: one sub-discriminator each.
        discriminator_divisor: divides the discriminator's channels; 1 is upstream's size.
    """

    spec_channels: int
    segment_frames: int
    inter_channels: int
    hidden_channels: int
    filter_channels: int
    heads: int
    layers: int
    kernel_size: int
    dropout: float
    resblock: str
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]
    upsample_rates: tuple[int, ...]
    upsample_initial_channels: int
    upsample_kernel_sizes: tuple[int, ...]
    speakers: int
    speaker_channels: int
    rate_hz: int
    content_width: int = 768
    discriminator_periods: tuple[int, ...] = _ALL_PERIODS
    discriminator_divisor: int = 1

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise invalid(Reason.MODEL_CORRUPT, f"this is not the shape of an RVC v2 model: {problem}")

    @property
    def hop(self) -> int:
        """Samples a frame: the product of the upsampling rates."""
        product = 1
        for rate in self.upsample_rates:
            product *= rate
        return product

    @property
    def fft_size(self) -> int:
        """Window and FFT length of the spectrogram, in samples."""
        return 2 * (self.spec_channels - 1)

    @property
    def mel_bands(self) -> int:
        """Bands of the mel loss at this rate (upstream ``configs/v2/*.json``; 80 for other rates)."""
        return _MEL_BANDS.get(self.rate_hz, 80)

    @property
    def segment_samples(self) -> int:
        """Samples that the decoder trains on at a time."""
        return self.segment_frames * self.hop

    @property
    def rate_label(self) -> str:
        """The rate as community files write it, such as ``40k``."""
        return f"{self.rate_hz // 1000}k"

    def to_list(self) -> list[Any]:
        """The 18 values of a community ``.pth``."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)[:18]]
        return [_thaw(value) for value in values]

    @classmethod
    def from_list(cls, values: Sequence[Any], *, content_width: int = 768) -> ModelConfig:
        """The configuration that :meth:`to_list` wrote; ``MODEL_CORRUPT`` where it is none."""
        if len(values) != 18:
            raise invalid(Reason.MODEL_CORRUPT, f"an RVC config has 18 values, this one has {len(values)}")
        names = [field.name for field in dataclasses.fields(cls)[:18]]
        return cls.from_dict({**dict(zip(names, values, strict=True)), "content_width": content_width})

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, by field name."""
        return {field.name: _thaw(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The configuration that :meth:`to_dict` wrote; ``MODEL_CORRUPT`` where it is none."""
        try:
            return cls(**{key: _typed(key, value) for key, value in data.items()})
        except (TypeError, ValueError) as error:
            raise invalid(
                Reason.MODEL_CORRUPT, f"the model's configuration does not parse: {error}"
            ) from error


_FLOATS = {"dropout"}
_STRINGS = {"resblock"}
_TUPLES = {"resblock_kernel_sizes", "upsample_rates", "upsample_kernel_sizes", "discriminator_periods"}


def _typed(name: str, value: Any) -> Any:
    if name in _FLOATS:
        return float(value)
    if name in _STRINGS:
        return str(value)
    if name in _TUPLES:
        return tuple(int(item) for item in value)
    if name == "resblock_dilations":
        return tuple(tuple(int(item) for item in row) for row in value)
    if name == "rate_hz" and isinstance(value, str):
        # Community files write "40k" or 40000.
        return int(value[:-1]) * 1000 if value.endswith("k") else int(value)
    return int(value)


def _thaw(value: Any) -> Any:
    return [_thaw(item) for item in value] if isinstance(value, tuple) else value


def _problem(config: ModelConfig) -> str:
    sizes = [
        *(getattr(config, field.name) for field in dataclasses.fields(config) if field.type == "int"),
        *config.upsample_rates,
        *config.upsample_kernel_sizes,
        *config.resblock_kernel_sizes,
        *(size for row in config.resblock_dilations for size in row),
    ]
    if min(sizes) < 1 or max(sizes) > 1_000_000:
        return "a size is below 1 or absurdly large"
    parts = (config.layers, config.heads, len(config.upsample_rates), len(config.resblock_kernel_sizes))
    if max(parts) > _MOST_PARTS or max(map(len, config.resblock_dilations), default=0) > _MOST_PARTS:
        return f"it has more than {_MOST_PARTS} parts of a kind"
    if config.rate_hz > _MOST_RATE_HZ:
        return f"its rate is above {_MOST_RATE_HZ} Hz"
    if config.hop * FRAMES_PER_S != config.rate_hz:
        return (
            f"a frame has {config.hop} samples, at {config.rate_hz} Hz it must have {config.rate_hz // 100}"
        )
    if len(config.upsample_rates) != len(config.upsample_kernel_sizes):
        return "upsampling rates and kernels differ in number"
    if len(config.resblock_kernel_sizes) != len(config.resblock_dilations):
        return "residual kernels and dilations differ in number"
    if config.resblock not in ("1", "2"):
        return f"residual block {config.resblock!r} is unknown"
    if config.hidden_channels % config.heads or config.inter_channels % 2:
        return "channels do not divide among the heads or halves"
    if config.upsample_initial_channels >> len(config.upsample_rates) < 1:
        return "too few channels for that many upsamplings"
    return ""


def _full(spec_channels: int, segment_frames: int, rates: str, kernels: str, rate_hz: int) -> ModelConfig:
    return ModelConfig(
        spec_channels=spec_channels,
        segment_frames=segment_frames,
        inter_channels=192,
        hidden_channels=192,
        filter_channels=768,
        heads=2,
        layers=6,
        kernel_size=3,
        dropout=0.0,
        resblock="1",
        resblock_kernel_sizes=(3, 7, 11),
        resblock_dilations=((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        upsample_rates=tuple(int(rate) for rate in rates.split()),
        upsample_initial_channels=512,
        upsample_kernel_sizes=tuple(int(size) for size in kernels.split()),
        speakers=109,
        speaker_channels=256,
        rate_hz=rate_hz,
    )


V2_32K = _full(513, 40, "10 8 2 2", "20 16 4 4", 32_000)
V2_40K = _full(1025, 32, "10 10 2 2", "16 16 4 4", 40_000)
V2_48K = _full(1025, 36, "12 10 2 2", "24 20 4 4", 48_000)
TINY_40K = ModelConfig(
    spec_channels=1025,
    segment_frames=32,
    inter_channels=32,
    hidden_channels=32,
    filter_channels=64,
    heads=2,
    layers=1,
    kernel_size=3,
    dropout=0.0,
    resblock="1",
    resblock_kernel_sizes=(3,),
    resblock_dilations=((1, 3, 5),),
    upsample_rates=(10, 10, 2, 2),
    upsample_initial_channels=64,
    upsample_kernel_sizes=(16, 16, 4, 4),
    speakers=1,
    speaker_channels=16,
    rate_hz=40_000,
    discriminator_periods=(2,),
    discriminator_divisor=4,
)
"""For machines without a GPU and for CI: it learns visibly in minutes, and nobody would ship its sound."""

PRESETS = MappingProxyType({"v2_32k": V2_32K, "v2_40k": V2_40K, "v2_48k": V2_48K, "tiny_40k": TINY_40K})


def preset(name: str, *, content_width: int) -> ModelConfig:
    """A preset by name, for a content encoder of that width; ``INVALID_ARGUMENT`` where unknown."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise invalid(
            Reason.INVALID_ARGUMENT, f"model preset {name!r} is unknown; use one of: {known}", field="preset"
        )
    return dataclasses.replace(PRESETS[name], content_width=content_width)
