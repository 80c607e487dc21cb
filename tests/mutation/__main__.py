"""Takes guarantees out of a copy of the tree, one at a time, and says which test noticed.

``python -m tests.mutation`` prints one JSON line: of each mutant what was taken out and the tests that
failed. The exit status is 1 where a mutant survived, no longer applies, or does not even start, and where
tests fail on the tree as it is. The tree itself is not touched.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutation.mutants import MUTANTS, SHORT, Mutant

ROOT = Path(__file__).resolve().parents[2]

_RUN_S = 400.0
_IMPORTS = "import services, voxfleet.v1.job_pb2 as job; print(services.__file__); print(job.__file__)"


@dataclass(frozen=True)
class Run:
    """What became of some tests: how many ran, which failed, which could not be set up."""

    ran: int
    failed: tuple[str, ...]
    broken: tuple[str, ...]
    output: str
    seconds: float


class Copy:
    """A copy of the tree, to be mutated."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self.root = target
        for name in _files(source):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
        found = self._python("-c", _IMPORTS, timeout_s=60).stdout.split()
        strangers = [path for path in found if not Path(path).is_relative_to(target)]
        if strangers or len(found) != 2:
            raise RuntimeError(f"the copy in {target} would be tested with code from elsewhere: {found}")

    def test(self, tests: Iterable[str], *, stop_at_first: bool) -> Run:
        """Runs tests in the copy."""
        began = time.monotonic()
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        options = [
            "-q",
            "--timeout=120",
            "-p",
            "no:cacheprovider",
            "--show-capture=no",
            f"--junitxml={report}",
        ]
        options += ["-x"] if stop_at_first else []
        try:
            done = self._python("-m", "pytest", *options, *tests, timeout_s=_RUN_S)
            output = done.stdout[-3000:] + done.stderr[-1000:]
        except subprocess.TimeoutExpired:
            output = f"not done in {_RUN_S:g} s"
        ran, failed, broken = _read(report)
        return Run(ran, failed, broken, output, time.monotonic() - began)

    @contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The copy with a mutant's edits. Errors: LookupError where one no longer applies."""
        try:
            for edit in mutant.edits:
                edit.apply(self.root)
            yield
        finally:
            for edit in mutant.edits:
                shutil.copy2(self._source / edit.path, self.root / edit.path)

    def _python(self, *words: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        roots = [self.root, self.root / "protos" / "gen", self.root / "sdk"]
        env = dict(os.environ) | {
            "PYTHONPATH": os.pathsep.join(map(str, roots)),
            # A mutant of the same size, within the same second, would be taken for its original.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def _files(source: Path) -> list[str]:
    """What is in version control, and what would be: names under the tree's root that exist."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True).stdout
    return [name for name in dict.fromkeys(listed.split("\0")) if name and (source / name).is_file()]


def _read(report: Path) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """How many tests ran, which failed, and which broke before or after their body."""
    if not report.exists():
        return 0, (), ()
    failed, broken, ran = [], [], 0
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        ran += case.find("skipped") is None
        if case.find("failure") is not None:
            failed.append(name)
        elif case.find("error") is not None:
            broken.append(name)
    return ran, tuple(failed), tuple(broken)


def judge(mutant: Mutant, copy: Copy) -> dict[str, Any]:
    """What became of one mutant."""
    found: dict[str, Any] = {"without": mutant.without}
    try:
        with copy.mutated(mutant):
            run = copy.test(mutant.tests, stop_at_first=True)
    except LookupError as error:
        return found | {"verdict": "does not apply", "why": str(error)}
    found["seconds"] = round(run.seconds, 1)
    if run.failed:
        return found | {"verdict": "killed", "by": list(run.failed)}
    if run.broken or not run.ran:
        return found | {"verdict": "does not run", "why": run.output}
    return found | {"verdict": "survived", "tests": list(mutant.tests)}


def check(mutants: Sequence[Mutant], at_once: int) -> tuple[dict[str, Any], bool]:
    """The report, and whether all is well."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="voxfleet-mutation-") as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(at_once):
            copies.put(Copy(ROOT, Path(folder) / str(number)))

        def with_copy(mutant: Mutant) -> dict[str, Any]:
            copy = copies.get()
            try:
                return judge(mutant, copy)
            finally:
                copies.put(copy)

        tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
        whole = copies.get()
        unmutated = whole.test(tests, stop_at_first=False)
        copies.put(whole)
        sound = bool(unmutated.ran) and not unmutated.failed and not unmutated.broken
        report: dict[str, Any] = {
            "unmutated": {
                "verdict": "passes" if sound else "fails",
                "tests": unmutated.ran,
                "seconds": round(unmutated.seconds, 1),
            }
        }
        if not sound:
            report["unmutated"] |= {"failed": [*unmutated.failed, *unmutated.broken], "why": unmutated.output}
        with ThreadPoolExecutor(at_once) as pool:
            verdicts = list(pool.map(with_copy, mutants))
    report["mutants"] = {mutant.name: verdict for mutant, verdict in zip(mutants, verdicts, strict=True)}
    report["killed"] = sum(verdict["verdict"] == "killed" for verdict in verdicts)
    report["of"] = len(mutants)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report, sound and report["killed"] == len(mutants)


def main(words: list[str] | None = None) -> int:
    """Runs it; the exit status is returned."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("--at-once", type=int, default=2, help="copies that are tested side by side")
    given = parser.parse_args(words)
    wanted = [*(given.only or ()), *(SHORT if given.short else ())] or names
    chosen = [mutant for mutant in MUTANTS if mutant.name in wanted]
    report, well = check(chosen, max(1, min(given.at_once, len(chosen))))
    sys.stdout.write(f"{json.dumps(report)}\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
