"""float32 arrays into audio files, through PyAV. The same input gives the same bytes."""

from __future__ import annotations

import enum
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast

import av
import av.container
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.core import Flags
from numpy.typing import NDArray

from services.common.media import tags as tagging
from services.common.media.formats import Container
from services.common.media.resample import StreamResampler, resample


class Format(enum.StrEnum):
    """A file format that is written."""

    WAV = "wav"
    FLAC = "flac"
    MP3 = "mp3"
    OPUS = "opus"
    AAC = "aac"

    @property
    def content_type(self) -> str:
        """The MIME type."""
        return _RECIPES[self].content_type

    @property
    def extension(self) -> str:
        """The file name's ending, without the dot."""
        return _RECIPES[self].extension

    @property
    def container(self) -> Container:
        """What :func:`services.common.media.formats.sniff` finds in such a file."""
        return _RECIPES[self].container

    @property
    def lossless(self) -> bool:
        """Whether ``bit_depth`` applies, and not ``bitrate_kbps``."""
        return self in (Format.WAV, Format.FLAC)


@dataclass(frozen=True, slots=True)
class _Recipe:
    muxer: str
    codec: str
    container: Container
    content_type: str
    extension: str
    sample_format: str
    rates_hz: tuple[int, ...] = ()
    kbps_per_channel: int = 0


_MPEG_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_RECIPES = {
    Format.WAV: _Recipe("wav", "", Container.WAV, "audio/wav", "wav", ""),
    Format.FLAC: _Recipe("flac", "flac", Container.FLAC, "audio/flac", "flac", ""),
    Format.MP3: _Recipe(
        "mp3", "libmp3lame", Container.MP3, "audio/mpeg", "mp3", "fltp", _MPEG_RATES_HZ, kbps_per_channel=96
    ),
    Format.OPUS: _Recipe(
        "ogg", "libopus", Container.OGG, "audio/ogg", "opus", "flt", (48000,), kbps_per_channel=48
    ),
    Format.AAC: _Recipe(
        "ipod",
        "aac",
        Container.M4A,
        "audio/mp4",
        "m4a",
        "fltp",
        (*_MPEG_RATES_HZ, 64000, 88200, 96000),
        kbps_per_channel=96,
    ),
}
_CHUNK_SAMPLES = 1 << 16


