"""What actors are given where only the pool is tested: an engine without an engine, a store of one clip.

Imported in actors, so it imports next to nothing.
"""

from __future__ import annotations

import os
import time

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.errors import internal
from services.inference.adapters.ray_pool import ActorPlan, ActorSettings
from services.inference.calls import (
    EngineFacts,
    EngineSpec,
    Pcm,
    Probe,
    Request,
    Speaking,
    StreamSpeech,
    Weights,
)
from services.inference.engine.running import Emit, Stopped, stopped_error

_PIECE_S = 0.02


class LightBody:
    """Answers a text with one piece for each of its letters, at a steady pace."""

    def __init__(self, spec: EngineSpec, plan: ActorPlan) -> None:
        weights = Weights("light", trained=False, licence="MIT")
        self.facts = EngineFacts(
            spec.role, weights, "cpu", plan.slots or 4, "here", os.getpid(), (Speaking(weights, ("en",)),)
        )

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """See :class:`services.inference.engine.running.Body`."""
        match request:
            case StreamSpeech():
                for letter in request.text:
                    time.sleep(_PIECE_S)
                    if stopped():
                        raise stopped_error()
                    emit(Pcm(letter.encode(), 1, _PIECE_S))
            case Probe():
                pass
            case _:
                raise internal(f"a light replica was asked to {type(request).__name__}")


def build_light(spec: EngineSpec, plan: ActorPlan, _settings: ActorSettings) -> LightBody:
    """What the actor calls in place of loading an engine."""
    return LightBody(spec, plan)


def store_with(key: str, data: bytes) -> MemoryArtifactStore:
    """A store of the process's own, with one object in it."""
    store = MemoryArtifactStore()
    store.put_bytes(key, data)
    return store
