"""Clusters of three to seven in virtual time: elections, minorities, newcomers, lost logs, voters that change."""

import asyncio

import pytest

from exo.cluster.options import CoordinatorOptions
from exo.cluster.raft.core import Core
from exo.cluster.raft.options import CoreOptions
from exo.shared.errors import NoMasterError
from exo.shared.types.events import Decision, NodeDisconnected, VotersChanged
from exo.shared.types.ids import NodeId
from support.simulated_cluster import SimulatedNode, Simulation, history_of, tagged
from support.two_nodes import now_s
from support.virtual_time import run
from support.workload import Workload, tag_of, whole_log

SEEDS = range(6)
SMALL = CoordinatorOptions(
    recent_entries=16, entries_per_message=5, snapshot_entries=20, core=CoreOptions(recent_max=8)
)


async def begin(seed: int, hosts: str, options: CoordinatorOptions | None = None) -> Simulation:
    """Start nodes, and wait until they are one cluster with as many voters as it should have."""
    simulation = Simulation(seed, hosts, options=options)
    await simulation.start_all()
    count = 3 if len(hosts) < 7 else 5
    await simulation.until(
        lambda: simulation.is_one() and len(simulation.master.up.state.voters.voters) == count, timeout_s=12
    )
    return simulation


def others(simulation: Simulation, *but: SimulatedNode) -> list[SimulatedNode]:
    return [node for node in simulation.nodes.values() if node not in but]


def voters(node: SimulatedNode) -> set[str]:
    return set(node.up.state.voters.voters)


def core(node: SimulatedNode) -> Core:
    return node.up._kernel.situation.core


def fact(node: SimulatedNode, tag: str) -> list[Decision]:
    return [tagged(node.host, tag)]


# --- masters come and go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_silent", [False, True], ids=["killed", "powerless"])
@pytest.mark.parametrize("seed", SEEDS)
def test_another_one_leads_soon_when_the_master_dies(seed: int, is_silent: bool) -> None:
    async def story() -> None:
        simulation = await begin(seed, "abc")
        work = Workload(simulation)
        work.start()
        for _ in range(3):
            await asyncio.sleep(simulation.random.uniform(0.2, 0.6))
            master = simulation.master
            await (master.lose_power() if is_silent else master.kill())
            died_s = now_s()
            rest = others(simulation, master)
            await simulation.until(lambda rest=rest: any(n.up.leadership.is_self for n in rest), timeout_s=3)
            assert now_s() - died_s < (2.0 if is_silent else 1.5)
            before = [work.count(node.host) for node in rest]
            await simulation.until(
                lambda rest=rest, before=before: all(
                    work.count(node.host) > count for node, count in zip(rest, before, strict=True)
                ),
                timeout_s=1,
            )
            simulation.network.heal()
            await master.start()
            await simulation.until(simulation.is_one, timeout_s=4)
        await work.rest()
        await simulation.settle()
        for node in simulation.nodes.values():
            work.check(whole_log(node))
        assert len(work.acknowledged) > 50
        await simulation.stop_all()

    run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_master_that_is_stopped_hands_over_without_a_pause(seed: int) -> None:
    async def story() -> None:
        simulation = await begin(seed, "abcd")
        work = Workload(simulation)
        work.start()
        await asyncio.sleep(0.5)
        master = simulation.master
        await master.stop()
        stopped_s = now_s()
        rest = others(simulation, master)
        await simulation.until(lambda: all(n.up.leadership.master_node_id for n in rest), timeout_s=1)
        assert now_s() - stopped_s < 0.6
        # Where the third of them has been there for less than `vote_delay_s`, one is the only voter for that long.
        await simulation.until(lambda: voters(rest[0]) == {node.host for node in rest}, timeout_s=6)
        await master.start()
        await simulation.until(simulation.is_one, timeout_s=4)
        await work.rest()
        await simulation.settle()
        work.check(whole_log(simulation.master))
        await simulation.stop_all()

    run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_minority_that_is_healed_forgets_what_only_it_had(seed: int) -> None:
    """The facts that it told are told again, once; what it decided as a master is void."""

    async def story() -> None:
        simulation = await begin(seed, "abc")
        master = simulation.master
        rest = others(simulation, master)
        simulation.network.isolate(master.host, [node.host for node in rest])
        own = [
            asyncio.ensure_future(master.up.propose(fact(master, f"own {number}"), cause_id="c"))
            for number in range(4)
        ]
        decided = asyncio.ensure_future(
            master.up.propose([NodeDisconnected(node_id=NodeId("nobody"), reason="void")], cause_id="c")
        )
        await asyncio.sleep(0.1)
        only_here = core(master).log.last_index
        assert only_here > core(master).commit_index, "it wrote them, and nobody agreed"
        await simulation.until(lambda: any(n.up.leadership.is_self for n in rest), timeout_s=3)
        for number in range(6):
            await rest[0].up.propose(fact(rest[0], f"theirs {number}"), cause_id="c")
        await asyncio.sleep(3)
        assert master.up.leadership.master_node_id is None
        assert not any(task.done() for task in own)
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=3)
        await asyncio.wait_for(asyncio.gather(*own), 2)
        with pytest.raises(NoMasterError, match="another master leads now"):
            await decided
        await simulation.settle()
        logs = [whole_log(node) for node in simulation.nodes.values()]
        assert logs[0] == logs[1] == logs[2]
        tags = [tag_of(entry) for entry in logs[0] if tag_of(entry)]
        assert sorted(tags) == sorted([*(f"own {n}" for n in range(4)), *(f"theirs {n}" for n in range(6))])
        assert not any(isinstance(e.event, NodeDisconnected) and e.event.reason == "void" for e in logs[0])
        await simulation.stop_all()

    run(story())


