"""Who is evaluated with whom."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.engines.f5.packing import Budget, Waiting, choose, padded_frames

WIDE = Budget(segments=64, frames=10_000, free_frames=0, efficiency=0.9)

segments = st.builds(
    Waiting,
    number=st.integers(0, 10_000),
    rank=st.integers(0, 2),
    frames=st.integers(1, 2800),
    guided=st.booleans(),
    passed_over=st.integers(0, 100),
)
crowds = st.lists(segments, min_size=1, max_size=40, unique_by=lambda one: one.number)
budgets = st.builds(
    Budget,
    segments=st.integers(1, 64),
    frames=st.integers(1, 30_000),
    free_frames=st.sampled_from([0, 4000]),
    efficiency=st.sampled_from([0.5, 0.9]),
)


def numbers(chosen):
    return [one.number for one in chosen]


def test_a_lone_segment_goes_at_once_however_long():
    alone = Waiting(7, 2, 50_000)
    assert choose([alone], WIDE) == [alone]
    assert choose([], WIDE) == []


def test_the_urgent_go_first_and_the_others_fill_up():
    crowd = [Waiting(0, 2, 500), Waiting(1, 2, 500), Waiting(2, 0, 500)]
    assert numbers(choose(crowd, replace(WIDE, segments=2))) == [0, 2]
    assert numbers(choose(crowd, replace(WIDE, segments=1))) == [2]
    assert numbers(choose(crowd, WIDE)) == [0, 1, 2]


def test_those_nearest_in_length_join():
    crowd = [Waiting(0, 0, 1000), Waiting(1, 0, 300), Waiting(2, 0, 980), Waiting(3, 0, 1050)]
    assert numbers(choose(crowd, WIDE)) == [0, 2, 3]
    # Where padding costs no time it is welcome.
    assert numbers(choose(crowd, replace(WIDE, free_frames=10_000))) == [0, 1, 2, 3]


def test_only_like_go_together():
    crowd = [Waiting(0, 0, 500), Waiting(1, 0, 500, guided=False), Waiting(2, 0, 500)]
    assert numbers(choose(crowd, WIDE)) == [0, 2]


def test_nobody_is_passed_over_for_ever():
    old = Waiting(0, 2, 200, passed_over=WIDE.patience)
    crowd = [old, *(Waiting(number, 0, 2000) for number in range(1, 9))]
    assert numbers(choose(crowd, WIDE)) == [0]
    assert 0 not in numbers(choose([replace(old, passed_over=WIDE.patience - 1), *crowd[1:]], WIDE))


@given(crowds, budgets)
def test_the_budget_is_kept_and_the_first_always_goes(crowd, budget):
    chosen = choose(crowd, budget)
    assert len(chosen) <= budget.segments
    assert len({one.guided for one in chosen}) == 1
    assert numbers(chosen) == sorted(numbers(chosen))
    padded = padded_frames(chosen)
    if len(chosen) > 1:
        assert padded <= budget.frames
        real = sum(one.frames for one in chosen)
        assert padded <= budget.free_frames or real >= budget.efficiency * padded
    waited = [one for one in crowd if one.passed_over >= budget.patience]
    urgent = min(waited or crowd, key=lambda one: (0 if waited else one.rank, one.number))
    assert urgent in chosen


@given(crowds, budgets)
def test_everybody_gets_a_turn(crowd, budget):
    """However the others rank, each is evaluated within patience and a turn for each of those before it."""
    left = {one.number: one for one in crowd}
    for _ in range((budget.patience + 1) + len(crowd)):
        if not left:
            break
        seen = [replace(one, passed_over=min(one.passed_over, budget.patience)) for one in left.values()]
        for one in choose(seen, budget):
            left.pop(one.number)
        left = {number: replace(one, passed_over=one.passed_over + 1) for number, one in left.items()}
    assert not left


def test_a_budget_that_was_too_much_is_halved_and_grows_back():
    shrunk = WIDE.halved(4000)
    assert shrunk.frames == 2000
    assert shrunk.halved(9000).frames == 1000
    assert replace(WIDE, frames=1).halved(1).frames == 1
    grown = shrunk
    for _ in range(200):
        grown = grown.grown(WIDE)
    assert grown == WIDE
    assert shrunk.frames < shrunk.grown(WIDE).frames < 2 * shrunk.frames
