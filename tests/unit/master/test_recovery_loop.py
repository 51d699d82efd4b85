"""The master has instances go on elsewhere: when, once, and on the newest state. In virtual time."""

from collections.abc import Sequence

import anyio
import pytest

from exo.cluster.attendance import NOT_BACK
from exo.cluster.membership import STOPPED
from exo.master.recovery import Patience
from exo.master.recovery_loop import MOVES_IN_VAIN_MAX, PAUSE_MAX_S, RETRY_FIRST_S, RETRY_S
from exo.shared.errors import NoMasterError
from exo.shared.serving import instance_status
from exo.shared.types.events import (
    Decision,
    InstanceDeleted,
    InstanceMoved,
    InstanceRestarted,
    InstanceStranded,
    InstanceWaits,
    NodeDisconnected,
    NodeJoined,
    NodeRemoved,
    TermOpened,
)
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State
from support.device_stories import devices_of, failed, gone, machine, on, told
from support.mastered import SOLVE_S, in_virtual_time, led
from support.states import cluster, fold
from support.stories import stage
from support.virtual_time import run

PATIENCE = Patience()
I = InstanceId("i")  # noqa: E741


def two_gpus() -> State:
    return on(cluster(machine("a", "cuda:0", "cuda:1")), "a/cuda:0")


def nowhere_else() -> State:
    """One GPU, and a processor without room."""
    return on(cluster(machine("a", "cuda:0", ram_mib=200)), "a/cuda:0")


@in_virtual_time
async def test_a_device_that_flaps_within_the_patience_moves_nothing() -> None:
    async with led(two_gpus()) as story:
        for _ in range(5):
            story.become(failed, "a/cuda:0")
            await anyio.sleep(PATIENCE.failed_s - 0.2)
            story.become(told, "a/cuda:0")
            await anyio.sleep(0.1)
        await anyio.sleep(60)
        assert story.events == [] and story.solver.requests == []


@in_virtual_time
async def test_a_device_that_fails_for_good_moves_the_instance_once_its_patience_is_over() -> None:
    async with led(two_gpus()) as story:
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s - 0.1)
        assert story.events == []
        await anyio.sleep(0.5)
        assert story.events == [InstanceMoved]
        assert devices_of(story.state) == ["a/cuda:1"]
        # It does not go back when the device is healthy again.
        story.become(told, "a/cuda:0")
        await anyio.sleep(60)
        assert story.events == [InstanceMoved]


@in_virtual_time
async def test_a_device_that_is_gone_has_longer_to_come_back() -> None:
    async with led(two_gpus()) as story:
        device = story.state.nodes[NodeId("a")].identity.devices[1]
        story.become(gone, "a/cuda:0")
        await anyio.sleep(PATIENCE.gone_s - 1)
        story.become(lambda state: fold(state, NodeJoined(identity=machine("a", "cuda:0", "cuda:1"))))
        assert device in story.state.nodes[NodeId("a")].identity.devices
        await anyio.sleep(2)
        assert story.events == []
        story.become(gone, "a/cuda:0")
        await anyio.sleep(PATIENCE.gone_s + 0.5)
        assert story.events == [InstanceMoved]


@in_virtual_time
async def test_a_stage_that_its_device_killed_is_moved_and_not_restarted_where_it_was() -> None:
    async with led(failed(two_gpus(), "a/cuda:0")) as story:
        story.become(lambda state: stage(state, 0, "failed", reason="killed by signal 11"))
        await anyio.sleep(60)
        assert story.events == [InstanceMoved]
        assert story.state.instances[I].failures_in_a_row == 0


@in_virtual_time
async def test_nowhere_to_go_is_told_once_and_tried_again_now_and_then_and_when_the_cluster_changes() -> None:
    async with led(nowhere_else()) as story:
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 1)
        assert story.events == [InstanceStranded]
        status, reason = instance_status(story.state, story.state.instances[I])
        assert status == "failed" and reason is not None and "cannot go on elsewhere" in reason
        asked = len(story.solver.requests)
        for _ in range(50):  # Its node goes on telling how its devices are.
            story.become(failed, "a/cuda:0")
            await anyio.sleep(0.4)
        # Again after 2, 4 and 8 seconds; then every 30.
        assert len(story.solver.requests) == 4 * asked
        await anyio.sleep(10 * RETRY_S)
        assert 13 * asked <= len(story.solver.requests) <= 15 * asked
        assert story.events == [InstanceStranded], "it is told once"

        story.become(lambda state: fold(state, NodeJoined(identity=machine("b", "cuda:0"))))
        await anyio.sleep(1)
        assert story.events == [InstanceStranded, InstanceMoved]
        assert devices_of(story.state) == ["b/cuda:0"]
        assert instance_status(story.state, story.state.instances[I]) == ("pending", None)


