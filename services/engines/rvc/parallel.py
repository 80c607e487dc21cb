"""Several GPUs of one node at one training: who does what share of a step, and how the shares are joined.

Gradients are summed by hand after each backward instead of by ``DistributedDataParallel``'s hooks: a rank
whose memory is full must be able to say so before the others wait for its gradients, and training has two
optimisers that take turns. What ranks tell one another besides (who failed, who was asked to stop) goes
over gloo between hosts, so that no GPU is waited for.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

_BUCKET_VALUES = 1 << 24
_TIMEOUT = dt.timedelta(minutes=10)
"""After which a rank that waits for the others gives up: one of them hangs."""


class Group(Protocol):
    """The ranks of one training, as one of them sees them."""

    rank: int
    size: int

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true where any rank says so; every rank must ask."""

    def sum_gradients(self, model: nn.Module) -> None:
        """Replaces every gradient of a model by its sum over the ranks; one that is missing counts as 0."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks of a small tensor on the device."""


class Alone:
    """One rank."""

    rank, size = 0, 1

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See :class:`Group`."""
        return flags

    def sum_gradients(self, model: nn.Module) -> None:
        """See :class:`Group`."""

    def sum(self, values: Tensor) -> Tensor:
        """See :class:`Group`."""
        return values


class Ranks:
    """This process as a rank of ``torch.distributed``'s default group.

    Args:
        control: a gloo group of the same ranks.
    """

    def __init__(self, control: distributed.ProcessGroup) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._control = control

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See :class:`Group`."""
        said = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(said, distributed.ReduceOp.MAX, group=self._control)
        return tuple(bool(flag) for flag in said)

    def sum_gradients(self, model: nn.Module) -> None:
        """See :class:`Group`."""
        for parameters in _buckets(model.parameters()):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            distributed.all_reduce(flat)
            sums = torch.split(flat, [parameter.numel() for parameter in parameters])
            for parameter, summed in zip(parameters, sums, strict=True):
                parameter.grad = summed.view_as(parameter)

    def sum(self, values: Tensor) -> Tensor:
        """See :class:`Group`."""
        total = values.clone()
        distributed.all_reduce(total)
        return total


@contextmanager
def joined(rank: int, size: int, meeting: Path, device: str) -> Iterator[Group]:
    """The group of ``size`` processes that come to the same meeting point.

    Args:
        rank: of this one, 0..size-1.
        size: of the group; 1 meets nobody.
        meeting: a file that does not exist yet, on a disk that all of them see.
        device: of this rank, such as ``cuda:1``: NCCL joins GPUs, gloo CPUs.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    if size == 1:
        yield Alone()
        return
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=meeting.absolute().as_uri(),
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
    )
    try:
        yield Ranks(distributed.new_group(backend="gloo", timeout=_TIMEOUT))
    finally:
        distributed.destroy_process_group()


def share_of(rows: int, rank: int, size: int) -> range:
    """Which of a batch's rows are a rank's: as even as can be, the first ranks one more."""
    each, left = divmod(rows, size)
    first = rank * each + min(rank, left)
    return range(first, first + each + (1 if rank < left else 0))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in runs of about 64 MiB: few calls, and no second copy of all gradients at once."""
    run: list[nn.Parameter] = []
    for parameter in parameters:
        run.append(parameter)
        if sum(p.numel() for p in run) >= _BUCKET_VALUES:
            yield run
            run = []
    if run:
        yield run
