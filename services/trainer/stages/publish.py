"""PUBLISH: the retrieval index, the voice's folder, its package in the store. CPU alone."""

from __future__ import annotations

from services.common.artifacts.model import content_key
from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.common.jobs.tasks import Blob
from services.trainer.model import Phase
from services.trainer.stage import Published
from services.trainer.stages.context import StageContext


def publish(context: StageContext) -> Published:
    """Makes a voice of the first checkpoint and the features, and stores it under its hash.

    Raises:
        VoxfleetError: CHECKPOINT_CORRUPT where the checkpoint cannot be read; ARTIFACT_NOT_FOUND where
            the features are gone; CANCELLED.
    """
    from services.engines.rvc import package, pipeline

    spec, telling = context.spec, context.telling
    if not spec.checkpoints or spec.features is None:
        raise internal("there is nothing to publish yet")
    telling.tell(Phase.INDEX)
    checkpoint = spec.checkpoints[0]
    try:
        state = pipeline.load_checkpoint(context.fetch(checkpoint.blob, "checkpoint"))
    except VoxfleetError as error:
        if error.reason not in (Reason.ARTIFACT_CORRUPT, Reason.ARTIFACT_NOT_FOUND):
            raise
        raise VoxfleetError(
            Reason.CHECKPOINT_CORRUPT,
            f"the checkpoint at step {checkpoint.step} cannot be read: {error.message}",
            kind=Kind.DATA_LOSS,
            metadata={"step": checkpoint.step},
        ) from error
    features = pipeline.FeatureSet.load(context.fetch(spec.features, "features"))
    telling.check_stop()
    index = pipeline.build_index(features, seed=spec.recipe.seed)
    telling.check_stop()
    telling.tell(Phase.PUBLISH)
    facts = pipeline.save_voice(context.folder / "voice", state, features, index)
    path = context.folder / "voice.zip"
    sha256 = package.pack_voice(context.folder / "voice", path)
    telling.check_stop()
    key = content_key(spec.task.team, sha256)
    stored = context.store.put_file(
        key, path, media_type=package.MEDIA_TYPE, sha256=sha256, verify_content=True
    )
    blob = Blob(key=key, sha256=sha256, size_bytes=stored.size_bytes, media_type=package.MEDIA_TYPE)
    return Published(blob, facts.config.rate_hz)