@in_virtual_time
async def test_memory_that_becomes_free_is_noticed() -> None:
    state = on(cluster(machine("a", "cuda:0", ram_mib=1000)), "a/cuda:0")
    async with led(told(state, "a/cpu:0", used_mib=900)) as story:
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 1)
        assert story.events == [InstanceStranded]
        story.become(lambda state: told(state, "a/cpu:0", used_mib=10))
        await anyio.sleep(RETRY_S)
        assert story.events == [InstanceStranded, InstanceMoved]
        assert devices_of(story.state) == ["a/cpu:0"]


@in_virtual_time
async def test_a_stranded_instance_starts_again_where_it_was_when_its_device_is_back() -> None:
    async with led(nowhere_else()) as story:
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 1)
        story.become(told, "a/cuda:0")
        await anyio.sleep(5)
        assert story.events == [InstanceStranded, InstanceRestarted]
        assert instance_status(story.state, story.state.instances[I]) == ("pending", None)


@in_virtual_time
async def test_devices_that_a_person_named_are_kept_to() -> None:
    nodes = cluster(machine("a", "cuda:0", "cuda:1", "cuda:2"))
    named = (DeviceId("a/cuda:0"), DeviceId("a/cuda:2"))
    async with led(on(nodes, "a/cuda:0", device_ids=named)) as story:
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 1)
        assert devices_of(story.state) == ["a/cuda:2"]
        story.become(lambda state: stage(state, 0, "ready"))
        story.become(failed, "a/cuda:2")
        await anyio.sleep(PATIENCE.failed_s + 1)
        assert story.events == [InstanceMoved, InstanceStranded]
        assert devices_of(story.state) == ["a/cuda:2"]


@in_virtual_time
async def test_of_two_instances_one_gets_the_one_room_that_is_left() -> None:
    nodes = cluster(*(machine(name, "cuda:0", ram_mib=200) for name in "abc"))
    state = on(on(nodes, "a/cuda:0"), "b/cuda:0", instance_id="j")
    async with led(state) as story:
        story.become(failed, "a/cuda:0")
        story.become(failed, "b/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 2)
        assert story.events == [InstanceMoved, InstanceStranded]
        assert devices_of(story.state, "i") == ["c/cuda:0"]
        assert "not on processors" in (story.state.instances[InstanceId("j")].stranded_reason or "")
        # One that waits does not hold up another one.
        story.become(lambda state: stage(state, 0, "ready"))
        story.become(lambda state: fold(state, NodeJoined(identity=machine("d", "cuda:0", ram_mib=200))))
        await anyio.sleep(2)
        assert devices_of(story.state, "j") == ["d/cuda:0"]


@in_virtual_time
async def test_a_master_that_is_replaced_in_the_middle_moves_nothing() -> None:
    async with led(two_gpus()) as story:

        def lose() -> None:
            story.coordinator.has_master = False
            story.coordinator.set_state(story.state)  # A real one also tells that another node leads.

        story.solver.meanwhile = [lose]
        story.become(failed, "a/cuda:0")
        await anyio.sleep(60)
        assert story.events == [] and len(story.solver.requests) == 1
        # Leading again, it has to see for itself for how long the device is out.
        story.coordinator.has_master = True
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s - 0.1)
        assert story.events == []
        await anyio.sleep(0.5)
        assert story.events == [InstanceMoved]


@in_virtual_time
async def test_a_move_that_cannot_be_committed_is_tried_again() -> None:
    async with led(two_gpus()) as story:
        propose, refused = story.coordinator.propose, 0

        async def fails_once(events: Sequence[Decision], *, cause_id: str) -> int:
            nonlocal refused
            refused += 1
            story.coordinator.propose = propose
            raise NoMasterError("the disk does not answer")

        story.coordinator.propose = fails_once
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 3)
        assert refused == 1 and story.events == [InstanceMoved]


