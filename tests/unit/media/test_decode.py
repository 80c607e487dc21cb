"""What is taken and what is refused, and why; content decides, never the name."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.media.decode import decode, probe
from services.common.media.encode import Format, encode
from services.common.media.formats import SUPPORTED_FORMATS, Container, sniff

RATE_HZ = 16_000


def tone(duration_s: float = 1.0, rate_hz: int = RATE_HZ, level: float = 0.5) -> np.ndarray:
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (level * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


def wav(
    body: bytes,
    *,
    declared: int | None = None,
    tag: int = 1,
    channels: int = 1,
    rate_hz: int = RATE_HZ,
    bits: int = 16,
    extra: bytes = b"",
) -> bytes:
    """A WAV file by hand, so that its header can lie."""
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * align, align, bits)
    size = len(body) if declared is None else declared
    riff = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + extra + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(0xFFFFFFFF, len(riff) + size)) + riff + body


def pcm16(samples: np.ndarray) -> bytes:
    return np.rint(samples * 32767).astype("<i2").tobytes()


def with_nan() -> bytes:
    samples = tone()
    samples[8000] = np.nan
    return wav(samples.astype("<f4").tobytes(), tag=3, bits=32)


def flac_with_damaged_middle() -> bytes:
    data = bytearray(encode(tone(4.0), RATE_HZ, Format.FLAC))
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    return bytes(data)


def flac_claiming(samples: int) -> bytes:
    """The 36 bits of STREAMINFO that hold the length, set to a lie (RFC 9639, 8.2)."""
    data = bytearray(encode(tone(), RATE_HZ, Format.FLAC))
    start = 8 + 13
    data[start] = data[start] & 0xF0 | samples >> 32
    data[start + 1 : start + 5] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def half(fmt: Format) -> bytes:
    data = encode(tone(4.0), RATE_HZ, fmt)
    return data[: len(data) // 2]


REFUSED: list[tuple[str, Callable[[], bytes], Reason, str]] = [
    ("nothing", lambda: b"", Reason.AUDIO_EMPTY, "0 bytes"),
    ("header without samples", lambda: wav(b""), Reason.AUDIO_EMPTY, "no samples"),
    ("text", lambda: b"I am a poem, not a song.\n" * 99, Reason.INVALID_FORMAT, "none of the supported"),
    ("playlist", lambda: b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", Reason.INVALID_FORMAT, "none of"),
    ("ffconcat", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", Reason.INVALID_FORMAT, "none of"),
    ("noise", lambda: np.random.default_rng(7).bytes(9999), Reason.INVALID_FORMAT, "none of the supported"),
    ("sync bytes, then noise", lambda: b"\xff\xfb\x90\x00" + bytes(2000), Reason.INVALID_FORMAT, "none of"),
    ("ID3 tag alone", lambda: b"ID3\x04\0\0\0\0\x02\x01" + bytes(400), Reason.INVALID_FORMAT, "none of"),
    ("AVI", lambda: b"RIFF\x00\x10\x00\x00AVI LIST" + bytes(400), Reason.INVALID_FORMAT, "none of"),
    ("cut WAV header", lambda: wav(pcm16(tone()))[:30], Reason.INVALID_FORMAT, "cut short"),
    (
        "WAV that claims 1 GB",
        lambda: wav(pcm16(tone()), declared=10**9),
        Reason.INVALID_FORMAT,
        "declares 1000000000 bytes of samples and 32000 are there",
    ),
    ("half a WAV", lambda: half(Format.WAV), Reason.INVALID_FORMAT, "cut short"),
    ("half a FLAC", lambda: half(Format.FLAC), Reason.INVALID_FORMAT, "cut short"),
    ("half an M4A", lambda: half(Format.AAC), Reason.INVALID_FORMAT, "header is damaged or cut short"),
    (
        "FLAC header alone",
        lambda: encode(tone(), RATE_HZ, Format.FLAC)[:60],
        Reason.INVALID_FORMAT,
        "",
    ),
    ("FLAC zeroed inside", flac_with_damaged_middle, Reason.INVALID_FORMAT, "damaged"),
    ("NaN", with_nan, Reason.INVALID_FORMAT, "not numbers"),
    (
        "infinity",
        lambda: wav(np.array([0, np.inf] * 800, "<f4").tobytes(), tag=3, bits=32),
        Reason.INVALID_FORMAT,
        "not numbers",
    ),
    (
        "integers as floats",
        lambda: wav((tone() * 32767).astype("<f4").tobytes(), tag=3, bits=32),
        Reason.INVALID_FORMAT,
        "times full scale",
    ),
    (
        "double too large for a float",
        lambda: wav(np.full(1600, 1e300, "<f8").tobytes(), tag=3, bits=64),
        Reason.INVALID_FORMAT,
        "not numbers",
    ),
    (
        "twelve channels",
        lambda: wav(pcm16(np.tile(tone(), 12)), channels=12),
        Reason.INVALID_FORMAT,
        "12 channels; at most 8",
    ),
    ("rate of 1 Hz", lambda: wav(pcm16(tone()), rate_hz=1), Reason.INVALID_FORMAT, "sample rate of 1 Hz"),
    (
        "codec we do not run",
        lambda: wav(bytes(3250), tag=0x31, bits=16),
        Reason.INVALID_FORMAT,
        "coded as",
    ),
    (
        "billion samples in the header",
        lambda: flac_claiming(10**9),
        Reason.AUDIO_TOO_LONG,
        "lasts at least 62500.0 s",
    ),
]


@pytest.mark.parametrize(
    ("make", "reason", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_bad_file_is_refused_with_its_reason(make: Callable[[], bytes], reason: Reason, says: str) -> None:
    with pytest.raises(VoxfleetError) as caught:
        decode(make())
    assert caught.value.reason is reason
    assert says in caught.value.message
    if reason is Reason.INVALID_FORMAT:
        assert caught.value.metadata["supported_formats"] == SUPPORTED_FORMATS


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("keep", [1, 11, 47, 300])
def test_any_beginning_of_a_file_is_an_error_of_ours_or_audio(fmt: Format, keep: int) -> None:
    data = encode(tone(0.5), RATE_HZ, fmt, metadata={"title": "t"})[:keep]
    with pytest.raises(VoxfleetError) as caught:
        decode(data)
    assert caught.value.reason in (Reason.INVALID_FORMAT, Reason.AUDIO_EMPTY)


@pytest.mark.parametrize("fmt", list(Format))
def test_flipped_bytes_never_escape_as_another_exception(fmt: Format) -> None:
    rng = np.random.default_rng(11)
    clean = encode(tone(0.3), RATE_HZ, fmt)
    for _ in range(25):
        data = bytearray(clean)
        for position in rng.integers(0, len(data), 12):
            data[position] = int(rng.integers(0, 256))
        try:
            audio = decode(bytes(data), max_duration_s=60)
        except VoxfleetError:
            continue
        assert np.isfinite(audio.samples).all()


@pytest.mark.parametrize("fmt", list(Format))
def test_name_counts_for_nothing(fmt: Format, tmp_path: Path) -> None:
    path = tmp_path / "liar.wav"
    path.write_bytes(encode(tone(), RATE_HZ, fmt))
    audio = decode(path)
    assert audio.info.container is fmt.container
    assert audio.duration_s == pytest.approx(1.0, abs=0.001)


def test_path_that_reads_like_a_url_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "concat:a.wav").write_bytes(wav(pcm16(tone())))
    assert decode("concat:a.wav").duration_s == 1.0
    with pytest.raises(FileNotFoundError):
        decode("http://127.0.0.1/a.wav")


def test_length_is_judged_while_decoding_where_the_header_is_silent() -> None:
    # A recorder that writes to a pipe leaves the size open; Ogg has none in its header at all.
    open_ended = wav(pcm16(tone(3.0)), declared=0xFFFFFFFF)
    assert decode(open_ended).duration_s == 3.0
    for data in (open_ended, encode(tone(3.0), RATE_HZ, Format.OPUS), encode(tone(3.0), RATE_HZ, Format.MP3)):
        with pytest.raises(VoxfleetError) as caught:
            decode(data, max_duration_s=1.5)
        assert caught.value.reason is Reason.AUDIO_TOO_LONG
        assert caught.value.metadata["max_duration_s"] == "1.5"
        assert 1.5 < float(caught.value.metadata["duration_s"]) < 3.1


def browser_recording(duration_s: float) -> bytes:
    """WebM as a browser records it: Opus, and no duration anywhere."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", container_options={"live": "1"}) as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(duration_s, 48_000)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_browser_recording_is_decoded_and_stopped_once_it_is_too_long() -> None:
    data = browser_recording(20.0)
    info = probe(data)
    assert (info.container, info.codec, info.duration_s) == (Container.WEBM, "opus", None)
    assert decode(data).duration_s == pytest.approx(20.0, abs=0.05)
    with pytest.raises(VoxfleetError) as caught:
        decode(data, max_duration_s=2.0)
    assert caught.value.reason is Reason.AUDIO_TOO_LONG
    # It gave up long before the end.
    assert float(caught.value.metadata["duration_s"]) < 4.0


