"""Generates code and the descriptor set from ``protos/``; ``--check`` says whether they are fresh."""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "protos"
GENERATED = SOURCES / "gen"


def generate(target: Path) -> None:
    """Runs protoc: messages, stubs and types of all, ``voxfleet.protoset`` of the public API alone."""
    target.mkdir(parents=True, exist_ok=True)
    files = sorted(str(path.relative_to(SOURCES)) for path in (SOURCES / "voxfleet").rglob("*.proto"))
    _protoc(
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *files,
    )
    _protoc(
        f"--descriptor_set_out={target / 'voxfleet.protoset'}",
        "--include_imports",
        "--include_source_info",
        *(file for file in files if file.startswith("voxfleet/v1/")),
    )


def _protoc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCES}", *words], check=True)


def stale_files() -> list[str]:
    """Files that differ from what the protos would make now."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
        kept = {
            path.relative_to(GENERATED)
            for path in GENERATED.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        return sorted(
            str(name)
            for name in names | kept
            if name not in kept
            or name not in names
            or not filecmp.cmp(fresh / name, GENERATED / name, shallow=False)
        )


def main() -> int:
    """Generates, or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is stale")
    if not parser.parse_args().check:
        generate(GENERATED)
        return 0
    stale = stale_files()
    for name in stale:
        print(f"stale: protos/gen/{name}; run `make proto`")
    print("generated code is fresh" if not stale else f"{len(stale)} stale files")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
