"""What every node of a cluster tells of simulated GPUs: state, `/gpu/info`, metrics, events, placement."""

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import MODEL, answer, eventually, is_one_cluster, place

pytestmark = pytest.mark.slow

GIB = 2**30
VRAM = 8 * GIB + 1
FAULTY = {
    "fails": [
        {"kind": "xid", "at_s": 1, "code": 79, "message": "GPU has fallen off the bus", "is_fatal": True}
    ],
    "vanishes": [{"kind": "vanished", "at_s": 40}],
    "errs": [{"kind": "wrong_answers", "at_s": 0}],
}


def device(uuid: str) -> dict[str, Any]:
    return {
        "name": f"Card that {uuid}",
        "vendor": "nvidia",
        "uuid": uuid,
        "memory_kind": "vram",
        "memory_total_bytes": VRAM,
        "power": {"idle_watts": 20, "limit_watts": 300},
        "load": [{"at_s": 0, "utilization_percent": 50, "memory_used_bytes": GIB}],
        "faults": FAULTY.get(uuid, []),
    }


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    folder = tmp_path_factory.mktemp("views")
    machine = {
        "name": "test",
        "sources": ["made up"],
        "devices": [device(uuid) for uuid in ("stays", "fails", "vanishes", "errs")],
    }
    (folder / "machine.json").write_text(json.dumps(machine))
    environment = {"EXO_GPU_BACKEND": f"simulated:{folder / 'machine.json'}", "EXO_DCGM_METRICS": "1"}
    interval = ("--telemetry-interval", "0.3")
    with (
        NodeProcess(folder / "a", "--name=plays", *interval, environment=environment) as playing,
        NodeProcess(
            folder / "b", "--name=watches", *interval, environment={"EXO_DCGM_METRICS": "1"}
        ) as watching,
    ):
        eventually(lambda: is_one_cluster([playing, watching]), "one cluster")
        eventually(lambda: len(cards(watching)) == 3, "all devices were checked and are used")
        yield playing, watching


def member(node: NodeProcess, name: str) -> dict[str, Any]:
    found = node.get("/state")["topology"]["nodes"]
    return next(one for one in found if one["name"] == name)


def cards(node: NodeProcess) -> dict[str, dict[str, Any]]:
    """Return what a node says of each simulated device, by UUID."""
    return {
        one["device"]["uuid"]: one
        for owner in node.get("/gpu/info")["nodes"]
        for one in owner["devices"]
        if one["device"]["is_simulated"]
    }


def metrics(node: NodeProcess) -> str:
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as reply:
        return reply.read().decode()


