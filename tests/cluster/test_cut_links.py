"""Three coordinators on three hosts (network namespaces), with certificates; cables are cut both ways or one."""

import time
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path

import pytest

from exo.cluster.node_id import load_node_id
from exo.shared.types.events import LogEntry
from exo.shared.types.nodes import HostPort
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
from support.memberships import Membership
from support.network_namespaces import require_namespaces
from support.switched_hosts import SwitchedHosts, switched_hosts

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

PORT = 7000
NAMES = ("one", "two", "three")
HEALED_MAX_S = 2.0
"""How long it may take from a healed link to a node that has caught up."""
SLACK_S = 2.0
"""Other things run on this machine, and a promise for 99 of 100 is looked at once."""


class Stage:
    """The hosts, and the process on each."""

    def __init__(self, hosts: SwitchedHosts, processes: list[CoordinatorProcess]) -> None:
        self.hosts = hosts
        self.processes = processes
        for process in processes:
            process.tell("work")
        self.look_who_leads()

    def look_who_leads(self) -> None:
        """Wait until everybody works, and look who is the master now."""
        wait_for_work(self.processes, 30)
        self.master, self.others = master_of(self.processes)
        self.term: int = self.master.report()["term"]

    def host(self, process: CoordinatorProcess) -> int:
        return NAMES.index(process.home.name)

    def lose(self, sources: list[CoordinatorProcess], targets: list[CoordinatorProcess]) -> None:
        for source, target in product(sources, targets):
            self.hosts.lose(self.host(source), self.host(target))

    def lose_both_ways(self, one: CoordinatorProcess, other: CoordinatorProcess) -> None:
        self.lose([one], [other])
        self.lose([other], [one])

    def heal(self, lost: CoordinatorProcess, what: str) -> None:
        """Mend all ways, and wait until the node that was cut off follows somebody."""
        for source, target in permutations(range(len(NAMES)), 2):
            self.hosts.mend(source, target)
        healed_s = time.monotonic()
        until(lambda: lost.report()["master"], f"{what}: it is back")
        healing_s = time.monotonic() - healed_s
        print(f"{what}: back after {healing_s:.2f} s")
        assert healing_s < HEALED_MAX_S + SLACK_S, what

    def wait_until_two_go_on_without_the_master(self, cut_s: float) -> float:
        """Wait until the others have a master and the old one calls itself master no more; return since when."""
        elected = wait_for_election(self.others, self.master, cut_s)
        until(lambda: self.master.report()["master"] is None, "the one that is cut off knows no master")
        gave_up = self.master.led_after(cut_s, None)
        assert gave_up is not None
        print(
            f"seconds without a master: {elected['at_s'] - cut_s:.2f}; "
            f"the old one called itself master for {gave_up['at_s'] - cut_s:.2f}"
        )
        assert elected["term"] > self.term
        assert elected["at_s"] - cut_s < FAILOVER_MAX_S + SLACK_S
        assert gave_up["at_s"] - cut_s < FAILOVER_MAX_S + SLACK_S
        since_s = max(elected["at_s"], gave_up["at_s"])
        wait_for_work(self.others, 30)
        return since_s

    def settle_and_check(self) -> dict[str, LogEntry]:
        """Everybody works, all are equal, and nothing acknowledged is lost. Returns what was decided, by tag."""
        wait_for_work(self.processes, 20)
        rest(self.processes)
        wait_for_one(self.processes)
        return end_and_check(self.processes)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    require_namespaces()
    membership = Membership(tmp_path / "authority")
    with switched_hosts(len(NAMES)) as hosts:
        addresses = [HostPort(hosts.address(number), PORT) for number in range(len(NAMES))]
        processes: list[CoordinatorProcess] = []
        for number, name in enumerate(NAMES):
            home = tmp_path / name
            home.mkdir()
            node_id = load_node_id(home)
            membership.identity(node_id)
            place = Place(
                home=str(home),
                secret_file=str(tmp_path / f"own-{name}" / "secret"),
                listen=addresses[number],
                peers=tuple(address for address in addresses if address != addresses[number]),
                keys_home=str(membership.store(node_id).directory.parent),
            )
            processes.append(CoordinatorProcess(place, hosts.within(number)))
        with running(processes):
            yield Stage(hosts, processes)


def test_the_masters_cable_is_pulled_out_while_everybody_works(stage: Stage) -> None:
    cut_s = time.monotonic()
    stage.hosts.pull_out(stage.host(stage.master))
    for tag in ("decide-at-once", "propose-at-once", "confirm-at-once"):  # It does not know yet.
        stage.master.tell(f"{tag.partition('-')[0]} {tag}")
    since_s = stage.wait_until_two_go_on_without_the_master(cut_s)
    for tag in ("decide-later", "confirm-later"):
        stage.master.tell(f"{tag.partition('-')[0]} {tag}")
    for tag in ("confirm-at-once", "decide-later", "confirm-later"):
        assert "error" in stage.master.outcome(tag), tag
    assert stage.master.acknowledged_between(since_s, time.monotonic()) == [], "agreed with itself alone"
    assert not {"decide-at-once", "propose-at-once"} & set(stage.master.outcomes)
    stage.hosts.plug_in(stage.host(stage.master))
    stage.heal(stage.master, "its cable was out")
    assert "decide again" in stage.master.outcome("decide-at-once")["error"]
    assert "index" in stage.master.outcome("propose-at-once")
    decided = stage.settle_and_check()
    assert "propose-at-once" in decided
    assert not {"decide-at-once", "decide-later"} & set(decided)


def test_a_master_that_hears_nobody_or_whom_nobody_hears_is_replaced(stage: Stage) -> None:
    for what in ("it hears nobody", "nobody hears it"):
        cut_s = time.monotonic()
        if what == "it hears nobody":
            stage.lose(stage.others, [stage.master])
        else:
            stage.lose([stage.master], stage.others)
        since_s = stage.wait_until_two_go_on_without_the_master(cut_s)
        assert stage.master.acknowledged_between(since_s, time.monotonic()) == [], what
        stage.heal(stage.master, what)
        stage.look_who_leads()
    stage.settle_and_check()


def test_a_follower_that_is_cut_off_disturbs_nobody(stage: Stage) -> None:
    lost, other = stage.others
    host, rest_of_them = stage.host(lost), [stage.master, other]
    began_s = time.monotonic()
    cuts: dict[str, Callable[[], None]] = {
        "its cable is out": lambda: stage.hosts.pull_out(host),
        "it hears nobody": lambda: stage.lose(rest_of_them, [lost]),
        "nobody hears it": lambda: stage.lose([lost], rest_of_them),
        "only the master is out of reach": lambda: stage.lose_both_ways(lost, stage.master),
    }
    for what, cut in cuts.items():
        if what == "only the master is out of reach":
            # With an equal log it might win an election: the one whom it reaches must be loyal to the master.
            rest(stage.processes)
            wait_for_one(stage.processes)
        cut()
        until(lambda: lost.report()["master"] is None, f"{what}: it knows no master")
        until(lambda: lost.node_id not in stage.master.report()["connected"], f"{what}: that is noticed")
        for process in stage.processes:
            process.tell("work")
        since_s = time.monotonic()
        wait_for_work(rest_of_them, 50)
        assert lost.acknowledged_between(since_s, time.monotonic()) == [], what
        stage.hosts.plug_in(host)
        stage.heal(lost, what)
        wait_for_work(stage.processes, 20)
    stage.settle_and_check()
    terms = {one["term"] for process in stage.processes for one in process.leaders if one["at_s"] > began_s}
    assert terms == {stage.term}, "it made the others elect"
