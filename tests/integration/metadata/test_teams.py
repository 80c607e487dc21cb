"""Teams and the licences of weights that they may use, on a real database."""

import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.rpc.caller import Caller, set_caller
from services.metadata.app.bundles import Bundles
from services.metadata.servicers.internal import CatalogServicer
from services.metadata.servicers.resources import TrustServicer
from tests.integration.metadata.test_ledger import SHA, add_audio, make_voice, request, train
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import trust_pb2


@pytest.fixture
def trust(metadata) -> TrustServicer:
    set_caller(Caller(team="alpha", operator=True))
    return TrustServicer(metadata.identity)


@pytest.fixture
def catalog(metadata) -> CatalogServicer:
    return CatalogServicer(metadata.audios, metadata.voices, Bundles(metadata.store), metadata.identity)


def update(team: str, *paths: str, **fields) -> trust_pb2.UpdateTeamRequest:
    change = trust_pb2.UpdateTeamRequest(team={"name": f"teams/{team}", **fields})
    change.update_mask.paths.extend(paths)
    return change


async def licences_of(catalog: CatalogServicer, team: str) -> list[str]:
    asked = catalog_pb2.ResolveTeamRequest(name=f"teams/{team}")
    return list((await catalog.ResolveTeam(asked, None)).allowed_licences)


async def test_a_team_is_made_with_its_licences_and_changed_by_its_mask(trust, catalog):
    wanted = {"display_name": "Gamma", "allowed_licences": ["MIT", "CC-BY-4.0", "MIT"]}
    made = await trust.CreateTeam(trust_pb2.CreateTeamRequest(team_id="gamma", team=wanted), None)
    assert list(made.allowed_licences) == ["MIT", "CC-BY-4.0"]
    assert await licences_of(catalog, "gamma") == ["MIT", "CC-BY-4.0"]

    renamed = await trust.UpdateTeam(update("gamma", "display_name", display_name="Third"), None)
    assert (renamed.display_name, list(renamed.allowed_licences)) == ("Third", ["MIT", "CC-BY-4.0"])
    strict = await trust.UpdateTeam(update("gamma", "allowed_licences", allowed_licences=["MIT"]), None)
    assert (strict.display_name, list(strict.allowed_licences)) == ("Third", ["MIT"])
    assert not (await trust.UpdateTeam(update("gamma", "allowed_licences"), None)).allowed_licences
    assert await licences_of(catalog, "gamma") == []
    listed = (await trust.ListTeams(trust_pb2.ListTeamsRequest(), None)).teams
    assert [team.name for team in listed] == ["teams/alpha", "teams/beta", "teams/gamma"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (update("delta", "display_name", display_name="x"), Reason.TEAM_NOT_FOUND),
        (update("beta", "create_time"), Reason.INVALID_ARGUMENT),
        (update("beta"), Reason.INVALID_ARGUMENT),
        (update("Not a team", "display_name"), Reason.INVALID_ARGUMENT),
    ],
)
async def test_a_change_that_means_nothing_is_refused(trust, change, reason):
    with pytest.raises(VoxfleetError) as caught:
        await trust.UpdateTeam(change, None)
    assert caught.value.reason is reason


async def test_only_an_operator_changes_a_team(trust, catalog):
    set_caller(Caller(team="beta"))
    with pytest.raises(VoxfleetError) as caught:
        await trust.UpdateTeam(update("beta", "allowed_licences", allowed_licences=["MIT"]), None)
    assert caught.value.reason is Reason.PERMISSION_DENIED
    assert await licences_of(catalog, "beta") == []


async def test_a_resolved_voice_comes_with_what_its_team_may_use(metadata, trust, catalog):
    voice = await make_voice(metadata)
    asked = catalog_pb2.ResolveVoiceRequest(name=voice)
    assert not (await catalog.ResolveVoice(asked, None)).allowed_licences
    await trust.UpdateTeam(update("alpha", "allowed_licences", allowed_licences=["MIT"]), None)
    found = await catalog.ResolveVoice(asked, None)
    assert (found.voice.name, list(found.allowed_licences)) == (voice, ["MIT"])


@pytest.mark.parametrize(
    ("licence", "allowed", "refused"),
    [
        ("CC-BY-NC-4.0", ["MIT"], True),
        ("CC-BY-NC-4.0", ["MIT", "CC-BY-NC-4.0"], False),
        ("CC-BY-NC-4.0", [], False),
        # Trained here: nobody else's weights.
        ("", ["MIT"], False),
    ],
)
async def test_a_trained_voice_converts_if_its_recorded_licence_is_allowed(
    metadata, trust, licence, allowed, refused
):
    await train(metadata)
    ready = {"state": "READY", "package_sha256": SHA, "weights_licence": licence}
    async with metadata.store.tenant("alpha") as tx:
        await tx.update_voice("alpha", "v-anna", ready)
    await trust.UpdateTeam(update("alpha", "allowed_licences", allowed_licences=allowed), None)
    audio = await add_audio(metadata)
    convert = metadata.submit.convert(
        request(), [audio], "teams/alpha/voices/v-anna", tasks.ConversionParameters(), tasks.Output()
    )
    if not refused:
        assert (await convert).kind == "rvc.convert"
        return
    with pytest.raises(VoxfleetError) as caught:
        await convert
    assert (caught.value.reason, caught.value.kind) == (Reason.LICENCE_NOT_ALLOWED, Kind.FORBIDDEN)
    assert caught.value.metadata == {
        "licence": licence,
        "allowed": "MIT",
        "weights": "teams/alpha/voices/v-anna",
    }
