"""Records what a simulated cluster decided, for `tests/histories`: a log entry a line, and the state after the last.

    PYTHONPATH=tests:. python -m support.recorded_story NAME FILE

writes FILE.jsonl and FILE.state.json, and never over what is there: a recorded history stays as it is.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from exo.cluster.membership import voters_wanted
from exo.cluster.options import CoordinatorOptions
from exo.master.access import decide_token_or_key
from exo.master.decide import decide as decide_commit
from exo.master.placement.place import place_instance
from exo.master.recovery import Trouble, restarts, troubles
from exo.master.recovery_ladder import attempts, decide_move, decide_stranding, decide_waiting, without
from exo.shared.types.access import KeyId, KeyLimits
from exo.shared.types.commands import CommitPlan, DeleteKey
from exo.shared.types.events import (
    Decision,
    DeviceAppeared,
    DeviceLost,
    LogEntry,
    NodeModelsChanged,
    StageChanged,
)
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan, StagePhase
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from support.access_stories import NOW_S, create_key
from support.device_stories import machine, model
from support.simulated_cluster import SimulatedNode, Simulation, tagged
from support.virtual_time import run
from support.workload import whole_log


class Recording(msgspec.Struct, frozen=True):
    """A history, and the state to which it led a real coordinator."""

    entries: Sequence[LogEntry]
    state: State

    def write(self, file: Path) -> None:
        """Write both files.

        Raises:
            FileExistsError: One of them is there.
        """
        lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in self.entries)
        with file.with_suffix(".jsonl").open("xb") as log:
            log.write(lines)
        with file.with_suffix(".state.json").open("xb") as state:
            state.write(msgspec.json.format(msgspec.json.encode(self.state), indent=2) + b"\n")


async def _until_voters(simulation: Simulation, members: int, *, replicas: int = 0) -> Voters:
    """Wait until those who run are one cluster of so many that has the voters it should have; return them."""
    wanted = (voters_wanted(members), replicas)

    def is_so() -> bool:
        states = [node.up.state for node in simulation.running]
        return (
            len({(state.cluster_id, state.index) for state in states}) == 1
            and len(states[0].nodes) >= members
            and (len(states[0].voters.voters), len(states[0].voters.replicas)) == wanted
            and states[0].voters.members <= {node.host for node in simulation.running}
        )

    await simulation.until(is_so, timeout_s=12)
    return simulation.master.up.state.voters


def _is_voter(node: SimulatedNode) -> bool:
    return node.host in node.up.state.voters.voters


async def forced_history(seed: int) -> Recording:
    """Voters change as nodes come, die and are stopped; then all but one are lost, and an operator goes on with it."""
    options = CoordinatorOptions(recent_entries=32, entries_per_message=5, voter_patience_s=2.0)
    simulation = Simulation(seed, "abcd", options=options)
    nodes = list(simulation.nodes.values())
    for members, node in enumerate(nodes, start=1):
        await node.start()
        await _until_voters(simulation, members, replicas=1 if members == 2 else 0)
    for leave in (SimulatedNode.kill, SimulatedNode.stop):
        leaver = next(
            node for node in simulation.running if _is_voter(node) and not node.up.leadership.is_self
        )
        await leave(leaver)
        await _until_voters(simulation, 4)
        await leaver.start()
        await simulation.until(simulation.is_one, timeout_s=5)
    await simulation.settle()
    left = next(node for node in nodes if _is_voter(node) and not node.up.leadership.is_self)
    lost = [node for node in nodes if node is not left]
    for node in lost:
        await node.kill()
    await simulation.until(lambda: left.up.leadership.master_node_id is None, timeout_s=4)
    await left.up.forget([node_id for node_id in left.up.state.voters.voters if node_id != left.host])
    await left.up.propose([tagged(left.host, "after the others were given up")], cause_id="test")
    await lost[0].start()
    await simulation.until(lambda: lost[0].up.state.incarnation == 2, timeout_s=8)
    await simulation.until(
        lambda: lost[0].up.state.decided() == left.up.state.decided() and bool(left.up.state.voters.replicas),
        timeout_s=8,
    )
    recording = Recording(whole_log(left), left.up.state.decided())
    await simulation.stop_all()
    return recording


async def dissolved_cluster(seed: int) -> Recording:
    """Two nodes are a cluster of their own, and join a larger one when they meet it: the end of the smaller one."""
    simulation = Simulation(seed, "abcde")
    for host in "ab":
        simulation.network.isolate(host, list("cde"))
    await simulation.start_all()
    small = [simulation.nodes["a"], simulation.nodes["b"]]

    def are_two() -> bool:
        return {len(node.up.state.nodes) for node in small} == {2} and all(
            len(simulation.nodes[host].up.state.voters.voters) == 3 for host in "cde"
        )

    await simulation.until(are_two, timeout_s=8)
    await simulation.until(lambda: bool(small[0].up.state.voters.replicas), timeout_s=5)
    master = next(node for node in small if node.up.leadership.is_self)
    cluster_id = master.up.state.cluster_id
    ends: list[State] = []

    async def watch() -> None:
        async for state in master.up.changes():
            if state.cluster_id == cluster_id and state.dissolved_into is not None:
                ends.append(state)

    watching = asyncio.ensure_future(watch())
    simulation.network.heal()
    await simulation.until(simulation.is_one, timeout_s=8)
    watching.cancel()
    committed = simulation.committed[cluster_id, 1]
    recording = Recording([committed[index] for index in sorted(committed)], ends[-1].decided())
    await simulation.stop_all()
    return recording


async def moved_instance(seed: int) -> Recording:
    """A model's GPU goes and it goes on on another one; that one goes, too, and comes back."""
    simulation = Simulation(seed, "ab")
    await simulation.start_all()
    await simulation.until(simulation.is_one, timeout_s=8)
    master = simulation.master.up
    for node in simulation.running:
        described = machine(node.host, "cuda:0", ram_mib=200)
        found = [DeviceAppeared(node_id=described.node_id, device=one) for one in described.devices]
        models = NodeModelsChanged(node_id=described.node_id, models=described.models)
        await node.up.propose([*found, models], cause_id=node.host)

    async def all_know() -> None:
        await simulation.until(
            lambda: len({node.up.state.index for node in simulation.running}) == 1, timeout_s=5
        )

    async def report(phase: StagePhase) -> None:
        await all_know()
        instance = master.state.instances[InstanceId("i")]
        stage = instance.plan.stages[0]
        changed = StageChanged(
            instance_id=instance.instance_id, generation=instance.generation, rank=0, phase=phase
        )
        await simulation.nodes[stage.node_id].up.propose([changed], cause_id=instance.created_by)

    async def lose(device_id: DeviceId) -> Trouble:
        await all_know()
        node_id = NodeId(device_id.partition("/")[0])
        lost = DeviceLost(node_id=node_id, device_id=device_id, reason="its driver does not list it any more")
        await simulation.nodes[node_id].up.propose([lost], cause_id="the driver")
        await simulation.until(lambda: bool(troubles(master.state)), timeout_s=5)
        return troubles(master.state)[0]

    async def decide(event: Decision | None) -> None:
        assert event is not None
        await master.propose([event], cause_id="command-1")

    await all_know()
    request = PlacementRequest(model_id=model().model_id)
    plan = place_instance(master.state, request, should_stop=lambda: False)
    assert isinstance(plan, Plan), plan
    created = decide_commit(
        master.state,
        CommitPlan(
            command_id=CommandId("command-1"), instance_id=InstanceId("i"), request=request, plan=plan
        ),
    )
    assert isinstance(created, list), created
    await master.propose(created, cause_id="command-1")
    await report("ready")
    (first,) = plan.stages[0].device_ids

    trouble = await lose(first)
    (attempt, *_) = attempts(master.state, master.state.instances[InstanceId("i")])
    answer = place_instance(
        without(master.state, InstanceId("i")), attempt.request, should_stop=lambda: False
    )
    assert isinstance(answer, Plan), answer
    await decide(decide_move(master.state, trouble, attempt, answer, []))
    await report("ready")

    (second,) = answer.stages[0].device_ids
    trouble = await lose(second)
    refused = ["no other healthy GPUs for one stage", "not on processors: no room"]
    await decide(decide_stranding(master.state, trouble, refused))
    await all_know()
    node_id = NodeId(second.partition("/")[0])
    back = next(one for one in machine(node_id, "cuda:0").devices if one.device_id == second)
    appeared = DeviceAppeared(node_id=node_id, device=back)
    await simulation.nodes[node_id].up.propose([appeared], cause_id="the driver")
    await simulation.until(lambda: bool(restarts(master.state)), timeout_s=5)
    await decide(restarts(master.state)[0])
    await report("ready")
    await all_know()
    recording = Recording(whole_log(simulation.master), master.state.decided())
    await simulation.stop_all()
    return recording


