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
    f5_more_bundles: int = Field(
        2, ge=0, description="stored F5 bundles that each replica holds for languages which that one lacks"
    )
    hub_url: str = Field(HUB_URL, description="where bundles are pulled from: the hub, or a mirror of it")

    f5_least: int = Field(1, ge=0, description="F5 replicas that are always kept")
    f5_most: int = Field(1, ge=1, description="F5 replicas at most")
    f5_gpus: float = Field(0.5, ge=0, description="share of a GPU of one F5 replica")
    f5_cpus: float = Field(0.0, ge=0, description="CPUs that one F5 replica reserves in Ray")
    f5_slots: int = Field(0, ge=0, description="texts at once of one replica; 0: 32 on a GPU, 4 on a CPU")

    f5_reference_s: float = Field(
        12.0, ge=3, le=12, description="seconds of a reference clip that are used at most"
    )
    f5_compiler: str = Field(
        "", description="backend of torch.compile on a GPU, such as inductor; none by default"
    )

    rvc_least: int = Field(1, ge=0, description="RVC replicas that are always kept")
    rvc_most: int = Field(1, ge=1, description="RVC replicas at most")
    rvc_gpus: float = Field(0.5, ge=0, description="share of a GPU of one RVC replica")
    rvc_cpus: float = Field(0.0, ge=0, description="CPUs that one RVC replica reserves in Ray")
    rvc_slots: int = Field(
        0, ge=0, description="conversions at once of one replica; 0: 3 on a GPU, 1 on a CPU"
    )
    rvc_voices: int = Field(8, ge=1, description="voices that one RVC replica keeps in memory")

    watermark: bool = Field(True, description="whether what is made carries the inaudible mark")
    watermark_key: str = Field(
        "", repr=False, description="what the mark is made of; keep it, or older marks are not found"
    )

    engine_threads: int = Field(1, ge=1, description="CPU threads of torch in one replica")
    transcript_max_word_error_rate: float = Field(
        0.6,
        ge=0,
        description="a reference clip's text that differs by more from what is heard is refused; 0: no check",
    )
    transcript_wait_s: float = Field(
        5.0, gt=0, description="how long that check may wait for a slot before it is left out"
    )
    queue_limit: int = Field(32, ge=0, description="streamed requests that may wait for a slot")
    queue_wait_s: float = Field(30.0, gt=0, description="how long a streamed request may wait for a slot")
    grow_depth: int = Field(1, ge=1, description="requests beyond the free slots for one more replica")
    grow_wait_s: float = Field(5.0, ge=0, description="a wait for a slot for which one more is started")
    idle_s: float = Field(300.0, gt=0, description="until an idle replica above the least is stopped")
    start_limit_s: float = Field(900.0, gt=0, description="how long a replica may take to load")
    stop_grace_s: float = Field(
        2.5, gt=0, description="for a stopped call to end; then its replica is replaced"
    )
    probe_s: float = Field(60.0, ge=0, description="until an idle replica is given a test of work; 0: never")
    probe_limit_s: float = Field(30.0, gt=0, description="how long that test may take")
    hang_floor_s: float = Field(60.0, gt=0, description="silence of a call beyond twice its usual time")
    hang_first_s: float = Field(600.0, gt=0, description="silence of a call of a kind not measured yet")
    out_of_memory_limit: int = Field(3, ge=0, description="calls in a row without GPU memory; 0: any")
    replica_rss_mib: int = Field(0, ge=0, description="memory of its own that a replica may hold; 0: any")
    replica_rss_growth_mib: int = Field(4096, ge=0, description="the same, gained since it was ready; 0: any")
    replica_gpu_mib: int = Field(0, ge=0, description="GPU memory of a replica's tensors; 0: any")
    replica_gpu_growth_mib: int = Field(0, ge=0, description="the same, gained since it was ready; 0: any")
    weights_retry_s: float = Field(900.0, gt=0, description="until weights that do not start are tried again")
    voice_file_memory_mib: int = Field(
        4096, ge=256, description="memory of a process that opens a voice's file, beyond its libraries"
    )
    voice_file_limit_s: float = Field(
        120.0, ge=1, description="processor time of such a process; on the clock it has twice as much"
    )
    bundle_refresh_s: float = Field(15.0, gt=0, description="between two looks at what is stored")
