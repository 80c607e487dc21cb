"""The audio service's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from services.audio.model import Limits
from services.common.settings import ServiceSettings

MIB = 1024 * 1024


class AudioSettings(ServiceSettings):
    """What the audio service needs, beside ``VOXFLEET_S3_*``."""

    upload_part_bytes: int = Field(
        4 * MIB, ge=64 * 1024, le=16 * MIB, description="bytes of an upload that become durable at once"
    )
    upload_streams: int = Field(
        64, ge=1, description="uploads received at once; each holds two parts in memory"
    )
    upload_end_grace_s: float = Field(
        0.25, ge=0, description="pause before a stream of unannounced size counts as whole, not cut"
    )
    upload_finishing: int = Field(
        4, ge=1, description="complete uploads verified at once; each holds a copy in scratch_dir"
    )
    scratch_dir: Path | None = Field(None, description="for temporary files; the system's own where unset")
    store_threads: int = Field(16, ge=1, description="requests to the object store at once")
    examine_workers: int = Field(1, ge=1, le=8, description="processes that decode and measure")
    examine_timeout_s: float = Field(300.0, gt=0, description="a file that takes longer is refused")
    examine_memory_mb: int = Field(
        4096, ge=0, description="address space of a measuring process; 0 for no bound"
    )
    training_min_duration_s: float = Field(10.0, ge=0, description="least length of a training file")
    reference_min_duration_s: float = Field(3.0, ge=0, description="least length of a reference clip")
    reference_max_duration_s: float = Field(30.0, gt=0, description="greatest length of a reference clip")

    @property
    def limits(self) -> Limits:
        """What each purpose accepts."""
        base = Limits()
        return replace(
            base,
            training=replace(base.training, min_duration_s=self.training_min_duration_s),
            reference=replace(
                base.reference,
                min_duration_s=self.reference_min_duration_s,
                max_duration_s=self.reference_max_duration_s,
            ),
        )
