"""Writes the synchronous client from the asynchronous one.

``sdk/voxfleet/client/aio`` is written by hand; this translates it word by word into
``sdk/voxfleet/client/sync``, which is committed. ``--check`` changes nothing and fails where the two differ.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "sdk" / "voxfleet" / "client"
HEADER = "# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.\n"
PACKAGE = '"""The synchronous client, generated from ``voxfleet.client.aio``: change that, not this."""\n'

WORDS = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsyncClient\b", "Client"),
    (r"\b__aiter__\b", "__iter__"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\bgrpc\.aio\b", "grpc"),
    (r"\bvoxfleet\.client\.aio\b", "voxfleet.client.sync"),
    (r"\bport_aio\b", "port_sync"),
    (r"\bThe asynchronous client\b", "The synchronous client"),
)


def translate(source: str) -> str:
    """The synchronous form of a module, not yet formatted."""
    for pattern, replacement in WORDS:
        source = re.sub(pattern, replacement, source)
    return HEADER + source


def formatted(source: str, name: str) -> str:
    """Import order, ``yield from`` and line breaks as everywhere else."""
    for command in (
        ["check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet"],
        ["format", "--quiet"],
    ):
        source = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
            cwd=CLIENT,
        ).stdout
    return source


def generate() -> dict[Path, str]:
    """Every file of the synchronous client, by path."""
    files = {CLIENT / "sync" / "__init__.py": PACKAGE}
    for path in sorted((CLIENT / "aio").glob("*.py")):
        if path.name != "__init__.py":
            target = CLIENT / "sync" / path.name
            files[target] = formatted(translate(path.read_text(encoding="utf-8")), str(target))
    return files


def main() -> int:
    """Writes, or checks; 1 where a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the files are up to date")
    check = parser.parse_args().check
    files = generate()
    present = set((CLIENT / "sync").glob("*.py"))
    stale = [path for path, text in files.items() if path not in present or path.read_text("utf-8") != text]
    stale += sorted(present - files.keys())
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(CLIENT.parent.parent)}")
        if not check and path in files:
            path.write_text(files[path], encoding="utf-8")
        elif not check:
            path.unlink()
    if check and stale:
        print("run scripts/generate_sync_client.py")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
