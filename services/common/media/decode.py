"""Audio files into float32 arrays, through PyAV, with nothing trusted but the content.

The demuxer is forced from the magic bytes, only known codecs may run, and FFmpeg is handed an open
stream with every protocol forbidden: a crafted file cannot make it open a second file, a playlist or a
network address. Limits are judged from the header where it has the facts and again while decoding.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import av
import av.container
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from services.common.media import frames, refusals, wav
from services.common.media import tags as tagging
from services.common.media.formats import CODECS, DEMUXERS, Container, sniff
from services.common.media.resample import StreamResampler

MAX_DURATION_S = 30 * 60.0
MAX_SIZE_BYTES = 300 * 1024 * 1024
MAX_CHANNELS = 8
MIN_RATE_HZ = 4_000
MAX_RATE_HZ = 384_000

Source = str | Path | bytes | bytearray | memoryview
Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a file's header says of its audio.

    ``duration_s`` is None where only decoding can tell (a WebM straight from a browser's recorder);
    ``bit_depth`` is None for lossy codecs. ``tags`` have lower-case keys.
    """

    container: Container
    codec: str
    rate_hz: int
    channels: int
    bit_depth: int | None
    duration_s: float | None
    bit_rate_bps: int | None
    size_bytes: int
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Decoded audio.

    ``samples`` is float32 with full scale ±1, shape [samples] when decoded as mono, else
    [channels, samples] (each channel contiguous); ``rate_hz`` is its rate. ``info`` describes the file it
    came from, at the file's own rate and channels, with the duration that decoding found.
    """

    samples: Samples
    rate_hz: int
    info: StreamInfo

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return int(self.samples.shape[-1]) / self.rate_hz


def probe(source: Source, *, max_size_bytes: int = MAX_SIZE_BYTES) -> StreamInfo:
    """Read the header alone.

    Args:
        source: a path, or the file's bytes.
        max_size_bytes: larger files are refused before they are opened.

    Raises:
        VoxfleetError: AUDIO_EMPTY, FILE_TOO_LARGE, or INVALID_FORMAT (metadata ``supported_formats``).
    """
    with _opened(source, max_size_bytes) as opened:
        return opened.info


def decode(
    source: Source,
    *,
    rate_hz: int | None = None,
    mono: bool = True,
    max_duration_s: float = MAX_DURATION_S,
    max_channels: int = MAX_CHANNELS,
    max_size_bytes: int = MAX_SIZE_BYTES,
) -> Audio:
    """Decode a whole file.

    Args:
        source: a path, or the file's bytes. Names and extensions are ignored.
        rate_hz: resample to this rate; None keeps the file's.
        mono: average the channels into one axis, shape [samples]; else [channels, samples].
        max_duration_s: longer audio is refused, from the header or as soon as decoding passes it.
        max_channels: more are refused.
        max_size_bytes: larger files are refused before they are opened.

    Returns:
        The audio, float32, encoder padding removed where the format records it.

    Raises:
        VoxfleetError: AUDIO_EMPTY (no bytes, or no samples), FILE_TOO_LARGE (``max_size_mb``,
            ``size_mb``), AUDIO_TOO_LONG (``max_duration_s``, ``duration_s``), INVALID_FORMAT
            (``supported_formats``, ``detail``: unknown content, cut short, damaged, too many channels,
            or samples that are no numbers).
    """
    with _opened(source, max_size_bytes) as opened:
        info = opened.info
        if info.channels > max_channels:
            raise refusals.invalid_format(
                f"it has {info.channels} channels; at most {max_channels} are taken"
            )
        if info.duration_s is not None and info.duration_s > max_duration_s:
            raise refusals.too_long(info.duration_s, max_duration_s)
        return _decode_stream(opened, rate_hz=rate_hz, mono=mono, max_duration_s=max_duration_s)


# ---------------------------------------------------------------------------------------------- opening


@dataclass(frozen=True, slots=True)
class _Opened:
    container: av.container.InputContainer
    stream: AudioStream
    info: StreamInfo
    declared_s: float | None
    """The length the header promises, where a shorter file means a damaged one."""


@contextmanager
def _opened(source: Source, max_size_bytes: int) -> Iterator[_Opened]:
    with _as_stream(source) as (stream, size_bytes):
        if size_bytes == 0:
            raise refusals.empty("it has 0 bytes")
        if size_bytes > max_size_bytes:
            raise refusals.too_large(size_bytes, max_size_bytes)
        kind = sniff(stream)
        if kind is None:
            raise refusals.invalid_format("its content is none of the supported formats")
        layout = wav.read_layout(stream, size_bytes) if kind is Container.WAV else None
        if kind is Container.WAV:
            _check_layout(layout)
        try:
            container = av.open(
                stream,
                "r",
                format=DEMUXERS[kind],
                # "none" matches no protocol; an empty list would mean all of them.
                options={"protocol_whitelist": "none", "codec_whitelist": ",".join(sorted(CODECS))},
                metadata_errors="replace",
                buffer_size=1 << 18,
            )
        except (av.error.FFmpegError, ValueError, OverflowError) as error:
            raise refusals.invalid_format(f"its {kind} header is damaged or cut short") from error
        with container:
            found = _audio_stream(container)
            info = _info(kind, container, found, layout, size_bytes)
            declared_s = None if kind in (Container.MP3, Container.OGG) else info.duration_s
            yield _Opened(container, found, info, declared_s)


@contextmanager
def _as_stream(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            size_bytes = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            yield stream, size_bytes
    else:
        yield io.BytesIO(source), len(source)


def _check_layout(layout: wav.WavLayout | None) -> None:
    if layout is None:
        raise refusals.invalid_format("its WAV header has no data chunk: it was cut short")
    if layout.truncated:
        raise refusals.invalid_format(
            f"its WAV header declares {layout.declared_bytes} bytes of samples and {layout.present_bytes} "
            "are there: the recording or the upload was cut short"
        )


def _audio_stream(container: av.container.InputContainer) -> AudioStream:
    if not container.streams.audio:
        raise refusals.empty("it holds no audio track")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        name = context.name if context is not None else "unknown"
        raise refusals.invalid_format(f"its audio is coded as {name}, which is not taken")
    if not MIN_RATE_HZ <= context.sample_rate <= MAX_RATE_HZ:
        raise refusals.invalid_format(
            f"its header gives a sample rate of {context.sample_rate} Hz; "
            f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are taken"
        )
    if context.channels < 1:
        raise refusals.invalid_format("its header gives no channels")
    return stream


def _info(
    kind: Container,
    container: av.container.InputContainer,
    stream: AudioStream,
    layout: wav.WavLayout | None,
    size_bytes: int,
) -> StreamInfo:
    context = stream.codec_context
    duration_s: float | None
    if layout is not None and layout.declared_bytes is None:
        duration_s = layout.duration_s
    elif stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    else:
        duration_s = container.duration / 1_000_000 if container.duration else None
    codec = context.name.removesuffix("float").removeprefix("lib")
    return StreamInfo(
        container=kind,
        codec=codec,
        rate_hz=context.sample_rate,
        channels=context.channels,
        bit_depth=_bit_depth(codec, context.extradata, context.format.name),
        duration_s=duration_s if duration_s is not None and duration_s > 0 else None,
        bit_rate_bps=context.bit_rate or container.bit_rate or None,
        size_bytes=size_bytes,
        tags=MappingProxyType(tagging.unpack({**container.metadata, **stream.metadata})),
    )


_PCM_BITS = {"alaw": 8, "mulaw": 8, "u8": 8}


def _bit_depth(codec: str, extradata: bytes | None, sample_format: str) -> int | None:
    if codec.startswith("pcm_"):
        layout = codec.removeprefix("pcm_")
        return _PCM_BITS.get(layout) or int(layout[1:3])
    if codec == "flac":
        # STREAMINFO: 20 bits of rate, 3 of channels, then 5 of bits less one (RFC 9639, 8.2).
        if extradata is not None and len(extradata) >= 14:
            return ((extradata[12] & 1) << 4 | extradata[13] >> 4) + 1
        return 16 if sample_format.startswith("s16") else 24
    if codec == "alac":
        return 16 if sample_format.startswith("s16") else 24
    return None


# --------------------------------------------------------------------------------------------- decoding

_BLOCK_SAMPLES = 1 << 18
_BAD_PACKET_SHARE = 0.01


def _decode_stream(opened: _Opened, *, rate_hz: int | None, mono: bool, max_duration_s: float) -> Audio:
    info = opened.info
    source = _frames(opened)
    first = next(source, None)
    if first is None:
        if opened.declared_s:
            raise refusals.invalid_format("no sound could be decoded from it: it was cut short")
        raise refusals.empty("its header is followed by no samples")
    # What decodes is the truth: an AAC header may give half the rate that its frames have.
    native_hz, channels = first.sample_rate, len(first.layout.channels)
    if channels > max(2, info.channels):
        raise refusals.invalid_format(f"its header gives {info.channels} channels, its frames {channels}")
    target_hz = rate_hz or native_hz
    width = 1 if mono else channels
    resampler = StreamResampler(width, native_hz, target_hz) if target_hz != native_hz else None
    limit = math.ceil(max_duration_s * native_hz)
    tape = frames.Tape(width, math.ceil((info.duration_s or 0.0) * target_hz) + target_hz // 4)
    pending: list[Samples] = []
    decoded = waiting = 0

    def flush(last: bool) -> None:
        block = np.concatenate(pending, axis=1) if pending else np.zeros((width, 0), np.float32)
        pending.clear()
        frames.check_numbers(block)
        tape.append(resampler(block, last=last) if resampler else block)

    frame: AudioFrame | None = first
    while frame is not None:
        if frame.sample_rate != native_hz or len(frame.layout.channels) != channels:
            raise refusals.invalid_format("its sample rate or channels change halfway")
        decoded += frame.samples
        if decoded > limit + native_hz:
            raise refusals.too_long(decoded / native_hz, max_duration_s)
        planes = frames.planes(frame, channels)
        pending.append(planes.mean(axis=0, keepdims=True) if mono and channels > 1 else planes)
        waiting += frame.samples
        if waiting >= _BLOCK_SAMPLES:
            flush(last=False)
            waiting = 0
        frame = next(source, None)
    flush(last=True)

    native_s = decoded / native_hz
    kept_s = _settle_length(opened, native_s)
    if kept_s > max_duration_s:
        raise refusals.too_long(kept_s, max_duration_s)
    length = min(tape.length, round(kept_s * target_hz)) if kept_s < native_s else tape.length
    samples = tape.upto(length)
    return Audio(
        samples=samples[0] if mono else samples,
        rate_hz=target_hz,
        info=replace(info, rate_hz=native_hz, channels=channels, duration_s=kept_s),
    )


def _frames(opened: _Opened) -> Iterator[AudioFrame]:
    """Decoded frames; a damaged packet is passed over, more than one in a hundred condemn the file."""
    packets = bad = 0
    try:
        for packet in opened.container.demux(opened.stream):
            packets += 1
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                bad += 1
    except av.error.FFmpegError as error:
        raise refusals.invalid_format("its content is damaged") from error
    # The last packet of a demuxer is the empty one that flushes the decoder.
    if bad > max(1, _BAD_PACKET_SHARE * packets) or (bad and bad >= packets - 1):
        raise refusals.invalid_format(f"{bad} of its {packets} packets are damaged")


def _settle_length(opened: _Opened, native_s: float) -> float:
    """The duration to keep, after comparing what came with what the header promised."""
    declared_s = opened.declared_s
    if declared_s is None:
        return native_s
    if native_s < declared_s - max(0.25, 0.01 * declared_s):
        raise refusals.invalid_format(
            f"its header promises {declared_s:.1f} s and {native_s:.1f} s could be decoded: "
            "it was cut short or is damaged"
        )
    # FFmpeg drops AAC's leading padding by the edit list but leaves the rest of the last frame.
    if opened.info.container is Container.M4A and 0 < native_s - declared_s < 0.1:
        return declared_s
    return native_s
