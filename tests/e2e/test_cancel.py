"""A cancelled job leaves its GPU, whatever it was doing. How soon is measured by ``bench.cancel``."""

import pytest

from bench.cancel import PHASES, Cancels, Material
from voxfleet.v1 import job_pb2

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cancels(stack, alpha) -> Cancels:
    return Cancels(stack, alpha.client)


@pytest.fixture(scope="module")
def material(target, trained, clone) -> Material:
    return Material(target.name, trained.name, clone.name)


# A training in its last phase takes minutes to get there: that one is the benchmark's alone.
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "publish"])
def test_what_it_held_is_free_and_it_says_that_it_was_cancelled(alpha, cancels, material, phase):
    found = cancels.measure(phase, material)
    job = alpha.client.jobs.get(found.job)
    assert job.state == job_pb2.JOB_STATE_CANCELLED
    assert not job.result.audios
