"""The synchronous client is the asynchronous one, translated; and neither drags anything in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_synchronous_client_is_fresh() -> None:
    script = ROOT / "scripts" / "generate_sync_client.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_client_imports_only_what_the_bare_install_brings() -> None:
    code = """
import sys
import voxfleet.client, voxfleet.cli.main
assert 'grpc' not in sys.modules, 'the command starts without gRPC'
voxfleet.client.Client, voxfleet.client.AsyncClient
heavy = {'numpy', 'torch', 'services', 'opentelemetry', 'ray'}
print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))
"""
    paths = [str(ROOT / "sdk"), str(ROOT / "protos" / "gen")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