async def lost_node(seed: int) -> Recording:
    """A model's node is lost, and nobody else has the model; the next time another one has it, and it goes on there."""
    simulation = Simulation(seed, "abc")
    await simulation.start_all()
    await simulation.until(simulation.is_one, timeout_s=8)
    await simulation.settle()
    master = simulation.master.up
    victim, other = (node for node in simulation.running if not node.up.leadership.is_self)
    key = InstanceId("i")

    async def has_model(node: SimulatedNode) -> None:
        changed = NodeModelsChanged(node_id=NodeId(node.host), models=(model(),))
        await node.up.propose([changed], cause_id=node.host)
        await simulation.until(lambda: node.host in _with_models(master.state), timeout_s=5)

    async def decide(event: Decision | None) -> None:
        assert event is not None
        await master.propose([event], cause_id="command-1")

    async def report(node: SimulatedNode, phase: StagePhase) -> None:
        generation = master.state.instances[key].generation
        await decide(StageChanged(instance_id=key, generation=generation, rank=0, phase=phase))

    async def lose() -> Trouble:
        await victim.kill()
        await simulation.until(lambda: bool(troubles(master.state)), timeout_s=8)
        return troubles(master.state)[0]

    await has_model(victim)
    request = PlacementRequest(model_id=model().model_id)
    plan = place_instance(master.state, request, should_stop=lambda: False)
    assert isinstance(plan, Plan), plan
    command = CommitPlan(command_id=CommandId("command-1"), instance_id=key, request=request, plan=plan)
    created = decide_commit(master.state, command)
    assert isinstance(created, list), created
    await master.propose(created, cause_id="command-1")
    await report(victim, "ready")

    trouble = await lose()
    await decide(decide_waiting(master.state, trouble, ["only nodes that are not connected have toy"]))
    await victim.start()
    await simulation.until(simulation.is_one, timeout_s=8)
    await has_model(victim)
    await report(victim, "ready")
    await has_model(other)

    trouble = await lose()
    (attempt, *_) = attempts(master.state, master.state.instances[key])
    answer = place_instance(without(master.state, key), attempt.request, should_stop=lambda: False)
    assert isinstance(answer, Plan), answer
    await decide(decide_move(master.state, trouble, attempt, answer, []))
    await report(other, "ready")
    recording = Recording(whole_log(simulation.master), master.state.decided())
    await simulation.stop_all()
    return recording