def test_without_a_majority_nothing_is_decided_and_the_state_stays() -> None:
    async def story() -> None:
        simulation = await begin(1, "abc")
        first, second, left = simulation.nodes.values()
        await first.lose_power()
        await second.lose_power()
        simulation.network.heal()
        pending = asyncio.ensure_future(left.up.propose(fact(left, "pending"), cause_id="c"))
        await asyncio.sleep(20)
        assert left.up.leadership.master_node_id is None and not pending.done()
        assert len(left.up.state.nodes) == 3
        await second.start()
        await asyncio.wait_for(pending, 3)
        await simulation.stop_all()

    run(story())


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_who_confirms_sees_everything_acknowledged_before(seed: int) -> None:
    async def story() -> None:
        simulation = await begin(seed, "abcd")
        newest = 0

        async def write(node: SimulatedNode) -> None:
            nonlocal newest
            for number in range(30):
                index = await node.up.propose(fact(node, f"{node.host}{number}"), cause_id="c")
                newest = max(newest, index)

        async def read(node: SimulatedNode) -> None:
            for _ in range(20):
                asked = newest
                index = await node.up.confirm(timeout_s=2)
                assert asked <= index <= node.up.state.index
                await asyncio.sleep(simulation.random.uniform(0, 0.01))

        nodes = simulation.nodes.values()
        await asyncio.gather(*(write(node) for node in nodes), *(read(node) for node in nodes))
        await simulation.stop_all()

    run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_master_that_is_cut_off_cannot_confirm(seed: int) -> None:
    async def story() -> None:
        simulation = await begin(seed, "abc")
        master = simulation.master
        rest = others(simulation, master)
        simulation.network.isolate(master.host, [node.host for node in rest])
        assert master.up.leadership.is_self, "it believes in itself for a while"
        reading = asyncio.ensure_future(master.up.confirm(timeout_s=3))
        theirs = {None, master.host}
        await simulation.until(
            lambda: all(n.up.leadership.master_node_id not in theirs for n in rest), timeout_s=3
        )
        index = await rest[0].up.propose(fact(rest[0], "unseen"), cause_id="c")
        with pytest.raises(NoMasterError):
            await reading
        with pytest.raises(NoMasterError):
            await master.up.confirm(timeout_s=1)
        for node in rest:
            assert await node.up.confirm(timeout_s=1) >= index
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=3)
        assert await master.up.confirm(timeout_s=1) >= index
        await simulation.stop_all()

    run(story())