def test_length_just_over_and_just_under() -> None:
    assert decode(wav(pcm16(tone(1.0))), max_duration_s=1.0).duration_s == 1.0
    with pytest.raises(VoxfleetError) as caught:
        decode(wav(pcm16(tone(1.01))), max_duration_s=1.0)
    assert caught.value.reason is Reason.AUDIO_TOO_LONG


def test_large_file_is_refused_before_it_is_opened() -> None:
    with pytest.raises(VoxfleetError) as caught:
        decode(b"not even audio" * 200_000, max_size_bytes=2**21)
    assert caught.value.reason is Reason.FILE_TOO_LARGE
    assert caught.value.metadata == {"max_size_mb": "2", "size_mb": "2.7"}


@pytest.mark.parametrize(
    ("tag", "bits", "kind", "codec"),
    [
        (1, 8, "u1", "pcm_u8"),
        (1, 16, "<i2", "pcm_s16le"),
        (1, 24, "s24", "pcm_s24le"),
        (1, 32, "<i4", "pcm_s32le"),
        (3, 32, "<f4", "pcm_f32le"),
        (3, 64, "<f8", "pcm_f64le"),
    ],
)
def test_every_width_of_wav_decodes_to_the_same_samples(tag: int, bits: int, kind: str, codec: str) -> None:
    samples = tone()
    match kind:
        case "u1":
            body = (np.rint(samples * 127) + 128).astype(np.uint8).tobytes()
        case "s24":
            steps = np.rint(samples * (2**23 - 1)).astype("<i4")
            body = steps.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        case "<f4" | "<f8":
            body = samples.astype(kind).tobytes()
        case _:
            body = np.rint(samples.astype(np.float64) * (2 ** (bits - 1) - 1)).astype(kind).tobytes()
    audio = decode(wav(body, tag=tag, bits=bits))
    assert (audio.info.codec, audio.info.bit_depth, audio.samples.dtype) == (codec, bits, np.float32)
    np.testing.assert_allclose(audio.samples, samples, atol=1.2 / 2 ** (min(bits, 24) - 1))


