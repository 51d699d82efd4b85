"""Clusters of three to ten in virtual time: whom they can lose, who takes its place, and who follows without a vote."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from exo.cluster.membership import voters_wanted
from exo.cluster.options import CoordinatorOptions
from exo.shared.types.events import NodeRemoved
from exo.shared.types.ids import NodeId
from support.many_nodes_story import IMPATIENT, SMALL, ManyNodes
from support.two_nodes import now_s
from support.virtual_time import run
from support.workload import tag_of

SEEDS = range(3)
GRACE_S = CoordinatorOptions().rejoin_grace_s + 0.2
"""After this a master has led for long enough to call somebody gone."""


def tell(
    story: Callable[[ManyNodes], Awaitable[None]],
    seed: int,
    hosts: str,
    *,
    options: CoordinatorOptions | None = None,
    late: str = "",
) -> None:
    """Tell a story that begins and ends with one cluster in which everything acknowledged is there."""

    async def whole() -> None:
        many = ManyNodes(seed, hosts, options=options, late=late)
        await many.begin()
        await story(many)
        await many.end()

    run(whole())


# --- two and a witness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_silent", [False, True], ids=["killed", "powerless"])
@pytest.mark.parametrize("seed", SEEDS)
def test_two_and_a_witness_go_on_without_any_one_of_them(seed: int, is_silent: bool) -> None:
    async def story(many: ManyNodes) -> None:
        for lost in list(many.nodes.values()):
            await many.until_served(list(many.nodes.values()))
            died_s = now_s()
            await (lost.lose_power() if is_silent else lost.kill())
            left = many.others(lost)
            master = await many.until_led_by(left)
            assert now_s() - died_s < 2.0
            await many.until_served(left)
            assert len(master.up.state.voters.voters) == 3, "it may come back"
            many.network.heal()
            await lost.start()
            await many.until_agreed(list(many.nodes.values()))

    tell(story, seed, "abw")


@pytest.mark.parametrize("seed", SEEDS)
def test_two_that_do_not_hear_each_other_have_one_master_through_the_witness(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        master = many.master
        one, _ = many.others(master)
        many.network.cut(master.host, one.host)
        # Whoever still hears the master does not let the other depose it; that one decides nothing, and sees nothing.
        await asyncio.sleep(4)
        many.simulation.check()
        led = [node.host for node in many.nodes.values() if node.up.leadership.is_self]
        assert len(led) == 1
        witness = next(node for node in many.others(master) if node is not one)
        await many.until_served([witness, many.nodes[led[0]]])

    tell(story, seed, "abw")


def test_the_one_that_is_left_of_three_decides_nothing() -> None:
    async def story(many: ManyNodes) -> None:
        left, first, second = many.voters()
        await first.kill()
        await second.kill()
        await many.simulation.until(lambda: left.up.leadership.master_node_id is None, timeout_s=2)
        await many.check_undecided([left], 10)
        await first.start()
        await many.until_led_by([left, first])
        await many.until_served([left, first])

    tell(story, 1, "abw")


def test_a_witness_that_comes_to_two_makes_them_three_voters_and_full() -> None:
    async def story(many: ManyNodes) -> None:
        designated = many.master
        (copy,) = many.others(designated, many.nodes["w"])
        await many.simulation.until(lambda: designated.up.state.voters.replicas == (copy.host,), timeout_s=5)
        await many.nodes["w"].start()
        await many.until_agreed(list(many.nodes.values()))
        many.work.start("w")
        await designated.kill()
        await many.until_led_by([copy, many.nodes["w"]])
        await many.until_served([copy, many.nodes["w"]])

    tell(story, 2, "abw", late="w")


# --- seven, of which five vote ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_seven_lose_two_voters_at_once_and_go_on(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        master, other, *_ = many.voters()
        await master.kill()
        await other.kill()
        died_s = now_s()
        left = many.others(master, other)
        await many.until_led_by(left)
        assert now_s() - died_s < 2.0
        await many.until_served(left)

    tell(story, seed, "abcdefg")


@pytest.mark.parametrize("seed", SEEDS)
def test_seven_that_lost_three_voters_keep_what_they_know_and_decide_nothing(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        lost = many.voters()[:3]
        for node in lost:
            await node.kill()
        left = many.others(*lost)
        await many.simulation.until(
            lambda: all(node.up.leadership.master_node_id is None for node in left), timeout_s=3
        )
        await asyncio.sleep(1)
        await many.check_undecided(left, 8)
        await lost[0].start()
        back = [*left, lost[0]]
        await many.until_led_by(back, timeout_s=4)
        await many.until_served(back)

    tell(story, seed, "abcdefg")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_side_with_three_of_five_voters_goes_on(seed: int) -> None:
    """Four nodes with two voters are more, and decide nothing; what they ask meanwhile is decided once it heals."""

    async def story(many: ManyNodes) -> None:
        theirs, mine = many.voters()[:2], many.voters()[2:]
        theirs += many.observers()
        many.cut(mine)
        await many.until_led_by(mine)
        await many.until_served(mine)
        await many.simulation.until(
            lambda: all(node.up.leadership.master_node_id is None for node in theirs), timeout_s=3
        )
        counts = [many.work.count(node.host) for node in theirs]
        await asyncio.sleep(3)
        many.simulation.check()
        assert [many.work.count(node.host) for node in theirs] == counts

    tell(story, seed, "abcdefg")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_one_of_seven_is_restarted_in_turn_and_nothing_stops_for_long(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        for node in list(many.nodes.values()):
            await node.stop()
            await many.until_served(many.others(node), timeout_s=2)
            await node.start()
            await many.simulation.until(many.simulation.is_one, timeout_s=4)

    tell(story, seed, "abcdefg")


@pytest.mark.parametrize("seed", SEEDS)
def test_seven_that_lose_power_all_at_once_have_everything_when_it_is_back(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        await asyncio.sleep(many.random.uniform(0.2, 1.0))
        before = many.master.up.state
        for node in many.nodes.values():
            await node.kill()
        await many.simulation.start_all()
        await many.simulation.until(many.simulation.is_one, timeout_s=6)
        after = many.master.up.state
        assert after.cluster_id == before.cluster_id
        assert after.index > before.index
        assert len(after.voters.voters) == 5

    tell(story, seed, "abcdefg")


# --- who takes whose place -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_who_takes_a_dead_voters_place_has_all_and_the_dead_one_comes_back_without_a_vote(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        dead = many.voters()[many.random.randint(0, 4)]
        observers = many.observers()
        await dead.kill()
        left = many.others(dead)
        await many.until_led_by(left)
        await many.simulation.until(
            lambda: (
                dead.host not in many.master.up.state.voters.voters
                and len(many.master.up.state.voters.voters) == 5
            ),
            timeout_s=9,
        )
        (heir,) = [node for node in observers if node.host in many.master.up.state.voters.voters]
        assert heir.store.log.last_index >= many.master.up.state.index - 5, "its disk counts now"
        await dead.start()
        await many.simulation.until(many.simulation.is_one, timeout_s=5)
        await many.until_served([dead])
        await asyncio.sleep(4)
        assert dead.host not in many.master.up.state.voters.voters, "nobody has to give way to it"
        # Two of the five, and the heir is needed for the majority.
        for node in [node for node in many.voters() if node is not heir][:2]:
            await node.kill()
        await many.until_led_by([node for node in many.nodes.values() if node.is_running])
        await many.until_served([heir])

    tell(story, seed, "abcdefg", options=IMPATIENT)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_is_removed_while_two_voters_are_away_takes_nobodys_majority(seed: int) -> None:
    """Six members need three voters instead of five. Those that are there have to be the ones that stay."""

    async def story(many: ManyNodes) -> None:
        master, *others = many.voters()
        # Names decide nothing else: the first ones are away.
        away = sorted(others, key=lambda node: node.host)[:2]
        for node in away:
            await node.kill()
        await many.simulation.until(
            lambda: {node.host for node in away} <= set(many.called_gone()), timeout_s=8
        )
        (removed, *_) = many.observers()
        await many.master.up.propose(
            [NodeRemoved(node_id=NodeId(removed.host), reason="given away")], cause_id="c"
        )
        many.cut([removed])
        left = many.others(*away, removed)
        await many.simulation.until(
            lambda: any(n.up.leadership.is_self for n in left) and len(many.voters()) == 3, timeout_s=5
        )
        await many.until_led_by(left)
        assert set(many.voters()) <= set(left)
        await many.until_served(left)
        assert master.up.leadership.is_self, "nobody else had to be elected"
        # It goes on alone: nobody has let it in again.
        await removed.kill()
        del many.simulation.nodes[removed.host]

    tell(story, seed, "abcdefg")


@pytest.mark.parametrize("seed", SEEDS)
def test_two_of_five_voters_that_lost_their_logs_follow_and_get_their_votes_back(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        victims = many.voters()[1:3]
        for node in victims:
            await node.kill()
            node.lose_log()
        await many.until_served(many.others(*victims))
        for node in victims:
            await node.start()
        assert not any(node.up._kernel.situation.core.may_vote for node in victims)
        await many.until_served(victims)
        await many.simulation.until(lambda: not any(node.is_voteless for node in victims), timeout_s=10)
        await many.simulation.until(lambda: len(many.voters()) == 5, timeout_s=10)
        assert len(many.called_gone()) >= 2

    tell(story, seed, "abcdefg")


# --- who follows without a vote --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_observers_follow_every_master_and_keep_no_log(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        observers = many.observers()
        assert len(observers) == 5
        for _ in range(2):
            master = many.master
            await master.kill()
            died_s = now_s()
            await many.until_led_by(many.others(master))
            await many.until_served(observers)
            assert now_s() - died_s < 3.0
            assert all(node.store.log.last_index == 0 for node in observers)
            await master.start()
            await many.simulation.until(many.simulation.is_one, timeout_s=5)
            assert set(many.observers()) == set(observers), "whoever voted still does"

    tell(story, seed, "abcdefghij")


@pytest.mark.parametrize("seed", SEEDS)
def test_an_observer_that_was_cut_off_gets_what_it_missed(seed: int) -> None:
    """A little is sent as it is; of more, a snapshot and what followed."""

    async def story(many: ManyNodes) -> None:
        observer = many.random.choice(many.observers())
        for count in (5, 120):
            await many.work.rest()
            known = observer.up.state.index
            many.cut([observer])
            for number in range(count):
                master = many.master
                await master.up.propose([many.fact(master, f"{count} {number}")], cause_id="c")
            many.network.heal()
            many.work.start()
            await many.simulation.until(many.simulation.is_one, timeout_s=6)
            assert observer.up.state.index >= known + count
            assert observer.up.state.decided() == many.master.up.state.decided()
            await many.until_served([observer])

    tell(story, seed, "abcdefg", options=SMALL)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_late_joiner_gets_a_snapshot_and_what_follows_while_work_goes_on(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        await many.work.rest()
        for number in range(90):
            await many.master.up.propose([many.fact(many.master, f"early {number}")], cause_id="c")
        many.work.start(*"abcdefg")
        late = many.nodes["z"]
        assert many.master.store.log.first_index > 1, "the beginning is in a snapshot only"
        seen: list[int] = []

        async def note() -> None:
            async for item in late.up.feed():
                if hasattr(item, "index"):
                    seen.append(item.index)

        await late.start()
        noting = asyncio.ensure_future(note())
        started_s = now_s()
        await many.simulation.until(
            lambda: late.up.state.cluster_id == many.master.up.state.cluster_id, timeout_s=3
        )
        await many.simulation.until(many.simulation.is_one, timeout_s=4)
        assert now_s() - started_s < 2.0
        many.work.start("z")
        await many.until_served([late])
        await many.simulation.until(many.simulation.is_one, timeout_s=2)
        assert late.up.state.decided() == many.master.up.state.decided()
        assert late.host not in many.master.up.state.voters.members
        assert late.store.log.last_index == 0
        noting.cancel()
        assert len(seen) < 60, "it did not get the whole history"

    tell(story, seed, "abcdefgz", options=SMALL, late="z")


# --- one's own fault first -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("hosts", ["abc", "abcde", "abcdefg"], ids=len)
def test_a_master_whose_own_cable_is_out_calls_nobody_gone(seed: int, hosts: str) -> None:
    async def story(many: ManyNodes) -> None:
        await asyncio.sleep(GRACE_S)
        master, before = many.master, many.called_gone()
        many.cut([master])
        left = many.others(master)
        await many.until_led_by(left)
        await many.simulation.until(
            lambda: (
                next(node for node in left if node.up.leadership.is_self)
                .up.state.nodes[NodeId(master.host)]
                .is_connected
                is False
            ),
            timeout_s=6,
        )
        await asyncio.sleep(GRACE_S)
        many.simulation.check()
        new = next(node for node in left if node.up.leadership.is_self)
        gone = [n for n, node in new.up.state.nodes.items() if not node.is_connected]
        assert gone == [master.host]
        assert not any(node.is_connected is False for node in master.up.state.nodes.values()), (
            "the one that is cut off has decided nothing about the others"
        )
        many.network.heal()
        await many.simulation.until(many.simulation.is_one, timeout_s=6)
        await asyncio.sleep(GRACE_S)
        assert many.called_gone()[len(before) :] == [master.host]

    tell(story, seed, hosts)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_ten_the_loss_of_six_that_come_back_is_never_decided(seed: int) -> None:
    """All observers and a voter fall silent at the same moment, for less than the grace."""

    async def story(many: ManyNodes) -> None:
        await asyncio.sleep(GRACE_S)
        master, before = many.master, many.called_gone()
        silent = [*many.observers(), many.voters()[-1]]
        assert 2 * len(silent) > len(many.nodes)
        many.cut(silent)
        await asyncio.sleep(many.random.uniform(1.8, 3.5))
        many.simulation.check()
        assert many.called_gone() == before
        many.network.heal()
        await many.simulation.until(many.simulation.is_one, timeout_s=5)
        await asyncio.sleep(GRACE_S + 1)
        assert many.called_gone() == before
        assert many.master is master

    tell(story, seed, "abcdefghij")


@pytest.mark.parametrize("seed", SEEDS)
def test_of_ten_the_loss_of_six_that_stay_away_is_decided_after_the_grace(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        await asyncio.sleep(GRACE_S)
        before = many.called_gone()
        silent = [*many.observers(), many.voters()[-1]]
        many.cut(silent)
        cut_s = now_s()
        await many.simulation.until(lambda: len(many.called_gone()) > len(before), timeout_s=8)
        assert now_s() - cut_s > many.simulation.options.rejoin_grace_s
        await asyncio.sleep(2)
        assert sorted(many.called_gone()[len(before) :]) == sorted(node.host for node in silent)

    tell(story, seed, "abcdefghij")


# --- growing and shrinking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_one_by_one_they_become_nine_and_one_by_one_they_are_stopped(seed: int) -> None:
    async def story(many: ManyNodes) -> None:
        running = [many.nodes["a"]]
        for host in "bcdefghi":
            node = many.nodes[host]
            await node.start()
            running.append(node)
            await many.until_agreed(running)
            assert len(many.voters()) == voters_wanted(len(running))
            assert len(many.master.up.state.voters.replicas) <= 1
        order = list(running)
        many.random.shuffle(order)
        for node in order[:-1]:
            await node.stop()
            running.remove(node)
            master = await many.until_led_by(running)
            started_s = now_s()
            await master.up.propose([many.fact(master, f"without {node.host}")], cause_id="c")
            assert now_s() - started_s < 0.5, "who said goodbye is not waited for"
        (last,) = running
        assert last.up.state.voters.voters == (last.host,)
        assert tag_of(list(last.store.log.read())[-1]) is not None

    tell(story, seed, "abcdefghi", late="bcdefghi")