def encode(
    samples: NDArray[np.float32],
    rate_hz: int,
    fmt: Format,
    *,
    bit_depth: Literal[16, 24] = 16,
    bitrate_kbps: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a whole clip.

    Args:
        samples: float32, [samples] or [channels, samples] with one or two channels; beyond ±1 is clipped.
        rate_hz: their rate. Opus is written at 48 kHz, MP3 and AAC at the next rate that they have.
        fmt: the file format.
        bit_depth: 16 or 24, for WAV and FLAC; no dither is added.
        bitrate_kbps: for MP3, Opus and AAC; by default 96, 48 and 96 a channel.
        metadata: tags, written into the file; keys are lower-cased, values keep UTF-8.

    Returns:
        The file's bytes, the same for the same arguments.

    Raises:
        ValueError: no samples, more than two channels, or an argument that does not apply.
    """
    recipe = _RECIPES[fmt]
    planes = np.atleast_2d(samples)
    if planes.ndim != 2 or planes.shape[1] == 0 or planes.shape[0] > 2:
        raise ValueError(f"samples are [samples] or [1 or 2, samples] and not empty, not {samples.shape}")
    if bit_depth not in (16, 24):
        raise ValueError(f"a bit depth of {bit_depth} is not written; 16 and 24 are")
    if bitrate_kbps is not None and (fmt.lossless or bitrate_kbps < 1):
        raise ValueError(f"{fmt} takes no bit rate of {bitrate_kbps} kbit/s")
    target_hz = written_rate_hz(fmt, rate_hz)
    planes = resample(planes, rate_hz, target_hz)
    rate_hz = target_hz

    buffer = io.BytesIO()
    # Own keys survive in M4A only with this flag, and its length is exact only on a clock of samples (the
    # default one ticks milliseconds). Two-pass "faststart" needs a real file.
    m4a_options = {"movflags": "use_metadata_tags", "movie_timescale": str(rate_hz)}
    options = m4a_options if fmt is Format.AAC else {}
    with av.open(buffer, "w", format=recipe.muxer, container_options=options) as container:
        channels = planes.shape[0]
        stream, sample_format = _opened(
            container,
            fmt,
            rate_hz,
            channels,
            bit_depth=bit_depth,
            bitrate_kbps=bitrate_kbps,
            metadata=metadata,
        )
        _write(container, stream, planes, rate_hz, sample_format)
        container.mux(stream.encode(None))
    return buffer.getvalue()


def written_rate_hz(fmt: Format, rate_hz: int) -> int:
    """The rate at which the format holds samples of that rate: the next one up that it has."""
    rates_hz = _RECIPES[fmt].rates_hz
    return min((hz for hz in rates_hz if hz >= rate_hz), default=max(rates_hz)) if rates_hz else rate_hz


class StreamEncoder:
    """A file that is written while its samples are made: bytes come as they are ready and never change.

    Such a file does not know its length. A FLAC's header says "unknown", an MP3 has no index and no count of
    the encoder's delay, an M4A is fragmented; players and :func:`services.common.media.decode.decode` take
    them. Calls may come from different threads; a second one waits for the first.

    Args:
        rate_hz: of the samples.
        fmt: the file format; WAV, which begins with its length, is not written so.
        channels: 1 or 2.
        bitrate_kbps: as :func:`encode` takes it.
        metadata: as :func:`encode` takes it.

    Attributes:
        rate_hz: of the file.

    Raises:
        ValueError: WAV, or an argument that does not apply.
    """

    def __init__(
        self,
        rate_hz: int,
        fmt: Format,
        *,
        channels: int = 1,
        bitrate_kbps: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if fmt is Format.WAV:
            raise ValueError("a WAV file begins with its length: it is not written as a stream")
        if bitrate_kbps is not None and (fmt.lossless or bitrate_kbps < 1):
            raise ValueError(f"{fmt} takes no bit rate of {bitrate_kbps} kbit/s")
        self.rate_hz = written_rate_hz(fmt, rate_hz)
        self._resampler = (
            StreamResampler(channels, rate_hz, self.rate_hz) if rate_hz != self.rate_hz else None
        )
        self._channels = channels
        self._pipe = _Pipe()
        self._lock = threading.Lock()
        self._written = 0
        self._container: av.container.OutputContainer | None = av.open(
            self._pipe,
            "w",
            format=_RECIPES[fmt].muxer,
            container_options=_streaming_options(fmt, self.rate_hz),
        )
        # A packet goes out when it is ready, not when a buffer is full.
        self._container.flags |= cast("int", Flags.flush_packets.value)
        self._stream, self._sample_format = _opened(
            self._container,
            fmt,
            self.rate_hz,
            channels,
            bit_depth=16,
            bitrate_kbps=bitrate_kbps,
            metadata=metadata,
        )

    def push(self, samples: NDArray[np.float32]) -> bytes:
        """Takes float32 [samples] or [channels, samples]; returns the next bytes, perhaps none."""
        with self._lock:
            self._encode(np.atleast_2d(samples), last=False)
            return self._pipe.taken()

    def finish(self) -> bytes:
        """The last bytes of the file. Nothing can be pushed after it."""
        with self._lock:
            self._encode(np.zeros((self._channels, 0), np.float32), last=True)
            if self._container is not None:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._container = None
            return self._pipe.taken()

    def close(self) -> None:
        """Frees everything; harmless after :meth:`finish`, and before it where nobody wants the rest."""
        with self._lock:
            if self._container is not None:
                self._container.close()
                self._container = None
            self._pipe.taken()

    def _encode(self, planes: NDArray[np.float32], *, last: bool) -> None:
        if self._container is None:
            raise ValueError("the file is closed")
        if self._resampler is not None:
            planes = self._resampler(planes, last=last)
        if planes.shape[1]:
            _write(self._container, self._stream, planes, self.rate_hz, self._sample_format, at=self._written)
            self._written += planes.shape[1]


class _Pipe:
    """Bytes that were written and not yet taken; it cannot seek, so nothing that was taken changes."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def taken(self) -> bytes:
        found = bytes(self._bytes)
        self._bytes.clear()
        return found


def _streaming_options(fmt: Format, rate_hz: int) -> dict[str, str]:
    if fmt is Format.OPUS:
        return {"page_duration": "200000"}
    if fmt is Format.AAC:
        # The head waits for the first fragment, which knows the encoder's delay.
        return {
            "movflags": "use_metadata_tags+delay_moov+default_base_moof",
            "frag_duration": "500000",
            "movie_timescale": str(rate_hz),
        }
    return {}


def _opened(
    container: av.container.OutputContainer,
    fmt: Format,
    rate_hz: int,
    channels: int,
    *,
    bit_depth: int,
    bitrate_kbps: int | None,
    metadata: Mapping[str, str] | None,
) -> tuple[AudioStream, str]:
    """The container's one stream, and the format of its samples."""
    # Without it FFmpeg adds its version and a random serial number, and no two runs agree.
    container.flags |= cast("int", Flags.bitexact.value)
    recipe = _RECIPES[fmt]
    container.metadata.update(tagging.pack(metadata or {}, recipe.container))
    codec = recipe.codec or f"pcm_s{bit_depth}le"
    # FFmpeg carries 24-bit samples in the upper bytes of 32.
    sample_format = recipe.sample_format or ("s16" if bit_depth == 16 else "s32")
    layout = "mono" if channels == 1 else "stereo"
    stream = cast("AudioStream", container.add_stream(codec, rate=rate_hz, layout=layout))
    stream.codec_context.format = sample_format
    if fmt is Format.FLAC:
        stream.codec_context.options = {"compression_level": "8"}
    if not fmt.lossless:
        stream.codec_context.bit_rate = 1000 * (bitrate_kbps or recipe.kbps_per_channel * channels)
    return stream, sample_format


def _write(
    container: av.container.OutputContainer,
    stream: AudioStream,
    planes: NDArray[np.float32],
    rate_hz: int,
    sample_format: str,
    *,
    at: int = 0,
) -> None:
    layout = "mono" if planes.shape[0] == 1 else "stereo"
    for start in range(0, planes.shape[1], _CHUNK_SAMPLES):
        chunk = _quantise(planes[:, start : start + _CHUNK_SAMPLES], sample_format)
        frame = AudioFrame.from_ndarray(chunk, format=sample_format, layout=layout)
        frame.sample_rate = rate_hz
        # A first timestamp of 0 is what makes the M4A writer record the encoder's padding.
        frame.pts = at + start
        frame.time_base = Fraction(1, rate_hz)
        container.mux(stream.encode(frame))


def _quantise(
    planes: NDArray[np.float32], sample_format: str
) -> NDArray[np.float32] | NDArray[np.int16] | NDArray[np.int32]:
    if sample_format == "fltp":
        return np.ascontiguousarray(np.clip(planes, -1.0, 1.0))
    packed: NDArray[np.float32] = np.ascontiguousarray(planes.T).reshape(1, -1)
    if sample_format == "flt":
        return np.clip(packed, -1.0, 1.0)
    if sample_format == "s16":
        short: NDArray[np.int16] = np.clip(np.rint(packed * 32768.0), -32768, 32767).astype(np.int16)
        return short
    steps = np.clip(np.rint(packed.astype(np.float64) * 8388608.0), -8388608, 8388607).astype(np.int32)
    return np.left_shift(steps, np.int32(8), dtype=np.int32)