@pytest.mark.parametrize(
    "death",
    [anyio.BrokenWorkerProcess(), OSError("no process can be started"), ZeroDivisionError()],
    ids=repr,
)
def test_a_solver_that_dies_or_is_at_fault_is_asked_again(death: Exception) -> None:
    async def story_of_a_death() -> None:
        async with led(two_gpus()) as story:

            def die() -> None:
                raise death

            story.solver.meanwhile = [die]
            story.become(failed, "a/cuda:0")
            await anyio.sleep(PATIENCE.failed_s + 3)
            assert story.events == [InstanceMoved]

    run(story_of_a_death())


@in_virtual_time
async def test_a_plan_is_made_anew_where_the_newest_state_is_another() -> None:
    async with led(on(cluster(machine("a", "cuda:0", "cuda:1", "cuda:2")), "a/cuda:0")) as story:
        story.solver.meanwhile = [lambda: story.become(failed, "a/cuda:1")]
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 3)
        assert story.events == [InstanceMoved] and len(story.solver.requests) == 2
        assert devices_of(story.state) == ["a/cuda:2"]


@in_virtual_time
async def test_nobody_is_told_that_there_is_nowhere_to_go_when_there_is_by_now() -> None:
    async with led(nowhere_else()) as story:
        joined = NodeJoined(identity=machine("b", "cuda:0"))
        story.solver.meanwhile = [
            lambda: None,
            lambda: story.become(lambda state: fold(state, joined)),
        ]
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 3)
        assert story.events == [InstanceMoved]


@in_virtual_time
async def test_an_instance_that_is_deleted_meanwhile_is_left_alone() -> None:
    async with led(two_gpus()) as story:
        deleted = InstanceDeleted(instance_id=I, reason="test")
        story.solver.meanwhile = [lambda: story.become(lambda state: fold(state, deleted))]
        story.become(failed, "a/cuda:0")
        await anyio.sleep(60)
        assert story.events == [] and len(story.solver.requests) == 1


@in_virtual_time
async def test_a_device_that_is_back_when_the_plan_is_made_keeps_its_instance() -> None:
    async with led(two_gpus()) as story:
        story.solver.meanwhile = [lambda: story.become(told, "a/cuda:0")]
        story.become(failed, "a/cuda:0")
        await anyio.sleep(60)
        assert story.events == [] and len(story.solver.requests) == 1


@in_virtual_time
async def test_a_device_that_was_back_while_the_plan_was_made_has_its_patience_anew() -> None:
    async with led(two_gpus()) as story:
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s + 0.3 * SOLVE_S)
        assert story.solver.at_once == 1
        story.become(told, "a/cuda:0")
        await anyio.sleep(0.3 * SOLVE_S)
        story.become(failed, "a/cuda:0")
        await anyio.sleep(PATIENCE.failed_s - 0.1)
        assert story.events == []
        await anyio.sleep(0.5)
        assert story.events == [InstanceMoved]


def two_nodes() -> State:
    return on(cluster(machine("a", "cuda:0"), machine("b", "cuda:0")), "b/cuda:0")


def lose(state: State, node_id: str = "b", reason: str = "killed") -> State:
    return fold(state, NodeDisconnected(node_id=NodeId(node_id), reason=reason))


def find(state: State, *identities: NodeIdentity) -> State:
    return fold(state, *(NodeJoined(identity=one) for one in identities))


@in_virtual_time
async def test_a_node_that_is_away_for_a_moment_moves_nothing() -> None:
    async with led(two_nodes()) as story:
        for _ in range(5):
            story.become(lose)
            await anyio.sleep(PATIENCE.lost_s - 0.1)
            story.become(find, machine("b", "cuda:0"))
            await anyio.sleep(0.1)
        await anyio.sleep(60)
        assert story.events == [] and story.solver.requests == []


