"""The bundles that Voxfleet knows by name: one explicit tuple.

Revisions are pinned, so a name means the same bytes for ever. Checksums of the hub's large files are
the SHA-256 that the hub itself states for them; the small ones were taken from the pinned revisions.
A file without one is checked against what the hub says of it when it is pulled.
"""

from __future__ import annotations

from services.common.errors import Reason, not_found
from services.engines.bundles.manifest import BundleFile, Manifest

HUB_URL = "https://huggingface.co"

_F5 = f"{HUB_URL}/SWivid/F5-TTS/resolve/84e5a410d9cead4de2f847e7c9369a6440bdfaca"
_VOCOS = f"{HUB_URL}/charactr/vocos-mel-24khz/resolve/0feb3fdd929bcd6649e0e7c5a688cf7dd012ef21"
_WHISPER = f"{HUB_URL}/Systran/faster-whisper-base/resolve/ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66"
_CONTENTVEC = f"{HUB_URL}/lengyue233/content-vec-best/resolve/ab04aa7067b99ee05cc82499bc64916b980a1967"

F5_V1_BASE = Manifest(
    name="f5-v1-base",
    engine="f5",
    files=(
        BundleFile(
            "model.safetensors",
            "670900fd14e6c458b95da6e9ed317cdb20dbaf7a1c02ac06a05475a9d32b6a38",
            1_348_435_761,
            f"{_F5}/F5TTS_v1_Base/model_1250000.safetensors",
            "catalogue",
        ),
        BundleFile(
            "vocab.txt",
            "2a05f992e00af9b0bd3800a8d23e78d520dbd705284ed2eedb5f4bd29398fa3c",
            13_800,
            f"{_F5}/F5TTS_v1_Base/vocab.txt",
            "catalogue",
        ),
        BundleFile(
            "vocos/config.yaml",
            "da9033922f969a47f0c160010226919e59f27761fd5066f3828d46de6650b0fc",
            461,
            f"{_VOCOS}/config.yaml",
            "catalogue",
        ),
        BundleFile(
            "vocos/pytorch_model.bin",
            "97ec976ad1fd67a33ab2682d29c0ac7df85234fae875aefcc5fb215681a91b2a",
            54_365_991,
            f"{_VOCOS}/pytorch_model.bin",
            "catalogue",
        ),
    ),
    licence="CC-BY-NC-4.0",
    licence_url="https://creativecommons.org/licenses/by-nc/4.0/",
    requires_acceptance=True,
    languages=("en", "zh"),
    trained=True,
    source="SWivid/F5-TTS F5TTS_v1_Base (1,250,000 updates), with charactr/vocos-mel-24khz (MIT)",
    description="The official F5-TTS v1 base weights, trained on Emilia (95,000 h), with the Vocos vocoder.",
    origin="hub",
    parameters={"dim": 1024, "depth": 22, "heads": 16, "ff_mult": 2, "text_dim": 512, "conv_layers": 4},
)

F5_SMALL_RANDOM = Manifest(
    name="f5-small-random",
    engine="f5",
    files=(
        BundleFile("model.safetensors", None, None),
        BundleFile("vocab.txt", None, None),
        BundleFile("vocos/config.yaml", None, None),
        BundleFile("vocos/model.safetensors", None, None),
    ),
    licence="MIT",
    licence_url="https://spdx.org/licenses/MIT.html",
    requires_acceptance=False,
    # Random weights speak no language; these are the ones whose text the pipeline will accept.
    languages=("en", "zh"),
    trained=False,
    source="made by services.engines.f5.small from a seed",
    description="F5-TTS's architecture, small, with random weights: every step runs, the sound is noise.",
    origin="generated",
)

WHISPER_BASE = Manifest(
    name="whisper-base",
    engine="whisper",
    files=(
        BundleFile(
            "model.bin",
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            145_217_532,
            f"{_WHISPER}/model.bin",
            "catalogue",
        ),
        BundleFile(
            "config.json",
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            2_309,
            f"{_WHISPER}/config.json",
            "catalogue",
        ),
        BundleFile(
            "tokenizer.json",
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            2_203_239,
            f"{_WHISPER}/tokenizer.json",
            "catalogue",
        ),
        BundleFile(
            "vocabulary.txt",
            "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            459_861,
            f"{_WHISPER}/vocabulary.txt",
            "catalogue",
        ),
    ),
    licence="MIT",
    licence_url="https://github.com/openai/whisper/blob/main/LICENSE",
    requires_acceptance=False,
    languages=(),
    trained=True,
    source="OpenAI Whisper base in CTranslate2 form (Systran/faster-whisper-base), in two registry packages",
    description="Whisper base: transcripts, word times, and speech features at 50 Hz.",
    origin="packages",
)

CONTENTVEC_BASE = Manifest(
    name="contentvec-base",
    engine="contentvec",
    files=(
        BundleFile(
            "pytorch_model.bin",
            "d8dd400e054ddf4e6be75dab5a2549db748cc99e756a097c496c099f65a4854e",
            378_342_945,
            f"{_CONTENTVEC}/pytorch_model.bin",
            "catalogue",
        ),
        BundleFile("config.json", None, None, f"{_CONTENTVEC}/config.json"),
    ),
    licence="MIT",
    licence_url="https://github.com/auspicious3000/contentvec/blob/main/LICENSE",
    requires_acceptance=False,
    languages=(),
    trained=True,
    source="auspicious3000/contentvec (500 classes) in Transformers form, lengyue233/content-vec-best",
    description="ContentVec, the content encoder of RVC v2: layer 12, 768 wide, 50 Hz.",
    origin="hub",
)

CATALOGUE: tuple[Manifest, ...] = (F5_V1_BASE, F5_SMALL_RANDOM, WHISPER_BASE, CONTENTVEC_BASE)

TRUSTED_PICKLES: frozenset[str] = frozenset(
    file.sha256
    for manifest in CATALOGUE
    for file in manifest.files
    if file.sha256 is not None and file.path.endswith(".bin") and manifest.engine != "whisper"
)
"""SHA-256 of the only pickled checkpoints that an engine opens. Any other must be safetensors."""


def known(name: str) -> Manifest:
    """The catalogue's manifest of that name.

    Raises:
        VoxfleetError: MODEL_NOT_FOUND.
    """
    found = find(name)
    if found is None:
        raise not_found(Reason.MODEL_NOT_FOUND, f"bundles/{name}")
    return found


def find(name: str) -> Manifest | None:
    """The catalogue's manifest of that name, or None."""
    return next((manifest for manifest in CATALOGUE if manifest.name == name), None)
