"""Every kind of job that a GPU works on is known wherever kinds are told apart."""

from services.common.jobs.tasks import QUEUE_OF_KIND, VOICE_MAKING, WITHOUT_GPU
from services.metadata.app.grants import POOL_OF_KIND
from services.metadata.app.planner import SHARES
from services.metadata.scheduling.estimates import PRIORS

ON_GPUS = QUEUE_OF_KIND.keys() - WITHOUT_GPU


def test_every_kind_has_a_share_a_prior_and_a_pool():
    assert SHARES.keys() == ON_GPUS
    assert PRIORS.keys() == ON_GPUS
    assert POOL_OF_KIND.keys() == ON_GPUS - {"rvc.train"}
    assert QUEUE_OF_KIND.keys() >= WITHOUT_GPU | VOICE_MAKING
