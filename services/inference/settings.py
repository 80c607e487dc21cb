"""The settings of the inference service, from its environment."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings
from services.engines.bundles.catalogue import HUB_URL


class InferenceSettings(ServiceSettings):
    """What inference needs."""

    ray_address: str = Field("", description="host:port of the Ray head")
    cache_dir: str = Field(description="directory for weights and voices, the same path on every node")
    f5_bundle: str = Field("", description="empty for f5-v1-base where it is stored, else f5-small-random")
    hub_url: str = Field(HUB_URL, description="where bundles are pulled from: the hub, or a mirror of it")

    f5_least: int = Field(1, ge=0, description="F5 replicas that are always kept")
    f5_most: int = Field(1, ge=1, description="F5 replicas at most")
    f5_gpus: float = Field(0.5, ge=0, description="share of a GPU of one F5 replica")
    f5_cpus: float = Field(0.0, ge=0, description="CPUs that one F5 replica reserves in Ray")
    f5_slots: int = Field(0, ge=0, description="texts at once of one replica; 0: 32 on a GPU, 4 on a CPU")

    rvc_least: int = Field(1, ge=0, description="RVC replicas that are always kept")
    rvc_most: int = Field(1, ge=1, description="RVC replicas at most")
    rvc_gpus: float = Field(0.5, ge=0, description="share of a GPU of one RVC replica")
    rvc_cpus: float = Field(0.0, ge=0, description="CPUs that one RVC replica reserves in Ray")
    rvc_slots: int = Field(
        0, ge=0, description="conversions at once of one replica; 0: 3 on a GPU, 1 on a CPU"
    )
    rvc_voices: int = Field(8, ge=1, description="voices that one RVC replica keeps in memory")

    engine_threads: int = Field(1, ge=1, description="CPU threads of torch in one replica")
    queue_limit: int = Field(32, ge=0, description="streamed requests that may wait for a slot")
    queue_wait_s: float = Field(30.0, gt=0, description="how long a streamed request may wait for a slot")
    idle_s: float = Field(300.0, gt=0, description="until an idle replica above the least is stopped")
    start_limit_s: float = Field(900.0, gt=0, description="how long a replica may take to load")
    stop_grace_s: float = Field(
        2.5, gt=0, description="for a stopped call to end; then its replica is replaced"
    )
    bundle_refresh_s: float = Field(15.0, gt=0, description="between two looks at what is stored")
