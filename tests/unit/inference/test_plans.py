"""Settings become plans."""

from __future__ import annotations

import pytest

from services.inference.__main__ import pool_plans
from services.inference.settings import InferenceSettings

MIB = 1 << 20


def settings(**given: object) -> InferenceSettings:
    known = {"listen": "127.0.0.1:1", "service_token": "t" * 32, "metadata_address": "m:1", "cache_dir": "/c"}
    return InferenceSettings(**known | given)  # type: ignore[arg-type]


def test_both_pools_are_watched_as_the_settings_say() -> None:
    plans = pool_plans(
        settings(
            grow_depth=4,
            grow_wait_s=2.5,
            probe_s=7,
            hang_floor_s=11,
            out_of_memory_limit=5,
            replica_rss_mib=100,
            replica_gpu_growth_mib=50,
            weights_retry_s=33,
        )
    )
    for plan in plans:
        assert (plan.grow_depth, plan.grow_wait_s, plan.retry_s) == (4, 2.5, 33)
        health = plan.health
        assert (health.probe_s, health.hang_floor_s, health.out_of_memory) == (7, 11, 5)
        assert (health.rss_bytes, health.gpu_growth_bytes) == (100 * MIB, 50 * MIB)
    assert [plan.reserved for plan in plans] == [1, 0], "streams have a slot of their own"


@pytest.mark.parametrize(("cpus", "surge"), [(0.0, 1), (2.0, 0)])
def test_no_successor_waits_for_the_cpus_of_the_one_it_succeeds(cpus: float, surge: int) -> None:
    f5, rvc = pool_plans(settings(f5_gpus=0, f5_cpus=cpus, rvc_gpus=0))
    assert f5.within(None).surge == surge
    assert rvc.within(None).surge == 1


def test_a_most_below_the_least_is_raised() -> None:
    f5, _ = pool_plans(settings(f5_least=3, f5_most=1))
    assert (f5.least, f5.most) == (3, 3)