# --- snapshots -------------------------------------------------------------------------------------------------------


async def tell_facts(node: SimulatedNode, count: int) -> None:
    for number in range(count):
        await node.up.propose(fact(node, f"{node.host} {number} of {count}"), cause_id="c")


def is_compacted(node: SimulatedNode) -> bool:
    snapshot = node.store.snapshots.load()
    return snapshot is not None and node.store.log.first_index > 1


def test_a_newcomer_gets_a_snapshot_and_what_followed() -> None:
    async def story() -> None:
        simulation = Simulation(2, "abc", options=SMALL)
        await simulation.nodes["a"].start()
        await simulation.nodes["b"].start()
        await simulation.until(lambda: len(simulation.nodes["a"].up.state.nodes) == 2, timeout_s=5)
        await tell_facts(simulation.master, 90)
        assert is_compacted(simulation.master)
        sent = simulation.master.up._kernel.counts
        newcomer = simulation.nodes["c"]
        await newcomer.start()
        work = Workload(simulation)
        work.start("a", "b")
        await simulation.until(lambda: "c" in voters(simulation.master), timeout_s=6)
        await work.rest()
        await simulation.settle()
        assert sent["snapshot_sent"] >= 1
        assert is_compacted(newcomer), "its log begins behind the snapshot that it was sent"
        assert newcomer.up.state.decided() == simulation.master.up.state.decided()
        await simulation.stop_all()

    run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_come_back_from_a_snapshot_and_what_followed(seed: int) -> None:
    async def story() -> None:
        simulation = await begin(seed, "abc", SMALL)
        for _ in range(2):
            for node in simulation.nodes.values():
                await tell_facts(node, simulation.random.randint(10, 25))
            await simulation.until(simulation.is_one, timeout_s=2)
            assert all(is_compacted(node) for node in simulation.nodes.values())
            before = simulation.master.up.state
            for node in list(simulation.nodes.values()):
                await node.kill()
            await simulation.start_all()
            await simulation.until(simulation.is_one, timeout_s=4)
            after = simulation.master.up.state
            assert after.cluster_id == before.cluster_id and after.index > before.index
            assert {n: s for n, s in after.last_seq.items() if s < before.last_seq[n]} == {}
        follower = others(simulation, simulation.master)[0]
        await follower.kill()
        await tell_facts(simulation.master, 90)
        await follower.start()
        await simulation.until(simulation.is_one, timeout_s=4)
        await simulation.stop_all()

    run(story())


# --- lost logs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_lost_its_log_votes_only_when_it_was_made_a_voter_anew(seed: int) -> None:
    async def story() -> None:
        simulation = await begin(seed, "abc")
        work = Workload(simulation)
        work.start()
        await asyncio.sleep(0.3)
        victim = others(simulation, simulation.master)[0]
        await victim.kill()
        victim.lose_log()
        before = simulation.master.up.state.index
        await victim.start()
        assert not core(victim).may_vote
        await simulation.until(lambda: not victim.is_voteless, timeout_s=10)
        removed = simulation.committed[history_of(simulation.master.up)]
        changes = [
            e.event.voters for i, e in removed.items() if i > before and isinstance(e.event, VotersChanged)
        ]
        assert any(victim.host not in after.members for after in changes), "it was removed first"
        await simulation.until(lambda: victim.host in voters(simulation.master), timeout_s=10)
        await work.rest()
        await simulation.settle()
        work.check(whole_log(victim))
        assert core(victim).may_vote
        await simulation.stop_all()

    run(story())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_node_forgot_cannot_be_outvoted_with_its_help(seed: int) -> None:
    """Two of three have something; one dies, the other forgets it: the third must not lead with the forgetful one."""

    async def story() -> None:
        simulation = await begin(seed, "abc")
        master = simulation.master
        forgetful, behind = others(simulation, master)
        simulation.network.isolate(behind.host, list(simulation.nodes))
        index = await master.up.propose(fact(master, "kept"), cause_id="c")
        await master.kill()
        await forgetful.kill()
        forgetful.lose_log()
        simulation.network.heal()
        await forgetful.start()
        await asyncio.sleep(15)
        assert all(node.up.leadership.master_node_id is None for node in (forgetful, behind))
        await master.start()
        await simulation.until(lambda: not forgetful.is_voteless, timeout_s=15)
        await simulation.until(
            lambda: simulation.is_one() and len(voters(simulation.master)) == 3, timeout_s=5
        )
        await simulation.settle()
        assert tag_of(whole_log(behind)[index - 1]) == "kept"
        await simulation.stop_all()

    run(story())


