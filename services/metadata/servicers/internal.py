"""The internal services: identity, catalogue, work."""

from __future__ import annotations

import json

from services.common import names
from services.common.errors import Reason, invalid
from services.common.jobs.model import StopKind
from services.common.jobs.wire import blob_from_proto, blob_to_proto, words_from_proto
from services.metadata.app.audios import Audios
from services.metadata.app.bundles import Bundles
from services.metadata.app.identity import Identity
from services.metadata.app.voices import Voices
from services.metadata.model.catalog import Reference, StoredBundle, Voice, VoiceState
from services.metadata.servicers import convert
from voxfleet.internal.v1 import catalog_pb2, identity_pb2, work_pb2
from voxfleet.v1 import audio_pb2, voice_pb2

IDENTITY_CACHE_S = 30

_NOTICES = {
    StopKind.CANCEL: work_pb2.NOTICE_KIND_CANCEL,
    StopKind.LOST: work_pb2.NOTICE_KIND_LOST,
    StopKind.YIELD: work_pb2.NOTICE_KIND_YIELD,
}


class IdentityServicer:
    """``IdentityService``."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def Authenticate(
        self, request: identity_pb2.AuthenticateRequest, _: object
    ) -> identity_pb2.AuthenticateResponse:
        """Who holds a token."""
        principal = await self._identity.authenticate(request.token_sha256)
        return identity_pb2.AuthenticateResponse(
            team=principal.team, key=principal.key, operator=principal.operator, cache_s=IDENTITY_CACHE_S
        )


class CatalogServicer:
    """``CatalogService``."""

    def __init__(self, audios: Audios, voices: Voices, bundles: Bundles, identity: Identity) -> None:
        self._audios = audios
        self._voices = voices
        self._bundles = bundles
        self._identity = identity

    async def OpenUpload(self, request: catalog_pb2.OpenUploadRequest, _: object) -> catalog_pb2.UploadRecord:
        """Makes the row of an upload."""
        team = names.parse_team(request.parent)
        spec = convert.as_json(request.audio)
        return convert.upload_to_proto(await self._audios.open_upload(team, request.upload_id, spec))

    async def FetchUpload(
        self, request: catalog_pb2.FetchUploadRequest, _: object
    ) -> catalog_pb2.UploadRecord:
        """An upload's row."""
        name = names.parse(request.name, "uploads")
        return convert.upload_to_proto(await self._audios.get_upload(name.team, name.id))

    async def AdvanceUpload(
        self, request: catalog_pb2.AdvanceUploadRequest, _: object
    ) -> catalog_pb2.UploadRecord:
        """Moves the durable offset on."""
        name = names.parse(request.name, "uploads")
        return convert.upload_to_proto(
            await self._audios.advance_upload(name.team, name.id, request.from_offset, request.to_offset)
        )

    async def DropUpload(
        self, request: catalog_pb2.DropUploadRequest, _: object
    ) -> catalog_pb2.DropUploadResponse:
        """Forgets a refused upload."""
        name = names.parse(request.name, "uploads")
        await self._audios.drop_upload(name.team, name.id)
        return catalog_pb2.DropUploadResponse()

    async def CommitAudio(self, request: catalog_pb2.CommitAudioRequest, _: object) -> audio_pb2.Audio:
        """Turns an upload into an audio."""
        name = names.parse(request.upload, "uploads", field="upload")
        audio = await self._audios.commit(
            name.team,
            name.id,
            blob_from_proto(request.blob),
            convert.as_json(request.measures),
            convert.as_json(request.assessment),
        )
        return convert.audio_to_proto(audio)

    async def ResolveAudio(
        self, request: catalog_pb2.ResolveAudioRequest, _: object
    ) -> catalog_pb2.ResolveAudioResponse:
        """An audio with where its bytes are."""
        name = names.parse(request.name, "audios")
        audio = await self._audios.get(name.team, name.id)
        return catalog_pb2.ResolveAudioResponse(
            audio=convert.audio_to_proto(audio), blob=blob_to_proto(audio.blob)
        )

    async def StoreMeasures(self, request: catalog_pb2.StoreMeasuresRequest, _: object) -> audio_pb2.Audio:
        """Keeps the measures of an audio."""
        name = names.parse(request.name, "audios")
        audio = await self._audios.store_measures(
            name.team, name.id, convert.as_json(request.measures), convert.as_json(request.assessment)
        )
        return convert.audio_to_proto(audio)

    async def ResolveVoice(
        self, request: catalog_pb2.ResolveVoiceRequest, _: object
    ) -> catalog_pb2.ResolveVoiceResponse:
        """A voice with everything an engine needs."""
        name = names.parse(request.name, "voices")
        found = convert.voice_resolution(*await self._voices.resolve(name.team, name.id, request.style))
        found.allowed_licences.extend(await self._identity.allowed_licences(name.team))
        return found

    async def StoreVoice(self, request: catalog_pb2.StoreVoiceRequest, _: object) -> voice_pb2.Voice:
        """Makes a zero-shot voice whose clips have been listened to."""
        asked = request.request
        wanted = asked.voice
        if not wanted.references:
            raise invalid(
                Reason.INVALID_ARGUMENT, "a zero-shot voice needs a reference clip", field="voice.references"
            )
        voice_id = (
            names.check_id(asked.voice_id, field="voice_id")
            if asked.voice_id
            else names.slug(wanted.display_name or "voice")
        )
        heard = {clip.index: clip for clip in request.heard}
        voice = Voice(
            team=names.parse_team(asked.parent),
            id=voice_id,
            display_name=wanted.display_name or voice_id,
            engine="f5",
            state=VoiceState.READY,
            languages=tuple(wanted.languages),
            references=tuple(_clip(clip, heard.get(index)) for index, clip in enumerate(wanted.references)),
            consent=wanted.consent,
            labels=dict(wanted.labels),
        )
        made = await self._voices.create(
            voice, request_id=asked.request_id, fingerprint=convert.fingerprint(asked)
        )
        return convert.voice_to_proto(made)

    async def ResolveTeam(
        self, request: catalog_pb2.ResolveTeamRequest, _: object
    ) -> catalog_pb2.ResolveTeamResponse:
        """What a team may do."""
        allowed = await self._identity.allowed_licences(names.parse_team(request.name, field="name"))
        return catalog_pb2.ResolveTeamResponse(allowed_licences=allowed)

    async def ListStoredBundles(
        self, _request: catalog_pb2.ListStoredBundlesRequest, _: object
    ) -> catalog_pb2.ListStoredBundlesResponse:
        """Bundles that the store has."""
        found = await self._bundles.page()
        return catalog_pb2.ListStoredBundlesResponse(bundles=[_bundle(bundle) for bundle in found])

    async def StoreBundle(
        self, request: catalog_pb2.StoreBundleRequest, _: object
    ) -> catalog_pb2.StoredBundle:
        """Records a bundle."""
        try:
            manifest = json.loads(request.manifest_json)
            name = str(manifest["name"])
        except (ValueError, KeyError, TypeError):
            raise invalid(
                Reason.INVALID_ARGUMENT, "manifest_json is no manifest", field="manifest_json"
            ) from None
        return _bundle(await self._bundles.store(name, manifest, request.accepted_by))

    async def RecordUsage(
        self, request: catalog_pb2.RecordUsageRequest, _: object
    ) -> catalog_pb2.RecordUsageResponse:
        """Records what was used."""
        await self._bundles.record_usage(
            names.parse_team(request.parent),
            request.voice,
            request.audio_s,
            request.work_s,
            request.characters,
        )
        return catalog_pb2.RecordUsageResponse()


def _bundle(bundle: StoredBundle) -> catalog_pb2.StoredBundle:
    return catalog_pb2.StoredBundle(
        name=bundle.name,
        manifest_json=json.dumps(dict(bundle.manifest)),
        create_time=convert.stamp(bundle.created_at),
    )


def _clip(clip: voice_pb2.ReferenceClip, heard: catalog_pb2.HeardClip | None) -> Reference:
    """A clip of a new voice; what was heard in it says what its text is."""
    if heard is None:
        return Reference(clip.audio, clip.text, clip.style)
    return Reference(clip.audio, heard.text, clip.style, words_from_proto(heard.words))
