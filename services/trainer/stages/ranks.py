"""The other GPUs of a training: a child process for each rank but the first, which is the stage's own.

``python -m services.trainer.stages.ranks PLAN RANK`` is one of them. It ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.trainer.stages.steps import Ground, run

if TYPE_CHECKING:
    from services.engines.rvc.parallel import Group

log = logging.getLogger(__name__)

_PLAN = "ranks.json"
_MEETING = "meeting"
_END_S = 30.0
_SET_DEATH_SIGNAL = 1


@dataclass(frozen=True, slots=True)
class Ranks:
    """What all ranks share.

    Args:
        size: how many, the stage's own among them.
        features: the file of features.
        threads: CPU threads of each.
    """

    size: int
    features: Path
    threads: int


def device_of(rank: int, kind: str) -> str:
    """A rank's device: the GPUs that the stage was given are counted from 0."""
    return f"{kind}:{rank}" if kind == "cuda" else kind


@contextmanager
def gathered(ranks: Ranks, ground: Ground) -> Iterator[Group]:
    """The group that this process leads; its other ranks run until the end of the block.

    Raises:
        VoxfleetError: WORKER_LOST where one of them ended by itself.
    """
    from services.engines.rvc.parallel import joined

    if ranks.size == 1:
        with joined(0, 1, ground.folder / _MEETING, ground.device) as group:
            yield group
        return
    plan = ground.folder / _PLAN
    plan.write_text(json.dumps(_to_json(ranks, ground)), encoding="utf-8")
    children = [_started(plan, rank) for rank in range(1, ranks.size)]
    try:
        with joined(0, ranks.size, ground.folder / _MEETING, ground.device) as group:
            yield group
        for child in children:
            child.wait(_END_S)
    except Exception as error:
        for rank, child in enumerate(children, start=1):
            # One that ended is why the first could not go on: it waits for the others at every step.
            with contextlib.suppress(subprocess.TimeoutExpired):
                if child.wait(1.0) and not isinstance(error, VoxfleetError):
                    raise VoxfleetError(
                        Reason.WORKER_LOST,
                        f"the process of GPU {rank} ended with code {child.returncode}",
                        kind=Kind.UNAVAILABLE,
                        failure=FailureClass.TRANSIENT,
                    ) from error
        raise
    finally:
        for child in children:
            child.kill()
            child.wait()


def _started(plan: Path, rank: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-m", "services.trainer.stages.ranks", str(plan), str(rank)], env=environment
    )


def main(plan: Path, rank: int) -> None:
    """Does one rank's share of a training, from its first step to its last."""
    _end_with_parent()
    from services.engines.device import limit_threads
    from services.engines.rvc.parallel import joined
    from services.engines.rvc.pipeline import FeatureSet

    logging.basicConfig(level=logging.INFO, format=f"rank {rank}: %(message)s")
    ranks, ground = _from_json(json.loads(plan.read_text(encoding="utf-8")), rank)
    limit_threads(ranks.threads)
    features = FeatureSet.load(ranks.features)
    with joined(rank, ranks.size, ground.folder / _MEETING, ground.device) as group:
        run(ground, features, ground.state(), group=group)


def _end_with_parent() -> None:
    """Has the kernel end this process with its parent: what it leaves would hold GPU memory. Linux only."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _to_json(ranks: Ranks, ground: Ground) -> dict[str, object]:
    return {
        "size": ranks.size,
        "features": str(ranks.features),
        "threads": ranks.threads,
        "folder": str(ground.folder),
        "config": ground.config.to_dict(),
        "params": ground.params.to_dict(),
        "device": ground.device.partition(":")[0],
        "resume": str(ground.resume) if ground.resume else "",
    }


def _from_json(data: dict[str, object], rank: int) -> tuple[Ranks, Ground]:
    from services.engines.rvc.pipeline import ModelConfig, TrainParams

    ranks = Ranks(int(str(data["size"])), Path(str(data["features"])), int(str(data["threads"])))
    config, params = data["config"], data["params"]
    assert isinstance(config, dict)
    assert isinstance(params, dict)
    ground = Ground(
        Path(str(data["folder"])),
        ModelConfig.from_dict(config),
        TrainParams(**params),
        device_of(rank, str(data["device"])),
        Path(str(data["resume"])) if data["resume"] else None,
    )
    return ranks, ground


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
