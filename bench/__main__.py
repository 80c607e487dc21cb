"""``python -m bench``: every benchmark in turn; fails where one does."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import bench


def main() -> int:
    """Runs every benchmark in a process of its own."""
    names = sorted(found.name for found in pkgutil.iter_modules(bench.__path__) if found.name[0] != "_")
    failed = []
    for name in names:
        print(f"== bench.{name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
