"""One thread that moves every segment of a model, an evaluation at a time.

Callers wait in threads of their own, and decode there: the vocoder's work overlaps with the network's. A
segment that is cancelled leaves before the next evaluation. Where memory runs out nobody loses what was
computed: the same evaluation is made again with half as much in it, and only a segment that has no room
alone fails.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.engines.device import release_memory
from services.engines.f5.flow import Evaluator, Flow, FlowState
from services.engines.f5.model import LoadedF5
from services.engines.f5.packing import Budget, Waiting, choose, padded_frames
from services.engines.memory import is_out_of_memory

log = logging.getLogger(__name__)

Cancelled = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Computed:
    """A segment that has arrived.

    Args:
        mel: [frames, 100] float32 on the model's device, the reference included.
        work_s: its share of the evaluations' time, by frames.
        ready: on a GPU, when the mel is there: another stream waits for this and not for what came after.
    """

    mel: Tensor
    work_s: float
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True)
class LoopStats:
    """What a loop has done since it began.

    Args:
        evaluations: of the network.
        frames: real ones that were evaluated.
        padded_frames: the same with the padding.
        shrunk: how often memory ran out.
    """

    evaluations: int = 0
    frames: int = 0
    padded_frames: int = 0
    shrunk: int = 0

    @property
    def padding_efficiency(self) -> float:
        """Real frames over padded ones; 1 where nothing was done."""
        return self.frames / self.padded_frames if self.padded_frames else 1.0


@dataclass(eq=False, slots=True)
class _Entry:
    number: int
    rank: int
    flow: Flow
    cancelled: Cancelled | None
    result: Future[Computed]
    state: FlowState | None = None
    passed_over: int = 0
    work_s: float = 0.0

    def seen(self) -> Waiting:
        return Waiting(self.number, self.rank, self.flow.frames, self.flow.guided, self.passed_over)


class SpeechLoop:
    """Computes segments; its thread ends with :meth:`close`, or when nobody holds the loop any more.

    Args:
        model: the weights.
        budget: of one evaluation.
    """

    def __init__(self, model: LoadedF5, budget: Budget) -> None:
        self._core = _Core(model, budget)
        self._thread = threading.Thread(target=self._core.run, name="f5-loop", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._core.close)

    @property
    def stats(self) -> LoopStats:
        """What it has done."""
        return self._core.stats

    def submit(self, flow: Flow, *, rank: int = 0, cancelled: Cancelled | None = None) -> Future[Computed]:
        """Begins a segment.

        Args:
            flow: the segment.
            rank: lower goes first.
            cancelled: asked before every evaluation.

        The future raises VoxfleetError: CANCELLED; GPU_OUT_OF_MEMORY where it has no room alone;
        SYNTHESIS_FAILED for what else goes wrong.
        """
        return self._core.submit(flow, rank, cancelled)

    def close(self) -> None:
        """Ends the thread; what has not arrived is cancelled."""
        self._finalizer()
        self._thread.join(timeout=10.0)


class _Core:
    """The loop without its owner, so that the thread does not keep the owner alive."""

    def __init__(self, model: LoadedF5, budget: Budget) -> None:
        self._model = model
        self._most = self._budget = budget
        self._evaluator = Evaluator(model)
        self._entries: dict[int, _Entry] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._last: torch.cuda.Event | None = None
        self.stats = LoopStats()

    def submit(self, flow: Flow, rank: int, cancelled: Cancelled | None) -> Future[Computed]:
        entry = _Entry(next(self._numbers), rank, flow, cancelled, Future())
        with self._changed:
            if self._closed:
                raise _cancelled()
            self._entries[entry.number] = entry
            self._changed.notify()
        return entry.result

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while not self._entries and not self._closed:
                    self._evaluator.forget()
                    self._changed.wait()
                if self._closed:
                    entries = list(self._entries.values())
                    self._entries.clear()
                else:
                    entries = []
                waiting = list(self._entries.values())
            for entry in entries:
                entry.result.set_exception(_cancelled())
            if self._closed:
                return
            self._turn(waiting)

    def _turn(self, entries: Sequence[_Entry]) -> None:
        """One evaluation, of whoever is chosen."""
        going = []
        for entry in entries:
            if entry.cancelled is not None and entry.cancelled():
                self._end(entry, _cancelled())
            else:
                going.append(entry)
        chosen = {one.number for one in choose([entry.seen() for entry in going], self._budget)}
        batch = [entry for entry in going if entry.number in chosen]
        for entry in going:
            entry.passed_over = 0 if entry.number in chosen else entry.passed_over + 1
        if batch:
            self._evaluate(batch)

    def _evaluate(self, batch: Sequence[_Entry]) -> None:
        began_s = time.perf_counter()
        seen = [entry.seen() for entry in batch]
        try:
            for entry in batch:
                if entry.state is None:
                    entry.state = FlowState(self._model, entry.flow)
            states = [entry.state for entry in batch if entry.state is not None]
            self._evaluator.advance(states)
            self._keep_pace()
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever one segment does
            self._failed(batch, padded_frames(seen), error)
            return
        real = sum(one.frames for one in seen)
        took_s = time.perf_counter() - began_s
        self._budget = self._budget.grown(self._most)
        self.stats = replace(
            self.stats,
            evaluations=self.stats.evaluations + 1,
            frames=self.stats.frames + real,
            padded_frames=self.stats.padded_frames + padded_frames(seen),
        )
        for entry in batch:
            entry.work_s += took_s * entry.flow.frames / real
            if entry.state is not None and entry.state.done:
                self._end(entry, Computed(entry.state.mel(), entry.work_s, self._recorded()))

    def _failed(self, batch: Sequence[_Entry], padded: int, error: Exception) -> None:
        memory = is_out_of_memory(error)
        if memory:
            self._evaluator.forget()
            release_memory()
            self._budget = self._budget.halved(padded)
            self.stats = replace(self.stats, shrunk=self.stats.shrunk + 1)
            log.warning("no memory for %d segments of %d frames: halved", len(batch), padded)
        if len(batch) == 1:
            self._end(batch[0], _as_ours(error))
        elif not memory:
            # One of them spoils it: each is evaluated by itself, and tells.
            for entry in batch:
                self._evaluate([entry])

    def _keep_pace(self) -> None:
        """Waits for the evaluation before this one, so that the queue of a GPU stays short."""
        if self._model.device.type != "cuda":
            return
        before, self._last = self._last, self._recorded()
        if before is not None:
            before.synchronize()

    def _recorded(self) -> torch.cuda.Event | None:
        """A mark behind what a GPU has been given so far."""
        if self._model.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _end(self, entry: _Entry, result: Computed | VoxfleetError) -> None:
        with self._changed:
            self._entries.pop(entry.number, None)
        entry.state = None
        if isinstance(result, VoxfleetError):
            entry.result.set_exception(result)
        else:
            entry.result.set_result(result)


def _as_ours(error: Exception) -> VoxfleetError:
    if is_out_of_memory(error):
        return VoxfleetError(
            Reason.GPU_OUT_OF_MEMORY,
            "the GPU has no room for this text even alone",
            kind=Kind.EXHAUSTED,
            failure=FailureClass.RESOURCE,
        )
    log.error("an evaluation failed", exc_info=error)
    return VoxfleetError(
        Reason.SYNTHESIS_FAILED, f"the network failed: {type(error).__name__}: {error}", kind=Kind.INTERNAL
    )


def _cancelled() -> VoxfleetError:
    return VoxfleetError(Reason.CANCELLED, "synthesis was cancelled", kind=Kind.CANCELLED)
