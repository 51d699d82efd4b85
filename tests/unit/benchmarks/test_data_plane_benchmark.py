"""The benchmark of the data plane: both ways are what they are said to be, and pairs of rounds are compared."""

from benchmarks import data_plane
from benchmarks.data_plane.ends import Way


def test_the_same_is_sent_in_plain_and_in_tls() -> None:
    with data_plane.linked() as (caller, peers):
        for way in Way:
            assert len(caller.round_trips_us(way, 3)) == 3
            assert caller.prompts_bytes_per_s(way, 2) > 0
            assert len(caller.links_ms(way, peers[way], 2)) == 2
            assert caller.is_secured(way) == (way is Way.TLS)


def test_rounds_are_compared_in_pairs() -> None:
    """The second round of each way is ten times slower: that is the machine's doing."""
    times = {Way.PLAIN: [1.0, 10.0, 1.0], Way.TLS: [2.0, 20.0, 2.0]}
    result = data_plane.compared("it", times, "us", at_most=3)
    assert (result.value, result.baseline, result.ratio, result.holds) == (2.0, 1.0, 2.0, True)
    assert data_plane.compared("it", times, "MB/s", at_least=3).holds is False
    assert data_plane.compared("it", times, "ms").holds is None


def test_rounds_take_turns() -> None:
    order: list[Way] = []

    def measure(way: Way) -> float:
        order.append(way)
        return 1.0

    assert data_plane.paired(3, measure) == {Way.PLAIN: [1.0] * 3, Way.TLS: [1.0] * 3}
    assert order[:2] == order[3:1:-1] == order[4:]