@pytest.mark.parametrize(
    ("reason", "after_s"), [("killed", PATIENCE.lost_s), (STOPPED, PATIENCE.stopped_s), (NOT_BACK, 0.0)]
)
def test_what_was_on_a_lost_node_goes_on_elsewhere(reason: str, after_s: float) -> None:
    async def story_of() -> None:
        async with led(two_nodes()) as story:
            story.become(lose, "b", reason)
            if after_s:
                await anyio.sleep(after_s - 0.05)
                assert story.events == []
            await anyio.sleep(0.05 + 2 * SOLVE_S)
            assert story.events == [InstanceMoved]
            assert devices_of(story.state) == ["a/cuda:0"]
            # It does not go back when the node is there again.
            story.become(lambda state: stage(state, 0, "ready"))
            story.become(find, machine("b", "cuda:0"))
            await anyio.sleep(60)
            assert story.events == [InstanceMoved]

    run(story_of())


def fallen(state: State) -> State:
    """The master was `b`, which is dead as `a` begins to lead; its neighbour's stage has noticed."""
    return fold(
        stage(state, 0, "failed", reason="neighbour gone"), TermOpened(master_node_id=NodeId("a")), term=2
    )


@pytest.mark.parametrize("is_back", [True, False])
def test_what_a_dead_master_ran_is_not_started_again_before_it_is_known_whether_it_is_back(
    is_back: bool,
) -> None:
    async def story_of() -> None:
        two = on(cluster(machine("a", "cuda:0"), machine("b", "cuda:0")), "a/cuda:0", "b/cuda:0")
        async with led(fold(two, TermOpened(master_node_id=NodeId("b")))) as story:
            story.coordinator.has_master = False
            story.coordinator.set_state(story.state)
            await anyio.sleep(1)
            story.coordinator.has_master = True
            story.become(fallen)
            await anyio.sleep(3)
            assert story.events == [], "its other stage cannot be there"
            if is_back:
                await anyio.sleep(1)
                assert story.events == [InstanceRestarted]
            else:
                story.become(lose, "b", NOT_BACK)
                await anyio.sleep(2 * SOLVE_S)
                assert story.events == [InstanceMoved]
                await anyio.sleep(10)
                assert story.events == [InstanceMoved]

    run(story_of())


@in_virtual_time
async def test_what_was_on_a_removed_node_goes_on_elsewhere_at_once() -> None:
    async with led(two_nodes()) as story:
        story.become(lambda state: fold(state, NodeRemoved(node_id=NodeId("b"), reason="stolen")))
        await anyio.sleep(2 * SOLVE_S)
        assert story.events == [InstanceMoved] and devices_of(story.state) == ["a/cuda:0"]


@in_virtual_time
async def test_an_instance_that_nothing_else_holds_waits_for_its_node_and_goes_on_as_it_was() -> None:
    nodes = cluster(machine("a", ram_mib=200), machine("b", "cuda:0"))
    async with led(on(nodes, "b/cuda:0")) as story:
        story.become(lose)
        await anyio.sleep(PATIENCE.lost_s + 1)
        assert story.events == [InstanceWaits]
        status, reason = instance_status(story.state, story.state.instances[I])
        assert status == "failed" and reason is not None
        assert "host-b, which is not connected (killed); it waits for that node" in reason
        assert "MiB are missing (host-a 200 MiB free)" in reason
        await anyio.sleep(300)
        assert story.events == [InstanceWaits], "it is told once"
        story.become(find, machine("b", "cuda:0"))
        await anyio.sleep(60)
        assert story.events == [InstanceWaits], "its stages still run: nothing has to be loaded again"
        assert instance_status(story.state, story.state.instances[I]) == ("ready", None)
        # The next time it is told anew, and somebody who can take it over does.
        story.become(lose)
        await anyio.sleep(PATIENCE.lost_s + 1)
        story.become(find, machine("c", "cuda:0"))
        await anyio.sleep(2)
        assert story.events == [InstanceWaits, InstanceWaits, InstanceMoved]
        assert story.state.instances[I].waiting_reason is None


