"""Reading and changing a cluster from the command line, against a real port."""

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from exo.cli import output
from exo.cli.naming import find_device, find_instance, find_node
from exo.cli.output import size
from exo.cli.status import alias_order, device_line
from exo.cluster.facts import PeerSeen
from exo.shared.errors import ConfigurationError
from exo.shared.types import events
from exo.shared.types.commands import (
    Command,
    Deleted,
    DeleteInstance,
    Placed,
    PlaceInstance,
    Refusal,
    Reply,
)
from exo.shared.types.devices import (
    DeviceRefusal,
    MemoryProfile,
    NodePerformanceProfile,
    SystemProfile,
)
from exo.shared.types.ids import NodeId
from exo.shared.types.state import NodeTelemetry
from exo.shared.types.voters import Voters
from support.api_world import INSTANCE_ID, STAGE_ADDRESS, World
from support.cli_run import Run, RunningWorld
from support.states import GIB, fold
from support.stories import placed, stage


def on_command(world: World, *later: dict[str, Any]) -> list[Command]:
    """Have the master place `toy`; its stage then goes through the phases given, one after the other."""
    commands: list[Command] = []
    coordinator = world.coordinator

    async def answer(command: Command) -> Reply:
        commands.append(command)
        coordinator.set_state(placed(coordinator.state))
        for number, phase in enumerate(later):
            asyncio.get_running_loop().call_later(
                0.02 * (number + 1),
                lambda phase=phase: coordinator.set_state(stage(coordinator.state, 0, **phase)),
            )
        return Placed(instance=coordinator.state.instances[INSTANCE_ID], index=coordinator.state.index)

    coordinator.set_command_handler(answer)
    return commands


def replying(world: World, reply: Reply) -> list[Command]:
    commands: list[Command] = []

    async def answer(command: Command) -> Reply:
        commands.append(command)
        return reply

    world.coordinator.set_command_handler(answer)
    return commands


def test_status_says_why_a_model_moved_or_cannot_go_on(ready: RunningWorld, run: Run) -> None:
    coordinator = ready.world.coordinator
    plan = coordinator.state.instances[INSTANCE_ID].plan
    moved = events.InstanceMoved(instance_id=INSTANCE_ID, generation=2, plan=plan, reason="cuda:0 has failed")
    ready.portal.call(coordinator.set_state, fold(coordinator.state, moved))
    assert "pending 0/6, moved: cuda:0 has failed" in run("status").out
    stranded = events.InstanceStranded(instance_id=INSTANCE_ID, generation=2, reason="cpu:0 is gone")
    ready.portal.call(coordinator.set_state, fold(coordinator.state, stranded))
    shown = run("status").out
    assert "failed: cpu:0 is gone" in shown and "moved" not in shown


def test_status_shows_nodes_devices_and_instances(ready: RunningWorld, run: Run) -> None:
    gone = events.NodeDisconnected(node_id=NodeId("b"), reason="no answer for 5 s")
    ready.portal.call(ready.world.coordinator.set_state, fold(ready.world.coordinator.state, gone))
    outcome = run("status")
    assert outcome.code == 0
    for words in (
        "host-a (master)",
        "host-b (away: no answer for 5 s)",
        "2 nodes (1 away), 1 device, 8.0 GiB",
        "cpu:0 Test CPU",
        "0: host-a layers 0-5",
        "ready",
    ):
        assert words in outcome.out


def test_what_a_node_told_before_it_went_away_is_not_shown_as_if_it_were_so_now(
    unplaced: RunningWorld, run: Run
) -> None:
    memory = MemoryProfile(ram_total=8 * GIB, ram_available=5 * GIB, swap_total=0, swap_available=0)
    told = NodeTelemetry(profile=NodePerformanceProfile(memory=memory, system=SystemProfile()))
    coordinator = unplaced.world.coordinator
    unplaced.portal.call(coordinator.set_state, replace(coordinator.state, live={NodeId("b"): told}))

    def of_b() -> str:
        return next(line for line in run("status").out.splitlines() if line.startswith("host-b"))

    assert "5.0 GiB of 8.0 GiB" in of_b()
    gone = events.NodeDisconnected(node_id=NodeId("b"), reason="no answer for 5 s")
    unplaced.portal.call(coordinator.set_state, fold(coordinator.state, gone))
    assert "away" in of_b() and "8.0 GiB" not in of_b()


