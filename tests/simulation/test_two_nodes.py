"""Clusters of two in virtual time: one decides, the other holds a copy of everything for as long as it is in sync."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from exo.shared.errors import ConfigurationError, NoMasterError
from exo.shared.types.events import HistoryForced, InstanceCreated
from exo.shared.types.ids import NodeId
from support.faulty_story import instance
from support.two_nodes import TwoNodes, now_s
from support.virtual_time import run
from support.workload import Workload, tag_of, whole_log

SEEDS = range(6)


def tell(story: Callable[[TwoNodes], Awaitable[None]], seed: int = 0) -> None:
    """Tell a story about two nodes that are in sync."""

    async def whole() -> None:
        two = TwoNodes(seed)
        await two.begin()
        await story(two)
        await two.simulation.stop_all()

    run(whole())


# --- one of them dies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_silent", [False, True], ids=["killed", "powerless"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_with_the_designated_one(seed: int, is_silent: bool) -> None:
    tell(lambda two: two.lose_the_designated_one(is_silent=is_silent), seed)


@pytest.mark.parametrize("is_silent", [False, True], ids=["killed", "powerless"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_acknowledged_is_lost_with_the_copy_and_work_goes_on(seed: int, is_silent: bool) -> None:
    async def story(two: TwoNodes) -> None:
        work = Workload(two.simulation)
        work.start()
        await asyncio.sleep(two.simulation.random.uniform(0.1, 1.0))
        await two.end(two.copy, is_silent=is_silent)
        before = work.count(two.designated.host)
        await two.simulation.until(lambda: work.count(two.designated.host) > before + 20, timeout_s=4.5)
        assert two.voters == ((two.designated.host,), ())
        two.simulation.network.heal()
        await two.copy.start()
        await two.until_in_sync()
        await work.rest()
        await two.simulation.settle()
        work.check(whole_log(two.designated))
        assert whole_log(two.copy) == whole_log(two.designated)

    tell(story, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_in_sync_survives_links_that_come_and_go(seed: int) -> None:
    tell(TwoNodes.lose_the_designated_one_in_the_middle_of_cuts, seed)


def test_the_copy_alone_shows_its_state_and_decides_nothing_until_the_other_is_back() -> None:
    async def story(two: TwoNodes) -> None:
        designated, copy = two.designated, two.copy
        await designated.up.propose([InstanceCreated(instance=instance())], cause_id="c")
        await two.simulation.until(lambda: bool(copy.up.state.instances), timeout_s=1)
        await designated.kill()
        await two.simulation.until(lambda: copy.up.leadership.master_node_id is None, timeout_s=2)
        pending = two.begin_proposal(copy, "pending")
        await asyncio.sleep(30)
        assert copy.up.state.instances, "what runs goes on"
        assert not pending.done() and copy.up.leadership.master_node_id is None
        with pytest.raises(NoMasterError):
            await copy.up.confirm(timeout_s=1)
        await designated.start()
        async with asyncio.timeout(3):
            index = await pending
        assert tag_of(whole_log(designated)[index - 1]) == "pending"
        await two.until_in_sync()

    tell(story)


def test_after_a_power_cut_of_both_everything_is_there() -> None:
    async def story(two: TwoNodes) -> None:
        work = Workload(two.simulation)
        for first, second in ((two.copy, two.designated), (two.designated, two.copy)):
            work.start()
            await asyncio.sleep(0.5)
            await work.rest()
            await two.designated.kill()
            await two.copy.kill()
            await first.start()
            await asyncio.sleep(1)
            assert first.up.leadership.master_node_id is None, "the other one may know more, or lead"
            await second.start()
            await two.simulation.until(two.simulation.is_one, timeout_s=4)
            await two.simulation.settle()
            assert two.designated.up.leadership.is_self
            work.check(whole_log(two.copy))
            await two.until_in_sync()

    tell(story)


def test_a_designated_one_that_comes_back_alone_goes_on_alone_after_a_while() -> None:
    async def story(two: TwoNodes) -> None:
        await two.copy.kill()
        await two.designated.kill()
        await two.designated.start()
        started_s = now_s()
        pending = two.begin_proposal(two.designated, "alone")
        await pending
        assert 2.5 < now_s() - started_s < 4.5, "it waits for its copy first"
        assert two.voters == ((two.designated.host,), ())

    tell(story)


# --- the operator decides --------------------------------------------------------------------------------------------


def test_forgetting_the_designated_one_makes_the_copy_lead_in_the_next_incarnation() -> None:
    async def story(two: TwoNodes) -> None:
        designated, copy = two.designated, two.copy
        await copy.kill()
        await two.simulation.until(lambda: two.voters == ((designated.host,), ()), timeout_s=5)
        await designated.up.propose([two.fact(designated, "only here")], cause_id="c")
        await designated.kill()
        await copy.start()
        pending = two.begin_proposal(copy, "pending")
        await asyncio.sleep(1)
        index = await copy.up.forget([NodeId(designated.host)])
        assert copy.up.leadership.is_self and copy.up.leadership.incarnation == 2
        assert await pending > index - 2
        forced = [entry.event for entry in whole_log(copy) if isinstance(entry.event, HistoryForced)]
        assert [event.forgotten for event in forced] == [(designated.host,)]

        await designated.start()
        await two.simulation.until(two.simulation.is_one, timeout_s=6)
        assert copy.up.leadership.is_self and designated.up.leadership.incarnation == 2
        assert designated.up.state.decided() == copy.up.state.decided()
        two.designated, two.copy = copy, designated
        await two.until_in_sync()
        assert whole_log(two.copy) == whole_log(two.designated), "its own log was dropped"
        assert "only here" not in [tag_of(entry) for entry in whole_log(two.copy)]

    tell(story)


def test_nobody_is_forgotten_who_is_not_lost() -> None:
    async def story(two: TwoNodes) -> None:
        designated, copy = two.designated, two.copy
        for node in (designated, copy):
            with pytest.raises(ConfigurationError, match="there is a master"):
                await node.up.forget([NodeId(designated.host)])
        await designated.kill()
        await two.simulation.until(lambda: copy.up.leadership.master_node_id is None, timeout_s=2)
        for wrong in ([], [NodeId("z")], [NodeId(designated.host), NodeId("z")]):
            with pytest.raises(ConfigurationError, match="name every voter that is gone"):
                await copy.up.forget(wrong)
        assert copy.up.leadership.incarnation == 1

    tell(story)


# --- one of them is stopped ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_designated_one_hands_over_when_it_is_stopped(seed: int) -> None:
    tell(TwoNodes.stop_the_designated_one, seed)


def test_the_copy_says_goodbye_and_holds_nothing_up() -> None:
    async def story(two: TwoNodes) -> None:
        await two.copy.stop()
        started_s = now_s()
        await two.begin_proposal(two.designated, "at once")
        assert now_s() - started_s < 0.3
        assert two.voters == ((two.designated.host,), ())
        await two.simulation.until(lambda: two.is_called_disconnected(two.copy), timeout_s=3)
        assert two.designated.up.state.nodes[NodeId(two.copy.host)].left_reason == "it was stopped"
        assert two.voters == ((two.designated.host,), ())

    tell(story)
