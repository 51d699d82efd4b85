"""Whom a leader calls gone, and when: nobody too early, nobody never, and most of them at once only after a while."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exo.cluster.attendance import MASS_LOSS_WINDOW_S, Attendance, Gone
from exo.shared.types.ids import NodeId

GRACE_S = 3.0
BEGAN_S = 100.0
NAMES = [NodeId(f"n{number}") for number in range(12)]


def leading(expected: int = 0, present: int = 0) -> Attendance:
    """Begin to lead at BEGAN_S; so many are expected, and the first of them are there."""
    return Attendance(BEGAN_S, expected=NAMES[:expected], present=NAMES[:present], grace_s=GRACE_S)


def due(attendance: Attendance, now_s: float, connected: list[NodeId] | None = None) -> set[str]:
    return {gone.node_id for gone in attendance.due(now_s, NAMES if connected is None else connected)}


moments = st.floats(0.0, 20.0).map(lambda value: round(value, 3))


class Told:
    """An attendance and what it was told, for the rules to be held against."""

    def __init__(self, expected: int, present: int) -> None:
        self.attendance = leading(expected, present)
        self.lost_s = dict.fromkeys(NAMES[present:expected], BEGAN_S)
        self.last_s = BEGAN_S

    def tell(self, name: NodeId, now_s: float, *, is_back: bool, members: int, suspects: int) -> None:
        self.last_s = now_s
        if is_back:
            self.attendance.arrived(name)
            self.lost_s.pop(name, None)
        else:
            self.attendance.lost(name, now_s, "cut", member_count=members, suspect_count=suspects)
            self.lost_s[name] = now_s


@st.composite
def stories(draw: st.DrawFn) -> Told:
    """Members come and go, in any order and at any time."""
    expected = draw(st.integers(0, len(NAMES)))
    told = Told(expected, draw(st.integers(0, expected)))
    now_s = BEGAN_S
    for _ in range(draw(st.integers(0, 15))):
        now_s += draw(st.sampled_from([0.0, 0.05, 0.4, 1.1, 2.1]))
        told.tell(
            draw(st.sampled_from(NAMES)),
            now_s,
            is_back=draw(st.booleans()),
            members=draw(st.integers(1, len(NAMES) + 1)),
            suspects=draw(st.integers(0, 4)),
        )
    return told


# --- rules -----------------------------------------------------------------------------------------------------------


@given(stories(), moments)
def test_only_who_is_lost_is_called_gone(told: Told, later_s: float) -> None:
    assert due(told.attendance, told.last_s + later_s) <= set(told.lost_s)


@given(stories(), moments)
def test_only_who_the_state_calls_connected_is_called_gone(told: Told, later_s: float) -> None:
    assert due(told.attendance, told.last_s + later_s, NAMES[:3]) <= set(NAMES[:3])
    assert due(told.attendance, told.last_s + later_s, []) == set()


@given(stories(), moments)
def test_a_new_leader_calls_nobody_gone_before_it_has_led_for_a_while(told: Told, later_s: float) -> None:
    now_s = told.last_s + later_s
    assume(now_s < BEGAN_S + GRACE_S)
    assert due(told.attendance, now_s) == set()


@given(stories())
def test_everybody_who_is_lost_is_called_gone_in_the_end(told: Told) -> None:
    at_the_latest_s = max(told.last_s, BEGAN_S) + GRACE_S
    assert due(told.attendance, at_the_latest_s) == set(told.lost_s)


@given(stories(), moments, moments)
def test_who_is_called_gone_stays_so_until_it_is_back(told: Told, first_s: float, then_s: float) -> None:
    now_s = told.last_s + first_s
    assert due(told.attendance, now_s) <= due(told.attendance, now_s + then_s)


@given(stories(), moments, moments)
def test_it_knows_how_long_somebody_has_been_lost(told: Told, later_s: float, patience_s: float) -> None:
    now_s = told.last_s + later_s
    for name in NAMES:
        is_missed = name in told.lost_s and now_s - told.lost_s[name] >= patience_s
        assert told.attendance.is_missed(name, now_s, patience_s) == is_missed


@given(
    st.integers(3, len(NAMES)).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count - 1))),
    st.lists(st.floats(0, MASS_LOSS_WINDOW_S), min_size=len(NAMES), max_size=len(NAMES)),
)
def test_most_of_them_at_once_are_taken_for_ones_own_fault(
    members: tuple[int, int], delays_s: list[float]
) -> None:
    """All fall silent at the same moment; that is noticed of one after the other."""
    member_count, lost_count = members
    attendance = leading()
    cut_s = BEGAN_S + 50.0
    noticed_s = sorted(cut_s + delay_s for delay_s in delays_s[:lost_count])
    is_mass = lost_count > 1 and 2 * lost_count > member_count
    called: set[str] = set()
    for number, now_s in enumerate(noticed_s):
        still_silent = lost_count - number - 1
        attendance.lost(NAMES[number], now_s, "silent", member_count=member_count, suspect_count=still_silent)
        called |= due(attendance, now_s)
    if is_mass:
        assert called == set()
        assert due(attendance, noticed_s[0] + GRACE_S - 0.001) == set(), "not the first one either"
        for name in NAMES[:lost_count]:
            attendance.arrived(name)
        assert due(attendance, cut_s + 1000) == set(), "it was its own cable"
    else:
        assert called == set(NAMES[:lost_count])


# --- cases -----------------------------------------------------------------------------------------------------------


def test_who_is_not_back_since_the_master_changed_is_called_gone_after_the_grace() -> None:
    attendance = leading(expected=3, present=1)
    assert due(attendance, BEGAN_S + GRACE_S - 0.001) == set()
    assert sorted(attendance.due(BEGAN_S + GRACE_S, NAMES), key=lambda gone: gone.node_id) == [
        Gone(NAMES[1], "not back since the master changed"),
        Gone(NAMES[2], "not back since the master changed"),
    ]


def test_one_that_is_lost_is_called_gone_at_once_and_with_the_reason() -> None:
    attendance = leading()
    attendance.lost(NAMES[0], BEGAN_S + 10, "its cable", member_count=7)
    assert attendance.due(BEGAN_S + 10, NAMES) == [Gone(NAMES[0], "its cable")]


def test_one_that_is_lost_in_the_first_moments_gets_the_rest_of_the_grace() -> None:
    attendance = leading(expected=1, present=1)
    attendance.lost(NAMES[0], BEGAN_S + 1, "cut", member_count=7)
    assert due(attendance, BEGAN_S + 2.9) == set()
    assert due(attendance, BEGAN_S + GRACE_S) == {NAMES[0]}


def test_the_second_of_two_nodes_is_one_loss_and_no_mass() -> None:
    attendance = leading()
    attendance.lost(NAMES[0], BEGAN_S + 10, "cut", member_count=2)
    assert due(attendance, BEGAN_S + 10) == {NAMES[0]}


@pytest.mark.parametrize(("apart_s", "is_mass"), [(1.9, True), (2.1, False)])
def test_losses_belong_together_within_a_window(apart_s: float, is_mass: bool) -> None:
    attendance = leading()
    attendance.lost(NAMES[0], BEGAN_S + 10, "cut", member_count=3)
    attendance.lost(NAMES[1], BEGAN_S + 10 + apart_s, "cut", member_count=3)
    assert due(attendance, BEGAN_S + 10 + apart_s) == (set() if is_mass else {NAMES[0], NAMES[1]})


def test_half_of_them_is_not_most_of_them() -> None:
    attendance = leading()
    for name in NAMES[:2]:
        attendance.lost(name, BEGAN_S + 10, "cut", member_count=4)
    assert due(attendance, BEGAN_S + 10) == set(NAMES[:2])


def test_who_is_lost_again_begins_anew() -> None:
    attendance = leading()
    attendance.lost(NAMES[0], BEGAN_S + 10, "first", member_count=7)
    attendance.arrived(NAMES[0])
    assert not attendance.is_missed(NAMES[0], BEGAN_S + 99, 0.0)
    attendance.lost(NAMES[0], BEGAN_S + 20, "second", member_count=7)
    assert not attendance.is_missed(NAMES[0], BEGAN_S + 25, 6.0)
    assert attendance.is_missed(NAMES[0], BEGAN_S + 26, 6.0)
    assert attendance.due(BEGAN_S + 20, NAMES) == [Gone(NAMES[0], "second")]
