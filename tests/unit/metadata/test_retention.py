"""What retention decides without a database: parts, keys, names, sums."""

import datetime as dt
import gzip

import pytest

from services.common import names
from services.common.artifacts.model import (
    bundle_key,
    check_prefix,
    content_key,
    content_sha256,
    staging_key,
    work_key,
)
from services.metadata.model.retention import (
    MAX_COUNTED,
    Category,
    Doomed,
    Finished,
    Tally,
    archive_object,
    first_id_at,
    parts_of,
    stray_of,
)

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
SHA = "ab" * 32


def job(number: int, rows: int) -> Finished:
    return Finished("alpha", f"job-{number}", "rvc.convert", 3, NOW, NOW, rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([5], [[0]]),
        ([4, 6], [[0, 1]]),
        ([4, 7], [[0], [1]]),
        ([50], [[0]]),
        ([1, 50, 1], [[0], [1], [2]]),
        ([10, 10, 10], [[0], [1], [2]]),
        ([3, 3, 3, 3], [[0, 1, 2], [3]]),
    ],
)
def test_parts_are_bounded_and_leave_nobody_out(rows, expected):
    jobs = [job(number, count) for number, count in enumerate(rows)]
    parts = parts_of(jobs, 10)
    assert [[jobs.index(each) for each in part] for part in parts] == expected
    assert all(sum(each.rows for each in part) <= 10 or len(part) == 1 for part in parts)


def test_ids_sort_by_the_time_at_which_they_were_made():
    before = dt.datetime.now(dt.UTC)
    made = [names.new_id() for _ in range(100)]
    after = dt.datetime.now(dt.UTC) + dt.timedelta(milliseconds=1)
    assert all(
        first_id_at(before - dt.timedelta(milliseconds=1)) < each < first_id_at(after) for each in made
    )
    assert first_id_at(dt.datetime(1969, 1, 1, tzinfo=dt.UTC)) < made[0]


@pytest.mark.parametrize(
    ("key", "area", "owner"),
    [
        (content_key("alpha", SHA), "sha256", SHA),
        (staging_key("alpha", "u-0001", 42), "staging", "u-0001"),
        (work_key("alpha", "job-1", 2, "folder/g.pt"), "work", "job-1"),
    ],
)
def test_what_the_sweeper_may_delete(key, area, owner):
    stray = stray_of(key, 7)
    assert (stray.team, stray.area, stray.owner, stray.key, stray.size_bytes) == (
        "alpha",
        area,
        owner,
        key,
        7,
    )


@pytest.mark.parametrize(
    "key",
    [
        bundle_key("f5", "model.safetensors"),
        archive_object("alpha", NOW.date(), ["{}"])[0],
        "teams/alpha/sha256/ab",
        "teams/alpha/sha256/ab/cd/ef",
        "teams/alpha/staging/u-0001",
        "teams/alpha/work/job-1/1",
        "teams/alpha/new-kind/x",
        "teams/alpha",
        "health",
        "",
    ],
)
def test_what_it_never_touches(key):
    assert stray_of(key, 7) is None


def test_an_archive_object_is_named_by_what_it_holds():
    lines = ['{"job": "ä"}', '{"job": 2}']
    key, data = archive_object("alpha", NOW.date(), lines)
    assert gzip.decompress(data).decode() == "".join(f"{line}\n" for line in lines)
    assert archive_object("alpha", NOW.date(), lines) == (key, data)
    assert archive_object("alpha", NOW.date(), lines[:1])[0] != key
    assert archive_object("beta", NOW.date(), lines)[0].startswith("teams/beta/archive/jobs/2026-11-21/")
    # It goes with its team, by the prefix of that, and is no content that a row could name.
    assert key.startswith(check_prefix("teams/alpha/"))
    assert content_sha256(key) == ""


def test_a_tally_counts_all_and_names_the_first():
    tally = Tally(2)
    tally.add(Doomed(Category.JOBS, f"job-{number}", number) for number in range(5))
    report = tally.report(NOW)
    assert [share.category for share in report.shares] == list(Category)
    assert report.names(Category.JOBS) == ("job-0", "job-1")
    (jobs,) = (share for share in report.shares if share.category is Category.JOBS)
    assert (jobs.count, jobs.size_bytes, report.complete) == (5, 10, True)
    assert not tally.is_full(Category.JOBS)
    tally.add(Doomed(Category.INPUTS, "", 0) for _ in range(MAX_COUNTED - 1))
    tally.add([Doomed(Category.OUTPUTS, "", 0)])
    assert not tally.is_full(Category.INPUTS)
    assert tally.is_full(Category.INPUTS, Category.OUTPUTS)
    assert not tally.report(NOW).complete
