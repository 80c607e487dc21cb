"""The steps of a training on one rank: to their end, and back to the last sound state where a loss is none.

The first rank runs in the stage's own process, every other in a child of it that does :func:`run` as well.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.common.errors import Reason, VoxfleetError

if TYPE_CHECKING:
    from services.engines.rvc.parallel import Group
    from services.engines.rvc.pipeline import FeatureSet, ModelConfig, State, TrainParams, TrainResult

log = logging.getLogger(__name__)

MOST_ROLLBACKS = 3
_ANCHOR = "anchor"


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a rank stands.

    Args:
        folder: of the stage; all ranks see it.
        config: of the model.
        params: the recipe.
        device: this rank's, such as ``cuda:1``.
        resume: a checkpoint to begin with; None begins anew.
    """

    folder: Path
    config: ModelConfig
    params: TrainParams
    device: str
    resume: Path | None = None

    @property
    def anchor(self) -> Path:
        """The newest checkpoint of this stage, where there is one."""
        return self.folder / _ANCHOR

    def keep(self, checkpoint: Path) -> None:
        """Makes a checkpoint on disk the one to go back to."""
        draft = self.folder / f"{_ANCHOR}.draft"
        draft.unlink(missing_ok=True)
        try:
            draft.hardlink_to(checkpoint)
        except OSError:  # a file system without links
            shutil.copyfile(checkpoint, draft)
        draft.replace(self.anchor)

    def state(self) -> State:
        """The newest state on disk; a fresh one where there is none."""
        from services.engines.rvc import pipeline

        path = self.anchor if self.anchor.exists() else self.resume
        if path is None:
            return pipeline.new_state(self.config, self.params, self.device)
        return pipeline.load_checkpoint(path, self.device)


def run(
    ground: Ground,
    features: FeatureSet,
    state: State,
    *,
    group: Group,
    train: Callable[[State], TrainResult] | None = None,
    on_rollback: Callable[[State], None] = lambda state: None,
) -> tuple[State, TrainResult]:
    """Trains; where a loss is no number, goes back to the newest checkpoint and on with half the rate.

    Args:
        ground: where it stands.
        features: what to train on.
        state: where to begin.
        group: the ranks.
        train: the loop with what the first rank does beside; the bare loop where it is not given.
        on_rollback: told of the state that it goes on from.

    Returns:
        The state at the end, and how it ended.

    Raises:
        VoxfleetError: TRAINING_DIVERGED after three rollbacks; whatever else the loop raises.
    """
    from services.engines.rvc import pipeline

    def bare(state: State) -> TrainResult:
        return pipeline.train(state, features, ground.params, group=group)

    while True:
        try:
            return state, (train or bare)(state)
        except VoxfleetError as error:
            if error.reason is not Reason.TRAINING_DIVERGED or state.rollbacks >= MOST_ROLLBACKS:
                raise
            log.warning("rank %d: %s; it goes back", group.rank, error.message)
            before, state = state, ground.state()
            state.rollbacks, state.micro_batch = before.rollbacks + 1, before.micro_batch
            del before
            on_rollback(state)