def _with_models(state: State) -> set[str]:
    return {node_id for node_id, node in state.nodes.items() if node.identity.models}


async def limited_keys(seed: int) -> Recording:
    """Keys are made with a quota, with devices, and without any limit; one is deleted."""
    simulation = Simulation(seed, "ab")
    await simulation.start_all()
    await simulation.until(simulation.is_one, timeout_s=8)
    master = simulation.master.up
    described = machine("a", "cuda:0", ram_mib=200)
    found = [DeviceAppeared(node_id=described.node_id, device=one) for one in described.devices]
    await master.propose(found, cause_id="a")
    device_id = described.devices[0].device_id
    commands = (
        create_key("infer", limits=KeyLimits(requests_per_minute=60, tokens_per_day=100_000)),
        create_key("operate", key_id="bcde2345", limits=KeyLimits(device_ids=(device_id,))),
        create_key("admin", key_id="cdef3456"),
        create_key("read", key_id="defa4567", limits=KeyLimits(requests_per_minute=1)),
        DeleteKey(command_id=CommandId("command-5"), key_id=KeyId("defa4567")),
    )
    for number, command in enumerate(commands, start=1):
        decided = decide_token_or_key(master.state, command, NOW_S)
        assert isinstance(decided, list), decided
        await master.propose(decided, cause_id=f"command-{number}")
    await simulation.until(
        lambda: len({node.up.state.index for node in simulation.running}) == 1, timeout_s=5
    )
    recording = Recording(whole_log(simulation.master), master.state.decided())
    await simulation.stop_all()
    return recording


STORIES: dict[str, Callable[[int], Awaitable[Recording]]] = {
    "forced-history": forced_history,
    "dissolved-cluster": dissolved_cluster,
    "moved-instance": moved_instance,
    "lost-node": lost_node,
    "limited-keys": limited_keys,
}


def record(name: str, seed: int) -> Recording:
    """Tell a story in virtual time."""

    async def told() -> Recording:
        return await STORIES[name](seed)

    return run(told())


if __name__ == "__main__":
    record(sys.argv[1], seed=0).write(Path(sys.argv[2]))