# --- who votes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_of_seven_nodes_five_vote_and_a_dead_one_is_replaced(seed: int) -> None:
    async def story() -> None:
        options = CoordinatorOptions(recent_entries=32, entries_per_message=5, voter_patience_s=3.0)
        simulation = await begin(seed, "abcdefg", options)
        work = Workload(simulation, pause_s=(0.05, 0.2))
        work.start()
        observers = [n for n in simulation.nodes.values() if n.host not in voters(simulation.master)]
        assert len(observers) == 2
        await simulation.until(lambda: all(work.count(node.host) > 3 for node in observers), timeout_s=3)
        assert all(node.store.log.last_index == 0 for node in observers), "they keep no log"
        dead: list[SimulatedNode] = []
        for expected in (1, 0):
            victim = next(
                node
                for node in simulation.running
                if node is not simulation.master and node.host in voters(simulation.master)
            )
            await victim.kill()
            dead.append(victim)
            died_s = now_s()
            await simulation.until(
                lambda victim=victim: (
                    victim.host not in voters(simulation.master) and len(voters(simulation.master)) == 5
                ),
                timeout_s=9,
            )
            assert now_s() - died_s > 2.9, "it may have come back"
            left = [n for n in simulation.running if n.host not in voters(simulation.master)]
            assert len(left) == expected
        third = next(node for node in simulation.running if node is not simulation.master)
        await third.kill()
        before = work.count(simulation.master.host)
        await simulation.until(lambda: work.count(simulation.master.host) > before + 5, timeout_s=3)
        await asyncio.sleep(8)
        assert third.host in voters(simulation.master), "nobody else could have its place"
        for node in (*dead, third):
            await node.start()
        await work.rest()
        await simulation.until(
            lambda: simulation.is_one() and len(voters(simulation.master)) == 5, timeout_s=10
        )
        work.check(whole_log(simulation.master))
        await simulation.stop_all()

    run(story())


def test_a_cluster_that_shrinks_needs_fewer_voters() -> None:
    """Three are stopped one after the other: the last one goes on alone, at once."""

    async def story() -> None:
        simulation = await begin(4, "abc")
        for left in (2, 1):
            await simulation.master.stop()
            await simulation.until(
                lambda: any(n.up.leadership.is_self for n in simulation.running), timeout_s=2
            )
            await simulation.until(lambda left=left: len(voters(simulation.master)) <= left, timeout_s=2)
            started_s = now_s()
            await simulation.master.up.propose(fact(simulation.master, f"{left} left"), cause_id="c")
            assert now_s() - started_s < 0.5
        (last,) = simulation.running
        assert voters(last) == {last.host}
        await simulation.start_all()
        await simulation.until(lambda: simulation.is_one() and len(voters(last)) == 3, timeout_s=8)
        await simulation.stop_all()

    run(story())


# --- who is there ----------------------------------------------------------------------------------------------------


def disconnections(simulation: Simulation) -> list[str]:
    history = simulation.committed[history_of(simulation.master.up)]
    return [e.event.node_id for _, e in sorted(history.items()) if isinstance(e.event, NodeDisconnected)]


async def cut_most(simulation: Simulation) -> list[SimulatedNode]:
    """Cut the master off from four of seven: from two voters and two others, so that it goes on leading."""
    master = simulation.master
    theirs = [node for node in others(simulation, master) if node.host in voters(master)]
    rest = [node for node in others(simulation, master) if node.host not in voters(master)]
    lost = [*theirs[:2], *rest]
    for node in lost:
        for other in simulation.nodes.values():
            if other not in lost:
                simulation.network.cut(node.host, other.host)
    return lost


