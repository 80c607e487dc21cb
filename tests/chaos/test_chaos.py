"""The command itself, briefly: every kind of process is killed at least once, and nothing comes of it."""

import json

import pytest

from tests.chaos.history import RULES
from tests.chaos.killer import TARGETS
from tests.chaos.ledger import main


# On a quiet machine it takes less than a minute.
@pytest.mark.timeout(600)
def test_kills_of_everything_lose_nothing_and_do_nothing_twice(capsys):
    status = main(["--jobs", "40", "--kills", "8", "--seed", "ci", "--pace", "1.5"])
    printed, said = capsys.readouterr()
    figures = json.loads(printed.splitlines()[-1])
    assert {rule: figures[rule] for rule in RULES} == dict.fromkeys(RULES, 0), said
    assert (status, figures["kills"]["all"]) == (0, 8), said or printed
    assert figures["kills"].keys() == {*TARGETS, "all"}
    assert figures["jobs"] >= 40
    # A run in which nothing was cut short would prove nothing.
    assert figures["kills_under_load"] >= 4
    assert figures["attempts"].get("EXPIRED", 0) > 0
