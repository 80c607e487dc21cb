"""The dependencies that the design names are declared and used, or it is said why not yet."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Distribution -> the module to look for in services, engines, scripts or tests of ours.
WANTED = {
    "grpcio": "grpc",
    "grpcio-tools": "grpc_tools",
    "protobuf": "google.protobuf",
    "ray": "ray",
    "minio": "minio",
    "psycopg": "psycopg",
    "sqlalchemy": "sqlalchemy",
    "prometheus-client": "prometheus_client",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "librosa": "librosa",
    "soundfile": "soundfile",
    "torch": "torch",
    "f5-tts": "f5_tts",
    "webrtcvad": "webrtcvad",
    "kubernetes": "kubernetes",
}
NOT_YET = {
    "kubernetes": "the fleet controller that uses it comes with the chart",
    "librosa": "its REPET-SIM separates voice from background in CleanAudio, which is not built",
    "soundfile": "PyAV decodes and encodes every format that is needed so far",
}
# Declared under another name, or used in another way than by an import in a service.
DECLARED_AS = {"webrtcvad": "webrtcvad-wheels"}
RUN_NOT_IMPORTED = {
    "grpcio-tools": "scripts/generate_protos.py",
    "f5-tts": "services/engines/f5/upstream.py",  # the one door to it imports by name
}


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    return {re.split(r"[\[<>=! ;]", line, maxsplit=1)[0].lower() for line in lines}


def imported() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", WANTED)
def test_declared_and_imported_or_explained(name):
    if name in NOT_YET:
        assert NOT_YET[name]
        assert not any(each.split(".")[0] == WANTED[name] for each in imported()), "it is used: take it off"
        return
    assert DECLARED_AS.get(name, name) in declared()
    if name in RUN_NOT_IMPORTED:
        assert WANTED[name] in (ROOT / RUN_NOT_IMPORTED[name]).read_text()
        return
    module = WANTED[name]
    assert any(each == module or each.startswith(f"{module}.") for each in imported()), module


def test_everything_declared_is_pinned():
    pins = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    own = {"voxfleet"}
    assert {name.replace("_", "-") for name in declared()} - {name.replace("_", "-") for name in pins} <= own


def test_torch_is_pinned_without_a_local_tag():
    pins = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    ]
    assert len(pins) == 1
    assert "+" not in pins[0]
