"""``python -m bench``: every benchmark in turn; fails where one does."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import bench

_NO_BENCHMARKS = ("failures",)


def main() -> int:
    """Runs every benchmark in a process of its own."""
    names = sorted(
        found.name
        for found in pkgutil.iter_modules(bench.__path__)
        if not found.ispkg and found.name[0] != "_" and found.name not in _NO_BENCHMARKS
    )
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
