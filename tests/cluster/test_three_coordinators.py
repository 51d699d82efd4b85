"""Three real processes over TCP and multicast on loopback: one cluster through kill -9, SIGSTOP and restarts."""

import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.coordinator_process import Place
from support.coordinator_processes import (
    FAILOVER_MAX_S,
    CoordinatorProcess,
    end_and_check,
    master_of,
    rest,
    running,
    until,
    wait_for_election,
    wait_for_one,
    wait_for_work,
)
from support.discoveries import free_udp_port

pytestmark = pytest.mark.slow

HOUR_S = 3600.0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[CoordinatorProcess]]:
    """Three that vote. Their wall clocks are wrong: nothing may depend on them."""
    port = free_udp_port()
    skews_s = {"one": 0.0, "two": -30 * HOUR_S, "three": 9 * HOUR_S}
    places = [
        Place(
            home=str(tmp_path / name),
            secret_file=str(tmp_path / "own" / "secret"),
            discovery_port=port,
            clock_skew_s=skew_s,
        )
        for name, skew_s in skews_s.items()
    ]
    with running([CoordinatorProcess(place) for place in places]) as started:
        yield started


def test_nothing_acknowledged_is_lost_when_nodes_are_killed(processes: list[CoordinatorProcess]) -> None:
    for process in processes:
        process.tell("work")
    wait_for_work(processes, 50)
    waits_s: list[float] = []
    for _ in range(3):
        master, followers = master_of(processes)
        term = master.report()["term"]
        killed_s = time.monotonic()
        master.kill()
        elected = wait_for_election(followers, master, killed_s)
        waits_s.append(elected["at_s"] - killed_s)
        assert elected["term"] > term
        wait_for_work(followers, 20)
        master.start()
        master.tell("work")
        wait_for_work(processes, 20)

        master, (first, second) = master_of(processes)
        term = master.report()["term"]
        first.kill()
        wait_for_work([master, second], 20)
        assert master.report()["term"] == term, "who follows is not missed"
        first.start()
        first.tell("work")
        wait_for_work(processes, 20)
    print("seconds without a master:", [round(wait_s, 2) for wait_s in waits_s])
    assert statistics.median(waits_s) <= FAILOVER_MAX_S

    # All at once, as when the fuse blows.
    for process in processes:
        process.kill()
    for process in processes:
        process.launch()
    for process in processes:
        process.wait_started()
        process.tell("work")
    wait_for_work(processes, 20)
    rest(processes)
    wait_for_one(processes)
    assert len(end_and_check(processes)) > 500


def test_a_follower_that_was_stopped_disturbs_nobody_and_a_master_commits_nothing_more_in_its_term(
    processes: list[CoordinatorProcess],
) -> None:
    for process in processes:
        process.tell("work")
    wait_for_work(processes, 20)
    master, followers = master_of(processes)
    term = master.report()["term"]
    stopped, other = followers
    stopped.signal(signal.SIGSTOP)
    until(lambda: stopped.node_id not in master.report()["connected"], "its loss is noticed")
    wait_for_work([master, other], 50)
    stopped.signal(signal.SIGCONT)
    wait_for_work(processes, 20)
    assert {process.report()["term"] for process in processes} == {term}

    stopped_s = time.monotonic()
    master.signal(signal.SIGSTOP)
    elected = wait_for_election(followers, master, stopped_s)
    print("seconds without a master:", round(elected["at_s"] - stopped_s, 2))
    wait_for_work(followers, 20)
    known_index = max(process.report()["index"] for process in followers)
    # It reads these as soon as it goes on, as the master that it takes itself for.
    tags = [f"{kind}-{number}" for kind in ("propose", "decide", "confirm") for number in range(5)]
    for tag in tags:
        master.tell(f"{tag.partition('-')[0]} {tag}")
    resumed_s = time.monotonic()
    master.signal(signal.SIGCONT)
    until(lambda: master.report()["master"] == elected["leads"], "it follows the new master")
    outcomes = {tag: master.outcome(tag) for tag in tags}
    assert not [one for one in master.leaders if one["at_s"] > resumed_s and one["is_self"]]
    wait_for_work(processes, 20)
    rest(processes)
    wait_for_one(processes)
    assert processes[0].report()["term"] == elected["term"], "nobody is disturbed by its return"
    decided = end_and_check(processes)

    new_from = min(entry.index for entry in decided.values() if entry.term > term)
    assert all(entry.term > term for entry in decided.values() if entry.index > new_from)
    for tag, said in outcomes.items():
        if tag.startswith("confirm"):
            assert said.get("index", known_index) >= known_index, "it read what was old"
        elif tag.startswith("decide"):
            assert tag not in decided and "decide again" in said["error"], "decided on a state that was old"
        else:
            assert decided[tag].term == elected["term"], said