def test_shapes_channels_and_rates() -> None:
    stereo = np.stack([tone(), 0.5 * tone()])
    data = encode(stereo, RATE_HZ, Format.FLAC)
    both = decode(data, mono=False)
    assert both.samples.shape == (2, RATE_HZ)
    one = decode(data)
    assert one.samples.shape == (RATE_HZ,)
    np.testing.assert_allclose(one.samples, both.samples.mean(axis=0), atol=1e-6)
    up = decode(data, rate_hz=48_000, mono=False)
    assert (up.rate_hz, up.samples.shape, up.info.rate_hz) == (48_000, (2, 48_000), RATE_HZ)
    assert up.duration_s == 1.0
    clean = tone(1.0, 48_000)
    np.testing.assert_allclose(up.samples[0, 2000:-2000], clean[2000:-2000], atol=1e-3)


def test_block_by_block_equals_whole() -> None:
    """Longer than a decoding block, so that the resampler's state is carried over."""
    rng = np.random.default_rng(3)
    samples = (0.1 * rng.standard_normal(40 * RATE_HZ)).astype(np.float32)
    data = encode(samples, RATE_HZ, Format.WAV)
    from services.common.media.resample import resample

    got = decode(data, rate_hz=44_100).samples
    want = resample(decode(data).samples, RATE_HZ, 44_100)
    assert abs(got.size - want.size) <= 1
    np.testing.assert_allclose(got[: want.size], want[: got.size], atol=1e-5)


def test_probe_tells_the_header() -> None:
    data = encode(np.stack([tone(2.0), tone(2.0)]), RATE_HZ, Format.FLAC, bit_depth=24)
    info = probe(data)
    assert (info.container, info.codec, info.rate_hz) == (Container.FLAC, "flac", RATE_HZ)
    assert (info.channels, info.bit_depth, info.duration_s) == (2, 24, 2.0)
    assert info.size_bytes == len(data)


def test_sniff_steps_over_a_large_tag_and_leaves_the_stream_at_its_start() -> None:
    mp3 = encode(tone(), RATE_HZ, Format.MP3)
    assert mp3[:3] == b"ID3"
    size = mp3[6] << 21 | mp3[7] << 14 | mp3[8] << 7 | mp3[9]
    bare = mp3[10 + size :]
    cover = 3_000_000
    length = bytes(cover >> shift & 127 for shift in (21, 14, 7, 0))
    stream = io.BytesIO(b"ID3\x04\0\0" + length + bytes(cover) + bare)
    assert sniff(stream) is Container.MP3
    assert stream.tell() == 0
    assert decode(stream.getvalue()).duration_s == pytest.approx(1.0, abs=0.1)
    assert sniff(io.BytesIO(bare)) is Container.MP3