def test_devices_stand_in_the_order_of_their_numbers() -> None:
    aliases = ("cuda:10", "cuda:2", "cpu:0", "cuda:0", "odd")
    found = sorted(({"local_alias": one} for one in aliases), key=alias_order)
    assert [one["local_alias"] for one in found] == ["cpu:0", "cuda:0", "cuda:2", "cuda:10", "odd"]


def test_status_shows_what_is_there_and_not_used(unplaced: RunningWorld, run: Run) -> None:
    refused = DeviceRefusal(
        backend="cuda",
        kind="unavailable",
        name="NVIDIA GPUs",
        reason="the driver is too old",
        next_step="update it",
    )
    memory = MemoryProfile(ram_total=8 * GIB, ram_available=GIB, swap_total=0, swap_available=0)
    profile = NodePerformanceProfile(memory=memory, system=SystemProfile(), refused_devices=(refused,))
    told = events.NodeProfileUpdated(node_id=NodeId("a"), profile=profile)
    unplaced.portal.call(unplaced.world.coordinator.publish, [told])
    shown = " ".join(run("status").out.split())
    assert "not used on host-a: NVIDIA GPUs: the driver is too old; update it" in shown


def test_a_node_that_was_removed_waits_for_nobody(unplaced: RunningWorld, run: Run) -> None:
    coordinator = unplaced.world.coordinator
    changed = events.VotersChanged(voters=Voters(voters=(NodeId("b"),)), reason="test")
    coordinator.set_state(fold(coordinator.state, changed))
    detail = "this node was removed from the cluster there: sold; to join it again: exo join TOKEN"
    coordinator.peers = (PeerSeen(address=None, via="decision", status="removed", detail=detail, age_s=0.0),)
    assert "decides" in run("status").out and detail in run("status").out
    coordinator.has_master = False
    told = " ".join(run("status").out.split())
    assert detail in told and "decisions wait" not in told
    stranger = PeerSeen(
        address=None, via="multicast", status="other_namespace", detail="it is in namespace x", age_s=75.0
    )
    coordinator.peers = (stranger,)
    assert "it is in namespace x (last noticed 75 s ago)" in " ".join(run("status").out.split())
    coordinator.peers = ()
    assert "decisions wait for" in " ".join(run("status").out.split())


def test_status_as_json_is_the_state(ready: RunningWorld, run: Run) -> None:
    outcome = run("status", "--json")
    assert json.loads(outcome.out)["instances"]["i"]["status"] == "ready"


def test_status_without_instances_names_the_next_step(unplaced: RunningWorld, run: Run) -> None:
    assert "exo place MODEL" in run("status").out


def test_models_are_listed_with_their_problems(ready: RunningWorld, run: Run) -> None:
    outcome = run("models")
    assert "toy" in outcome.out
    assert "1 placed" in outcome.out
    assert "model.safetensors is truncated" in outcome.out
    assert [model["model_id"] for model in json.loads(run("models", "--json").out)["models"]] == [
        "org/broken",
        "toy",
    ]


def test_names_from_outside_are_never_markup(ready: RunningWorld, run: Run) -> None:
    gone = events.NodeDisconnected(node_id=NodeId("b"), reason="[red]\x1b[2J[/nonsense]")
    ready.portal.call(ready.world.coordinator.set_state, fold(ready.world.coordinator.state, gone))
    outcome = run("status")
    assert outcome.code == 0
    assert "[red] [2J[/nonsense]" in outcome.out
    assert "\x1b" not in outcome.out


def test_place_waits_until_the_instance_is_ready(unplaced: RunningWorld, run: Run) -> None:
    commands = on_command(unplaced.world, {"phase": "loading"}, {"phase": "ready", "address": STAGE_ADDRESS})
    outcome = run("place", "toy")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, "toy is ready as i, in 1 stage")
    # Then why it is there, and how fast that is thought to be.
    assert "stage 0: layers 0 to 5 on host-a (cpu:0)" in outcome.out
    assert "estimate: " in outcome.out and "certificate: " in outcome.out
    assert "exo chat toy" in outcome.err
    (command,) = commands
    assert isinstance(command, PlaceInstance)
    assert (command.request.min_nodes, command.request.prefer_gpu) == (1, True)