def test_a_master_that_loses_most_at_once_waits_before_it_calls_them_gone() -> None:
    async def story() -> None:
        simulation = await begin(5, "abcdefg")
        await asyncio.sleep(4)
        master, before = simulation.master, disconnections(simulation)
        await cut_most(simulation)
        await asyncio.sleep(3.0)
        assert simulation.master is master
        assert disconnections(simulation) == before, "it takes that for its own fault first"
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=4)
        await asyncio.sleep(4)
        assert disconnections(simulation) == before

        lost = await cut_most(simulation)
        await asyncio.sleep(8)
        assert sorted(disconnections(simulation)[len(before) :]) == sorted(node.host for node in lost)
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=6)
        await simulation.stop_all()

    run(story())


def test_one_that_is_lost_is_called_gone_within_two_seconds() -> None:
    async def story() -> None:
        simulation = await begin(6, "abcdefg")
        await asyncio.sleep(4)
        (victim, *_) = others(simulation, simulation.master)
        await victim.lose_power()
        lost_s = now_s()
        await simulation.until(lambda: victim.host in disconnections(simulation), timeout_s=3)
        assert now_s() - lost_s < 2.0
        await simulation.stop_all()

    run(story())


def test_a_new_master_calls_nobody_gone_before_it_has_led_for_a_while() -> None:
    async def story() -> None:
        simulation = await begin(7, "abcde")
        before = disconnections(simulation)
        old = simulation.master
        observer = next(n for n in simulation.running if n.host not in voters(old))
        # Whom the new master cannot reach at first is not gone for that.
        for node in others(simulation, old, observer):
            simulation.network.cut(observer.host, node.host)
        await old.kill()
        await simulation.until(lambda: any(n.up.leadership.is_self for n in simulation.running), timeout_s=3)
        await asyncio.sleep(2)
        assert disconnections(simulation) == before
        simulation.network.heal()
        await asyncio.sleep(3)
        assert disconnections(simulation)[len(before) :] == [old.host], "only who is not back"
        await simulation.stop_all()

    run(story())


# --- clusters that meet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_two_clusters_with_voters_of_their_own_become_one(seed: int) -> None:
    async def story() -> None:
        simulation = Simulation(seed, "abcdefg")
        small, large = "abc", "defg"
        for one in small:
            simulation.network.isolate(one, list(large))
        await simulation.start_all()
        nodes = simulation.nodes

        def are_two() -> bool:
            return all(
                len(nodes[host].up.state.nodes) == len(side) and len(nodes[host].up.state.voters.voters) == 3
                for side in (small, large)
                for host in side
            )

        await simulation.until(are_two, timeout_s=10)
        kept = nodes["d"].up.state.cluster_id
        simulation.network.heal()
        healed_s = now_s()
        await simulation.until(simulation.is_one, timeout_s=8)
        assert now_s() - healed_s < 5
        assert nodes["a"].up.state.cluster_id == kept, "the larger one stays"
        await simulation.until(lambda: len(voters(nodes["a"])) == 5, timeout_s=8)
        await simulation.stop_all()

    run(story())


def test_who_missed_the_end_of_its_cluster_comes_along() -> None:
    """One of a cluster that joins another is cut off meanwhile; and restarts, with a log of what is no more."""

    async def story() -> None:
        simulation = Simulation(8, "abcdefg")
        for one in "abc":
            simulation.network.isolate(one, list("defg"))
        await simulation.start_all()
        nodes = simulation.nodes
        await simulation.until(
            lambda: all(len(nodes[host].up.state.voters.voters) == 3 for host in "abcdefg"), timeout_s=10
        )
        kept = nodes["d"].up.state.cluster_id
        away = next(nodes[host] for host in "abc" if not nodes[host].up.leadership.is_self)
        simulation.network.heal()
        simulation.network.isolate(away.host, list("abcdefg"))
        await simulation.until(
            lambda: all(n.up.state.cluster_id == kept for n in others(simulation, away)), timeout_s=8
        )
        await away.kill()
        await away.start()
        await asyncio.sleep(2)
        assert away.store.log.last_index > 0
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=8)
        await simulation.stop_all()

    run(story())
