"""Makes ``.rvc-reference``: an interpreter with upstream's RVC packages, for tests and benchmarks.

Their pins do not resolve, so they are installed with ``--no-deps`` from ``requirements-rvc-reference.txt``.
What they share with the project (torch, numpy, faiss, transformers) they see through a ``.pth`` file that
names the folder of the interpreter running this script: nothing is downloaded twice.

    python scripts/make_rvc_reference.py [PIP ARGUMENTS...]
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / ".rvc-reference"
WANTED = ROOT / "requirements-rvc-reference.txt"


def main() -> int:
    """Makes it, or does nothing where it is as the list and this interpreter want it."""
    shared = sysconfig.get_path("purelib")
    state = hashlib.sha256(WANTED.read_bytes() + shared.encode()).hexdigest()
    stamp = TARGET / "made-from"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == state:
        print("rvc-reference: as wanted")
        return 0
    print(f"rvc-reference: {TARGET.name}, upstream's packages beside the project's torch")
    venv.create(TARGET, clear=True, with_pip=False, symlinks=True)
    python = TARGET / "bin" / "python"
    site = next(TARGET.glob("lib/python*/site-packages"))
    installing = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run([*installing, *sys.argv[1:], "-r", str(WANTED)], check=False)
    if done.returncode:
        return done.returncode
    (site / "project.pth").write_text(shared + "\n", encoding="utf-8")
    stamp.write_text(state, encoding="utf-8")
    print("rvc-reference: done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