def test_place_sends_every_wish(unplaced: RunningWorld, run: Run) -> None:
    commands = on_command(unplaced.world)
    outcome = run(
        "place", "toy", "--no-wait", "--json", "--min-nodes", "2", "--no-gpu", "--node", "host-a", "--node", "b",
        "--device", "host-b/cpu:0", "--exclude", "a/cpu:0", "--context-length", "64", "--concurrency", "2",
        "--layers", "2, 4", "--sharding", "pipeline", "--engine", "mlx",
    )  # fmt: skip
    assert outcome.code == 0
    assert json.loads(outcome.out)["status"] == "pending"
    (command,) = commands
    assert isinstance(command, PlaceInstance)
    request = command.request
    assert (request.min_nodes, request.prefer_gpu, request.node_ids) == (2, False, ("a", "b"))
    assert (request.device_ids, request.exclude) == (("b/cpu:0",), ("a/cpu:0",))
    assert (request.context_length, request.concurrency) == (64, 2)
    assert (request.layer_split, request.sharding, request.engine) == ((2, 4), "pipeline", "mlx")


@pytest.mark.parametrize(
    ("flag", "kinds"),
    [("--objective", "auto, latency, throughput"), ("--sharding", "auto, pipeline, tensor, hybrid")],
)
def test_place_names_the_kinds_that_there_are(
    unplaced: RunningWorld, run: Run, flag: str, kinds: str
) -> None:
    outcome = run("place", "toy", flag, "cheap")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"exo: {flag} 'cheap': expected one of {kinds}\n"


def test_place_sits_through_a_restart_and_tells_a_lasting_failure(unplaced: RunningWorld, run: Run) -> None:
    on_command(
        unplaced.world,
        {"phase": "failed", "reason": "it crashed"},
        {"phase": "failed", "reason": "the file is truncated", "is_permanent": True},
    )
    outcome = run("place", "toy")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "exo: toy failed: the file is truncated; mend that, then: exo delete i, and place it again\n"
    )


def test_place_gives_up_waiting_with_the_progress(unplaced: RunningWorld, run: Run) -> None:
    on_command(unplaced.world)
    outcome = run("place", "toy", "--timeout", "0")
    assert outcome.code == 1
    assert "0 of 6 layers" in outcome.err


def test_a_refusal_is_one_sentence(unplaced: RunningWorld, run: Run) -> None:
    replying(unplaced.world, Refusal(status=422, code="not_enough_memory", message="toy needs 3 GiB more"))
    hint = "the same with --dry-run says what would help\n"
    assert run("place", "toy") == (1, "", f"{hint}exo: toy needs 3 GiB more\n")
    unplaced.world.coordinator.has_master = False
    assert run("place", "toy") == (1, "", "exo: there is no master\n")


def test_delete_takes_an_id_or_a_models_name(ready: RunningWorld, run: Run) -> None:
    commands = replying(ready.world, Deleted(instance_id=INSTANCE_ID, index=9))
    for text in ("i", "toy"):
        assert run("delete", text) == (0, "i (toy) is deleted\n", "")
    assert [type(command) for command in commands] == [DeleteInstance, DeleteInstance]
    outcome = run("delete", "other")
    assert (outcome.code, outcome.err) == (2, "exo: there is no instance 'other'; there is i (toy)\n")


def test_without_a_node_there_is_one_sentence(run: Run) -> None:
    for command in (("status",), ("models",), ("place", "toy"), ("delete", "i"), ("chat", "toy", "Hi")):
        outcome = run(*command, "--url", "127.0.0.1:1")
        assert outcome == (1, "", "exo: no exo node answers at http://127.0.0.1:1; start one with: exo\n")


def test_what_answers_may_be_something_else(ready: RunningWorld, run: Run) -> None:
    outcome = run("status", "--url", f"{ready.url}/docs")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert run("status", "--url", "ftp://x").code == 2


NODES = [
    {"node_id": "aaaa1", "name": "one", "devices": [{"device_id": "aaaa1/cpu:x", "local_alias": "cpu:0"}]},
    {"node_id": "aaaa2", "name": "two", "devices": []},
    {"node_id": "bbbb1", "name": "two", "devices": []},
]


@pytest.mark.parametrize(("text", "found"), [("aaaa1", "aaaa1"), ("one", "aaaa1"), ("bbb", "bbbb1")])
def test_a_node_is_found_by_id_name_or_the_start_of_an_id(text: str, found: str) -> None:
    assert find_node(NODES, text) == found


@pytest.mark.parametrize("text", ["two", "aaaa", "bb", "", "three"])
def test_a_node_that_is_unclear_is_asked_about(text: str) -> None:
    with pytest.raises(ConfigurationError, match="aaaa2"):
        find_node(NODES, text)


