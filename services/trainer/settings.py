"""The trainer's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """What the trainer reads from its environment, beside the store's ``VOXFLEET_S3_*``.

    Ray reads ``RAY_AUTH_MODE`` and ``RAY_AUTH_TOKEN`` itself.
    """

    ray_address: str = Field(min_length=1, description="host:port of the Ray head")
    cache_dir: Path = Field(
        Path("/var/cache/voxfleet"), description="weights and scratch files, on every Ray node"
    )
    node: str = Field("", description="where this process runs; the host's name where empty")
    virtual_gpus: bool | None = Field(
        None, description="whether Ray's GPUs are pretended; found out from the nodes where unset"
    )
    checkpoint_s: float = Field(
        0.0, ge=0, description="seconds between checkpoints; 0: 60, and 15 for the tiny preset"
    )
    training_threads: int = Field(1, ge=1, description="CPU threads of a training's process")
    training_cpus: float = Field(1.0, ge=0, description="Ray CPUs held by a training beside its GPUs")
    stage_cpus: float = Field(1.0, ge=0, description="Ray CPUs held by a CPU stage")
    gpu_wait_s: float = Field(
        120.0, gt=0, description="how long a training waits for its GPU before it is given back"
    )
    yield_s: float = Field(60.0, gt=0, description="how long a training may save when it makes room")
    stall_s: float = Field(
        600.0, gt=0, description="without a step, after which a training's process counts as hung"
    )
    shutdown_s: float = Field(12.0, gt=0, description="how long trainings may save when this process stops")
