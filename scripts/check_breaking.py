"""Compares the protos with those of the last release tag, by ``buf breaking``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def last_release() -> str:
    """The newest tag ``v*`` that HEAD descends from, or empty."""
    found = subprocess.run(
        ["git", "describe", "--tags", "--match", "v*", "--abbrev=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def main() -> int:
    """Fails where the API breaks a client of the last release."""
    tag = last_release()
    if not tag:
        print("breaking changes: no release tag yet, nothing to compare with")
        return 0
    buf = Path(sys.executable).parent / "buf"
    against = f".git#tag={tag}"
    failed = subprocess.run([str(buf), "breaking", "--against", against], cwd=ROOT, check=False).returncode
    print(f"breaking changes against {tag}: {'found' if failed else 'none'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