@in_virtual_time
async def test_memory_that_the_last_readings_still_show_as_taken_is_asked_for_again_soon() -> None:
    """A neighbour's stage ended with the lost one, and what it had is free with the next reading."""
    nodes = cluster(machine("a", "cuda:0", ram_mib=200), machine("b", "cuda:0", ram_mib=200))
    state = stage(on(nodes, "a/cuda:0", "b/cuda:0"), 0, "failed", reason="neighbour gone")
    async with led(told(state, "a/cuda:0", used_mib=600)) as story:
        story.become(lose)
        await anyio.sleep(PATIENCE.lost_s + 1)
        assert story.events == [InstanceWaits]
        story.become(told, "a/cuda:0")
        await anyio.sleep(RETRY_FIRST_S)
        assert story.events == [InstanceWaits, InstanceMoved]


@in_virtual_time
async def test_a_place_where_it_cannot_be_loaded_is_left_and_not_tried_again_and_there_is_an_end_to_it() -> (
    None
):
    nodes = cluster(*(machine(name, "cuda:0", ram_mib=200) for name in "abcdefgh"))
    async with led(on(nodes, "h/cuda:0")) as story:
        story.become(lose, "h")
        tried: list[str] = []
        for _ in range(10):
            await anyio.sleep(PAUSE_MAX_S)
            (device,) = devices_of(story.state)
            if device in tried:
                break
            tried.append(device)
            story.become(lambda state: stage(state, 0, "failed", reason="truncated", is_permanent=True))
        assert len(tried) == MOVES_IN_VAIN_MAX and len(set(tried)) == len(tried)
        assert story.events == [InstanceMoved] * MOVES_IN_VAIN_MAX
        assert instance_status(story.state, story.state.instances[I]) == ("failed", "truncated")


@in_virtual_time
async def test_an_instance_whose_nodes_are_lost_one_after_the_other_moves_less_and_less_often() -> None:
    nodes = cluster(*(machine(name, "cuda:0", ram_mib=200) for name in "abc"))
    async with led(on(nodes, "b/cuda:0")) as story:
        for _ in range(1000):
            at = story.state.instances[I].plan.stages[0].node_id
            if at != "a":
                story.become(lose, at)
            for back in {"b", "c"} - {at}:
                if not story.state.nodes[NodeId(back)].is_connected:
                    story.become(find, machine(back, "cuda:0", ram_mib=200))
            await anyio.sleep(1)
        assert devices_of(story.state) == ["a/cuda:0"] or 5 <= story.events.count(InstanceMoved) <= 25


@pytest.mark.parametrize("devices", [("a/cuda:0",), ("a/cuda:0", "b/cuda:0")])
def test_there_are_never_two_moves_of_one_instance(devices: tuple[str, ...]) -> None:
    """Though all of its devices fail, and the state changes all the time while a plan is made."""

    async def story_of() -> None:
        nodes = cluster(*(machine(name, "cuda:0", "cuda:1") for name in "abc"))
        async with led(on(nodes, *devices)) as story:
            for _ in range(200):
                for device in devices:
                    story.become(failed, device)
                await anyio.sleep(0.05)
            assert story.events == [InstanceMoved]
            assert story.solver.at_once_max == 1
            assert len(story.solver.requests) == 1

    run(story_of())


@in_virtual_time
async def test_none_is_left_untried_while_others_are_tried_again_and_again() -> None:
    """Each try takes longer than the pause before the next one of the same instance."""
    nodes = cluster(machine("a", "cuda:0", "cuda:1", "cuda:2", ram_mib=200), machine("b", ram_mib=200))
    state = nodes
    for instance_id, device_id in (("i", "a/cuda:0"), ("j", "a/cuda:1"), ("k", "a/cuda:2")):
        state = on(state, device_id, instance_id=instance_id, device_ids=(DeviceId(device_id),))
    async with led(state) as story:
        for device_id in ("a/cuda:0", "a/cuda:1", "a/cuda:2"):
            story.become(failed, device_id)
        # The cluster changes all the time, so that all are tried as often as may be.
        story.solver.solve_s = 2.0
        for _ in range(30):
            await anyio.sleep(0.5)
            story.become(lambda state: fold(state, NodeDisconnected(node_id=NodeId("b"), reason="test")))
            await anyio.sleep(0.5)
            story.become(lambda state: fold(state, NodeJoined(identity=machine("b", ram_mib=200))))
        asked = {one for request in story.solver.requests for one in request.device_ids}
        assert asked == {"a/cuda:0", "a/cuda:1", "a/cuda:2"}
