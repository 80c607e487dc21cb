"""All measures of a decoded file at once."""

from __future__ import annotations

import numpy as np

from services.audio.measure import defects, noise, voice
from services.audio.model import Measures
from services.common.media import levels, loudness
from services.common.media.decode import Audio, StreamInfo
from services.common.media.resample import resample


def measure(audio: Audio, info: StreamInfo | None = None) -> Measures:
    """Measure a recording.

    Args:
        audio: decoded at the file's own rate, with all channels for the true levels of each; a mono
            decode is measured as what it is.
        info: the file's header, where it is not the one in ``audio``.

    Returns:
        The measures. Nothing is refused here: silence and noise have measures too.
    """
    header = info or audio.info
    planes = np.atleast_2d(audio.samples)
    mono = planes[0] if planes.shape[0] == 1 else planes.mean(axis=0, dtype=np.float32)
    speech_band = resample(mono, audio.rate_hz, voice.VOICE_RATE_HZ)
    probabilities = voice.voice_probabilities(speech_band)
    duration_s = audio.duration_s
    noisiness = noise.measure_noise(speech_band, probabilities)
    segments = voice.speech_segments(probabilities, duration_s)
    return Measures(
        duration_s=duration_s,
        codec=header.codec,
        container=header.container.value,
        rate_hz=header.rate_hz,
        channels=header.channels,
        bit_depth=header.bit_depth,
        size_bytes=header.size_bytes,
        peak_dbfs=levels.peak_dbfs(planes),
        true_peak_dbtp=loudness.true_peak_dbtp(planes),
        integrated_lufs=loudness.integrated_lufs(planes, audio.rate_hz),
        rms_dbfs=levels.rms_dbfs(planes),
        snr_db=noisiness.snr_db,
        snr_is_floor=noisiness.is_floor,
        noise_floor_dbfs=noisiness.noise_floor_dbfs,
        background_dbfs=noisiness.background_dbfs,
        clipping_ratio=defects.clipping_ratio(planes),
        dc_offset=defects.dc_offset(planes),
        voice_activity_ratio=min(1.0, sum(end - start for start, end in segments) / duration_s),
        voice_activity_ratio_webrtc=voice.webrtc_ratio(speech_band),
        speech_segments=segments,
        bandwidth_hz=noise.bandwidth_hz(mono, audio.rate_hz),
    )
