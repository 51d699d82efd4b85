"""Values that change slowly are asked for rarely, a few at a time; what a machine does not have, once in a while."""

from collections import Counter

from exo.gpu.rarely import ABSENT_S, Rarely, WhereThere


def test_all_are_read_at_first_and_then_the_most_overdue_a_few_at_a_time() -> None:
    now_s, asked = 0.0, Counter[str]()

    def ask(name: str) -> int:
        asked[name] += 1
        return asked[name]

    rarely = Rarely(
        {"often": (10.0, lambda: ask("often")), "seldom": (60.0, lambda: ask("seldom"))}, lambda: now_s
    )
    rarely.refresh(1)
    assert (rarely["often"], rarely["seldom"]) == (1, 1)
    now_s = 9.0
    rarely.refresh(1)
    assert asked == {"often": 1, "seldom": 1}
    now_s = 100.0
    rarely.refresh(1)
    assert asked == {"often": 2, "seldom": 1}, "90 s overdue against 40"
    rarely.refresh(1)
    assert asked == {"often": 2, "seldom": 2}


def test_what_is_there_is_asked_every_time_and_what_is_not_once_in_a_while() -> None:
    now_s, answer, asked = 0.0, None, 0

    def ask() -> int | None:
        nonlocal asked
        asked += 1
        return answer

    there = WhereThere(ask, lambda: now_s)
    assert there() is None and asked == 1
    now_s, answer = ABSENT_S - 1, 5
    assert there() is None and asked == 1
    now_s = ABSENT_S
    assert there() == 5 and there() == 5 and asked == 3
    answer = None
    assert there() is None and there() is None and asked == 4
