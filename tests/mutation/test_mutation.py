"""Without fencing, SKIP LOCKED, unique request ids or the transition check a test fails, and this is seen."""

import json

import pytest

from tests.mutation.__main__ import check, main
from tests.mutation.mutants import MUTANTS, SHORT, Edit, Mutant

SQL = "services/metadata/sql/leases.sql"
QUICK = ("tests/unit/metadata/test_listing.py",)


# On a quiet machine it takes less than a minute.
@pytest.mark.timeout(600)
def test_no_mutant_of_the_short_list_survives(capsys):
    status = main(["--short"])
    report = json.loads(capsys.readouterr().out)
    assert {name: found["verdict"] for name, found in report["mutants"].items()} == dict.fromkeys(
        SHORT, "killed"
    ), report
    assert status == 0, report["unmutated"]


def test_what_no_test_notices_is_said_to_have_survived():
    unseen = Mutant(
        "unseen", "a comment", (Edit(SQL, r"-- name: claim\n--", "-- name: claim\n-- So:"),), QUICK
    )
    gone = Mutant("gone", "what is not there", (Edit(SQL, "SKIP NOTHING", ""),), QUICK)
    report, well = check([unseen, gone], 2)
    verdicts = {name: found["verdict"] for name, found in report["mutants"].items()}
    assert verdicts == {"unseen": "survived", "gone": "does not apply"}, report
    assert not well


def test_every_mutant_has_a_name_of_its_own():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names))
    assert set(SHORT) <= set(names)
