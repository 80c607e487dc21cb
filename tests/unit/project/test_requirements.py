"""``docs/requirements.md`` and the list of reasons stay true."""

import ast
import re
from pathlib import Path

import pytest

from services.common.errors import Reason

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| (?!requirement|-)(?P<what>[^|]+)\|(?P<where>[^|]+)\|(?P<shown>[^|]+)\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "requirements.md").read_text()
    return [(row["what"].strip(), row["shown"].strip()) for row in ROW.finditer(text)]


def test_there_are_rows():
    assert len(rows()) > 40


@pytest.mark.parametrize(("what", "shown"), rows(), ids=lambda value: value[:40])
def test_every_requirement_names_a_test_that_exists_or_says_why_not(what, shown):
    named = TEST.findall(shown)
    if not named:
        assert shown.startswith(("out, because ", "not built: ")), shown
    for path, function in named:
        assert (ROOT / path).is_file(), path
        if function:
            tree = ast.parse((ROOT / path).read_text())
            defined = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert function in defined, f"{path} has no {function}"


def test_every_reason_is_documented():
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))
    assert documented == {reason.value for reason in Reason}