def sample(text: str, name: str, label: str) -> float | None:
    """Return the value of a metric of the device with this text among its labels."""
    found = re.search(rf"^{name}\{{[^}}]*{re.escape(label)}[^}}]*\}} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


def test_a_device_that_fails_is_told_with_its_reason(nodes: tuple[NodeProcess, NodeProcess]) -> None:
    _, watching = nodes
    failed = eventually(
        lambda: (found := cards(watching).get("fails")) and found["health"] == "failed" and found, "it failed"
    )
    assert failed["health_reason"].startswith("Xid 79")
    assert "(simulated)" in failed["device"]["name"]
    assert failed["allocations"] == [] and failed["thermal"]["temperature_c"] is None, (
        "it tells no temperature"
    )
    text = metrics(watching)
    assert sample(text, "gpu_health_status", 'name="Card that fails (simulated)"') == 0
    assert sample(text, "DCGM_FI_DEV_XID_ERRORS", 'modelName="Card that fails (simulated)"') == 79


def test_a_device_that_computes_wrongly_is_refused_and_every_node_says_so(
    nodes: tuple[NodeProcess, NodeProcess],
) -> None:
    _, watching = nodes
    refused = eventually(lambda: member(watching, "plays")["refused_devices"], "it is told of")
    (wrong,) = [one for one in refused if one["kind"] == "wrong"]
    assert wrong["local_alias"] == "simulated:3" and wrong["name"].startswith("Card that errs")
    assert "its check failed" in wrong["reason"] and wrong["next_step"]
    assert "errs" not in cards(watching)
    told = next(one for one in watching.get("/gpu/info")["nodes"] if one["name"] == "plays")
    assert wrong in told["refused_devices"]
    count = sample(metrics(watching), "gpu_refused_devices", 'host="plays",backend="simulated",kind="wrong"')
    assert count == 1


def test_ways_between_nodes_and_between_devices_reach_every_node(
    nodes: tuple[NodeProcess, NodeProcess],
) -> None:
    playing, watching = nodes
    here, there = member(playing, "plays")["node_id"], member(playing, "watches")["node_id"]

    def is_measured(node: NodeProcess) -> bool:
        topology = node.get("/state")["topology"]
        transfers = {
            (link["source_node_id"], link["dest_node_id"])
            for link in topology["links"]
            if link["bandwidth_mbps"] and link["measurement_count"]
        }
        ways = {
            (way["source_device_id"], way["dest_device_id"])
            for way in topology["device_links"]
            if way["bandwidth_mbps"] > 0
        }
        cards_of_one = [way for way in ways if any(one.endswith("/simulated:stays") for one in way)]
        return transfers >= {(here, there), (there, here)} and bool(cards_of_one)

    for node in nodes:
        eventually(lambda node=node: is_measured(node), "measured ways", 120)
    links = watching.get("/state")["topology"]["links"]
    assert {link["link_type"] for link in links} == {"loopback"}


def test_no_real_layers_are_placed_on_simulated_devices(nodes: tuple[NodeProcess, NodeProcess]) -> None:
    playing, watching = nodes
    card = cards(playing)["stays"]["device"]["device_id"]
    status, refusal = playing.call("POST", "/instance", {"model_id": MODEL, "device_ids": [card]})
    assert status in (409, 422) and "simulated" in refusal["detail"]
    own = member(playing, "plays")["node_id"]
    instance = place(playing, node_ids=[own], prefer_gpu=True)
    assert [stage["device_ids"] for stage in instance["plan"]["stages"]] == [[f"{own}/cpu:0"]]
    assert any(
        one["device_id"] == card and "simulated" in one["reason"] for one in instance["plan"]["excluded"]
    )
    assert "2" in answer(watching, "What is 1 + 1?")
    (processor,) = [
        one
        for owner in watching.get("/gpu/info")["nodes"]
        for one in owner["devices"]
        if one["device"]["device_id"] == f"{own}/cpu:0"
    ]
    assert [held["instance_id"] for held in processor["allocations"]] == [instance["instance_id"]]


def test_a_device_that_vanishes_is_said_to_be_lost(nodes: tuple[NodeProcess, NodeProcess]) -> None:
    playing, watching = nodes
    eventually(lambda: set(cards(watching)) == {"stays", "fails"}, "it is gone", 60)
    assert "GPU gone: Card that vanishes (simulated)" in playing.log()
    request = urllib.request.Request(f"{watching.url}/events", headers={"Last-Event-ID": "0"})
    with urllib.request.urlopen(request, timeout=30) as stream:
        for line in stream:
            if line.startswith(b"data:") and b'"DeviceLost"' in line:
                event = json.loads(line[5:])["event"]
                break
    assert event["device_id"].endswith("/simulated:vanishes")
    assert event["reason"] == "its driver does not list it any more"


def test_the_state_has_the_sums_of_what_is_left(nodes: tuple[NodeProcess, NodeProcess]) -> None:
    for node in nodes:
        eventually(
            lambda node=node: (
                (profile := member(node, "plays")["node_profile"]) and profile["system"]["gpu_count"] == 2
            ),
            "the sums of two GPUs",
            60,
        )
        profile = member(node, "plays")["node_profile"]
        assert profile["memory"]["gpu_vram_total"] == 2 * VRAM
        assert isinstance(profile["memory"]["gpu_vram_total"], int)
        assert all(name.endswith("(simulated)") for name in profile["system"]["gpu_names"])
        assert member(node, "watches")["node_profile"]["system"]["gpu_count"] == 0
        assert member(node, "watches")["node_profile"]["memory"]["gpu_vram_total"] == 0
        text = metrics(node)
        label = 'name="Card that stays (simulated)"'
        assert sample(text, "gpu_memory_used_bytes", label) == GIB
        assert sample(text, "gpu_memory_available_bytes", label) == VRAM - GIB
        assert sample(text, "gpu_utilization_percent", label) == 50
        assert sample(text, "gpu_health_status", label) == 1
        assert sample(text, "gpu_temperature_celsius", label) is None, "it tells none"
