"""The simulated GPUs: which node they are of, which pool holds them, what runs on them."""

from __future__ import annotations

from dataclasses import dataclass, field

PLACES = {"rvc.convert": 3, "f5.item": 5}
"""Jobs of inference that one GPU takes at once."""


@dataclass(slots=True, eq=False)
class Gpu:
    """One GPU: idle, held by a training, or by a pool of inference with so many jobs on it."""

    node: int
    pool: str = ""
    used: int = 0
    ready_s: float = 0.0
    draining: bool = False
    trains: bool = False


@dataclass(slots=True)
class Cluster:
    """All GPUs, by node and by the pool that holds them."""

    nodes: int
    gpus_per_node: int
    gpus: list[list[Gpu]] = field(default_factory=list)
    pools: dict[str, list[Gpu]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gpus = [[Gpu(node) for _ in range(self.gpus_per_node)] for node in range(self.nodes)]
        self.pools = {pool: [] for pool in PLACES}

    @property
    def total(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus_per_node

    def idle(self) -> dict[str, int]:
        """GPUs by node that nothing holds."""
        return {
            str(node): sum(not gpu.pool and not gpu.trains for gpu in gpus)
            for node, gpus in enumerate(self.gpus)
        }

    def crowd(self, node: int) -> int:
        """The GPUs of a node that pools of inference hold."""
        return sum(bool(gpu.pool) for gpu in self.gpus[node])

    def held(self, pool: str) -> int:
        """The GPUs that a pool holds and is to keep."""
        return sum(not gpu.draining for gpu in self.pools[pool])

    def take(self, pool: str, count: int, ready_s: float, avoid: int | None) -> list[Gpu]:
        """Gives idle GPUs to a pool of inference, on nodes that such pools hold most of already."""
        taken: list[Gpu] = []
        nodes = sorted(range(self.nodes), key=lambda node: (-self.crowd(node), node))
        for node in nodes:
            if node == avoid:
                continue
            for gpu in self.gpus[node]:
                if len(taken) == count:
                    return taken
                if not gpu.pool and not gpu.trains:
                    gpu.pool, gpu.used, gpu.draining, gpu.ready_s = pool, 0, False, ready_s
                    self.pools[pool].append(gpu)
                    taken.append(gpu)
        return taken

    def keep(self, pool: str, count: int) -> int:
        """Takes back up to ``count`` GPUs that were draining; returns how many."""
        kept = 0
        for gpu in self.pools[pool]:
            if kept < count and gpu.draining:
                gpu.draining = False
                kept += 1
        return kept

    def drain(self, pool: str, count: int) -> bool:
        """Lets go of a pool's ``count`` least used GPUs as they empty; whether one is idle at once."""
        able = sorted((gpu for gpu in self.pools[pool] if not gpu.draining), key=lambda gpu: gpu.used)
        for gpu in able[:count]:
            gpu.draining = True
        return self.let_go(pool)

    def let_go(self, pool: str) -> bool:
        """Gives back the draining GPUs that are empty; whether there were any."""
        empty = [gpu for gpu in self.pools[pool] if gpu.draining and not gpu.used]
        for gpu in empty:
            self.pools[pool].remove(gpu)
            gpu.pool, gpu.draining = "", False
        return bool(empty)

    def free_places(self, pool: str, now_s: float, *, draining: bool = False) -> int:
        """Jobs that a pool could begin now; or could if it kept what is ``draining``."""
        places = PLACES[pool]
        return sum(
            places - gpu.used
            for gpu in self.pools[pool]
            if gpu.ready_s <= now_s and (draining or not gpu.draining)
        )

    def fill(self, pool: str, now_s: float) -> Gpu:
        """Takes a place of a pool, on the fullest GPU that has one: the emptiest can then be let go."""
        places = PLACES[pool]
        best: Gpu | None = None
        for gpu in self.pools[pool]:
            open_now = gpu.used < places and not gpu.draining and gpu.ready_s <= now_s
            if open_now and (best is None or gpu.used > best.used):
                best = gpu
        assert best is not None
        best.used += 1
        return best

    def seize(self, node: int, count: int) -> list[Gpu]:
        """Takes idle GPUs of a node for a training."""
        taken = [gpu for gpu in self.gpus[node] if not gpu.pool and not gpu.trains][:count]
        assert len(taken) == count
        for gpu in taken:
            gpu.trains = True
        return taken