def test_a_device_is_found_by_its_nodes_name_and_alias() -> None:
    assert find_device(NODES, "one/cpu:0") == "aaaa1/cpu:x"
    assert find_device(NODES, "aaaa1/cpu:x") == "aaaa1/cpu:x"
    with pytest.raises(ConfigurationError, match=r"'cpu:0'; did you mean one/cpu:0.* there is one/cpu:0"):
        find_device(NODES, "cpu:0")


def test_an_instance_is_found_by_id_model_or_the_start_of_an_id() -> None:
    instances = [
        {"instance_id": "abc1", "model_id": "toy"},
        {"instance_id": "abc2", "model_id": "toy"},
        {"instance_id": "xyz1", "model_id": "other"},
    ]
    assert find_instance(instances, "abc1") == instances[0]
    assert find_instance(instances, "xyz") == instances[2]
    assert find_instance(instances, "other") == instances[2]
    for text in ("toy", "abc"):
        with pytest.raises(ConfigurationError, match="abc1, abc2"):
            find_instance(instances, text)
    with pytest.raises(ConfigurationError, match=r"there are abc1 \(toy\), abc2 \(toy\), xyz1 \(other\)"):
        find_instance(instances, "nothing")
    with pytest.raises(ConfigurationError, match="nothing is placed: exo place MODEL places one"):
        find_instance([], "nothing")


def test_a_misspelt_name_is_guessed_and_of_many_only_some_are_listed() -> None:
    many = [
        {"node_id": f"{place:04}", "name": f"rack-{place}", "devices": [{"device_id": f"{place:04}/cpu:0"}]}
        for place in range(1_000)
    ]
    with pytest.raises(ConfigurationError, match=r"did you mean one\?") as wrong:
        find_node(NODES, "onee")
    assert "two (bbbb1)" in wrong.value.message
    with pytest.raises(ConfigurationError, match=r"and 992 more \(exo status\)$") as wrong:
        find_node(many, "zebra")
    assert len(wrong.value.message) < 300


def test_a_narrow_terminal_cuts_no_address_and_has_devices_below(
    ready: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_PIPED_WIDTH", 80)
    shown = run("status").out
    address = ready.world.coordinator.state.nodes[NodeId("a")].identity.api_address
    assert f"{address.host}:{address.port}" in shown
    assert "\nhost-a cpu:0 Test CPU" in shown and "DEVICES" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[3:])


def test_a_device_is_one_line_of_what_is_known() -> None:
    device = {
        "local_alias": "cuda:0",
        "name": "Test GPU",
        "memory_kind": "vram",
        "memory_total_bytes": 24 * GIB,
        "is_simulated": True,
    }
    now = {
        "memory_total_bytes": 24 * GIB,
        "memory_used_bytes": 4 * GIB,
        "compute_utilization_percent": 37.4,
        "thermal_temperature_c": 61.2,
        "health": "degraded",
        "health_reason": "it is warm",
        "is_thermal_throttling": False,
        "thermal": None,
    }
    assert device_line(device, now) == (
        "cuda:0 Test GPU (simulated), 20.0 GiB of 24.0 GiB free, 37 %, 61 °C, degraded: it is warm"
    )
    assert device_line(device, None) == "cuda:0 Test GPU (simulated), - of 24.0 GiB free"
    assert device_line(device | {"name": "Test GPU (simulated)"}, None) == device_line(device, None)


@pytest.mark.parametrize(
    ("heat", "expected"),
    [
        ({"thermal": {"state": "cool", "reason": "Full work at 61 C."}}, ""),
        (
            {"thermal": {"state": "slowed", "reason": "Slowed to 49%: 88 C predicted."}},
            ", held back: Slowed to 49%: 88 C predicted",
        ),
        ({"is_thermal_throttling": True}, ", slows itself down: it is too hot"),
    ],
)
def test_a_device_that_is_slower_for_heat_says_so(heat: dict[str, Any], expected: str) -> None:
    device = {"local_alias": "cuda:0", "name": "x", "memory_kind": "ram", "is_simulated": False}
    now = {
        "memory_total_bytes": None,
        "memory_used_bytes": None,
        "compute_utilization_percent": None,
        "thermal_temperature_c": None,
        "health": "healthy",
        "health_reason": None,
        "is_thermal_throttling": False,
        "thermal": None,
    }
    assert device_line(device, now | heat) == f"cuda:0 x{expected}"


def test_sizes_are_for_people() -> None:
    assert [size(value) for value in (None, 0, 1023, 1024, 3 * GIB // 2, -GIB)] == [
        "-",
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 GiB",
        "-1.0 GiB",
    ]
