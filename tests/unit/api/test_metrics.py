"""What Prometheus reads: every value that is known, none that is not, in a form that its own tools accept."""

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from exo.api.exposition import Family, labels, write
from exo.api.metrics import MetricsOptions, ServiceMetrics
from exo.api.metrics_cluster import Elections
from exo.api.metrics_devices import DCGM_MEASURES, MEASURES, DeviceMetrics
from exo.api.present import gpu_info
from exo.cluster.coordinator import Leadership
from exo.cluster.facts import PeerSeen, PeerStatus
from exo.shared.types.commands import Placed, PlaceInstance, Refusal
from exo.shared.types.devices import (
    DeviceFault,
    DeviceGPUState,
    DeviceRefusal,
    GPUDevice,
    MemoryProfile,
    NodePerformanceProfile,
    SystemProfile,
    ThermalStatus,
)
from exo.shared.types.ids import CommandId, DeviceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.nodes import Link, Node
from exo.shared.types.state import NodeTelemetry, State
from support.api_world import World, client_of, ready_state
from support.coordinator import MemoryCoordinator
from support.states import cpu, gpu, identity

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "exo.json"
A = NodeId("a")
Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(text: str) -> dict[Sample, float]:
    """Read the text with Prometheus's own reader; a sample that is there twice is an error."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def full_reading(device: GPUDevice, node_id: NodeId) -> DeviceGPUState:
    """A device that tells everything."""
    return DeviceGPUState(
        device_id=device.device_id,
        node_id=node_id,
        memory_used_bytes=3 * 2**30,
        memory_total_bytes=8 * 2**30,
        compute_utilization_percent=37.5,
        thermal_temperature_c=61.0,
        thermal_throttle_threshold_c=90.0,
        is_thermal_throttling=False,
        power_watts=212.5,
        power_limit_watts=350.0,
        energy_joules=86_400.5,
        clock_mhz=1800.0,
        clock_max_mhz=2100.0,
        battery_percent=80.0,
        is_plugged_in=True,
        ecc_corrected_count=4,
        ecc_uncorrected_count=1,
        faults=(DeviceFault(kind="xid", code=74, message="NVLink", is_fatal=False),),
        is_memory_pressed=False,
        thermal=ThermalStatus(
            state="slowed",
            reason="Slowed to 60% at 61 C.",
            work_fraction=0.6,
            predicted_temperature_c=70.5,
            prediction_error_c=0.8,
            sustained_fraction=0.65,
        ),
        last_update="2026-01-01T00:00:00Z",
    )


def machine(node_id: str, devices: tuple[GPUDevice, ...]) -> tuple[Node, NodeTelemetry]:
    """A node that tells everything, of itself and its devices."""
    key = NodeId(node_id)
    profile = NodePerformanceProfile(
        memory=MemoryProfile(ram_total=16, ram_available=9, swap_total=0, swap_available=0),
        system=SystemProfile(),
        refused_devices=(DeviceRefusal(backend="rocm", kind="hanging", name="AMD GPUs", reason="no answer"),),
    )
    links = {
        NodeId("b"): Link(
            source_node_id=key,
            dest_node_id=NodeId("b"),
            link_type="ethernet",
            latency_ms=0.25,
            bandwidth_mbps=8000.0,
        )
    }
    live = NodeTelemetry(
        boot_id="boot-1",
        seq=1,
        profile=profile,
        devices={device.device_id: full_reading(device, key) for device in devices},
        links=links,
    )
    return Node(identity=identity(node_id, devices=devices)), live


def world_of(nodes: int, gpus: int) -> State:
    """A cluster in which every node has so many GPUs, and a processor."""
    built = {
        f"n{number}": machine(
            f"n{number}",
            (cpu(f"n{number}", 2**34), *(gpu(f"n{number}", 2**33, f"cuda:{index}") for index in range(gpus))),
        )
        for number in range(nodes)
    }
    return State(
        nodes={NodeId(key): node for key, (node, _) in built.items()},
        live={NodeId(key): live for key, (_, live) in built.items()},
    )


def metrics_of(state: State, *, has_dcgm_names: bool = False) -> ServiceMetrics:
    coordinator = MemoryCoordinator(A, state)
    coordinator.counted = {
        "connections": {"refused_foreign_certificate": 2, "accepted_tls": 5},
        "beacons": {"malformed": 3},
        "incidents": {"peer_lied": 1, "candidacy": 0},
    }
    options = MetricsOptions(has_dcgm_names=has_dcgm_names)
    return ServiceMetrics(coordinator, {}, options, refused_data_connections=lambda: 4)


def everything() -> str:
    """All that there can be: a cluster, devices that tell all, and one of everything that is counted."""
    state = ready_state()
    node, live = machine("a", (cpu("a", 2**34), gpu("a", 2**33)))
    state = replace(state, nodes=state.nodes | {A: node}, live={A: live})
    metrics = metrics_of(state, has_dcgm_names=True)
    metrics.requests.labels("/v1/completions", "200").inc()
    metrics.request_duration_s.labels("/v1/completions").observe(1)
    metrics.tokens_generated.labels("toy").inc(3)
    metrics.prompt_tokens.labels("toy").inc(3)
    metrics.time_to_first_token_s.labels("toy").observe(0.1)
    metrics.time_per_output_token_s.labels("toy").observe(0.1)
    metrics.authentication_failures.labels("key").inc()
    metrics.enrolments_refused.labels("token").inc()
    wish = PlaceInstance(command_id=CommandId("c"), request=PlacementRequest(model_id=ModelId("toy")))
    (instance,) = state.instances.values()
    solved = replace(instance, plan=replace(instance.plan, solve_ms=2.5))
    metrics.command_ended(wish, Placed(instance=solved, index=3), 0.2)
    metrics.command_ended(wish, Refusal(status=409, code="no", message="no"), 0.2)
    metrics.command_ended(wish, None, 0.2)
    return metrics.render().decode()


# --- one device ------------------------------------------------------------------------------------------------------


def test_a_device_that_tells_everything() -> None:
    found = samples(everything())
    where = (("gpu_id", "0"), ("name", "Test GPU"), ("node", "a"), ("vendor", "nvidia"))
    assert {name: value for (name, at), value in found.items() if at == where} == {
        "gpu_memory_used_bytes": 3 * 2**30,
        "gpu_memory_available_bytes": 5 * 2**30,
        "gpu_memory_total_bytes": 8 * 2**30,
        "gpu_utilization_percent": 37.5,
        "gpu_utilization_ratio": 0.375,
        "gpu_temperature_celsius": 61.0,
        "gpu_temperature_limit_celsius": 90.0,
        "gpu_throttling": 0,
        "gpu_temperature_predicted_celsius": 70.5,
        "gpu_temperature_prediction_error_celsius": 0.8,
        "gpu_work_ratio": 0.6,
        "gpu_work_sustained_ratio": 0.65,
        "gpu_power_watts": 212.5,
        "gpu_power_limit_watts": 350.0,
        "gpu_energy_joules_total": 86_400.5,
        "gpu_clock_hertz": 1.8e9,
        "gpu_clock_max_hertz": 2.1e9,
        "gpu_memory_corrected_errors_total": 4,
        "gpu_memory_uncorrected_errors_total": 1,
        "gpu_faults": 1,
        "gpu_memory_pressed": 0,
        "gpu_battery_ratio": 0.8,
        "gpu_plugged_in": 1,
        "gpu_health_status": 1,
        "gpu_degraded": 0,
        "gpu_last_update_timestamp_seconds": 1767225600.0,
    }
    # The processor is a device as well, numbered behind the GPUs.
    assert found["gpu_memory_used_bytes", (("gpu_id", "1"), *cpu_labels())] == 3 * 2**30


def cpu_labels() -> tuple[tuple[str, str], ...]:
    return ("name", "Test CPU"), ("node", "a"), ("vendor", "intel")


def test_what_is_told_of_a_gpu_does_not_become_anothers_story_when_one_vanishes() -> None:
    """Cards of one kind differ by their number alone."""
    node, live = machine("a", (cpu("a", 2**34), *(gpu("a", 2**33, f"cuda:{index}") for index in range(3))))
    before = State(nodes={A: node}, live={A: live})
    left = tuple(one for one in node.identity.devices if one.local_alias != "cuda:1")
    after = replace(before, nodes={A: replace(node, identity=replace(node.identity, devices=left))})
    metrics = DeviceMetrics(has_dcgm_names=True)

    def told(state: State) -> dict[str, str]:
        """Return by alias the number under which each device is told of."""
        info = next(one for one in metrics.families(state) if one.name == "gpu_info")
        found = samples(write([info]).decode())
        return {dict(at)["alias"]: dict(at)["gpu_id"] for _, at in found}

    assert told(before) == {"cuda:0": "0", "cuda:1": "1", "cuda:2": "2", "cpu:0": "3"}
    assert told(after) == {"cuda:0": "0", "cuda:2": "2", "cpu:0": "3"}
    listed = gpu_info(after)["nodes"][0]["devices"]
    assert [(one["gpu_id"], one["device"].local_alias) for one in listed] == [
        (0, "cuda:0"),
        (2, "cuda:2"),
        (3, "cpu:0"),
    ]


def test_what_is_there_and_not_used_is_counted_by_reason_while_its_node_is_there() -> None:
    devices = DeviceMetrics()
    state = world_of(1, 1)
    row = b'gpu_refused_devices{node="n0",host="host-n0",backend="rocm",kind="hanging"} 1'
    assert row in write(devices.families(state))
    away = replace(state.nodes[NodeId("n0")], is_connected=False)
    assert row not in write(devices.families(replace(state, nodes={NodeId("n0"): away})))


def test_nvidias_names_are_there_on_demand_and_for_gpus_only() -> None:
    state = world_of(1, 1)
    names = {name for name, _ in samples(metrics_of(state).render().decode())}
    assert not [name for name in names if name.startswith("DCGM")]
    found = {
        (name, dict(at)["gpu"]): value
        for (name, at), value in samples(metrics_of(state, has_dcgm_names=True).render().decode()).items()
        if name.startswith("DCGM")
    }
    assert found == {
        ("DCGM_FI_DEV_GPU_TEMP", "0"): 61.0,
        ("DCGM_FI_DEV_POWER_USAGE", "0"): 212.5,
        ("DCGM_FI_DEV_SM_CLOCK", "0"): 1800.0,
        ("DCGM_FI_DEV_GPU_UTIL", "0"): 37.5,
        ("DCGM_FI_DEV_FB_USED", "0"): 3072,
        ("DCGM_FI_DEV_FB_FREE", "0"): 5120,
        ("DCGM_FI_DEV_XID_ERRORS", "0"): 74,
    }


@pytest.mark.parametrize(("value", "has_names"), [("1", True), ("On", True), ("0", False), ("", False)])
def test_the_setting_for_nvidias_names(monkeypatch: pytest.MonkeyPatch, value: str, has_names: bool) -> None:
    monkeypatch.setenv("EXO_DCGM_METRICS", value)
    assert MetricsOptions.from_environment().has_dcgm_names is has_names


numbers = st.one_of(st.none(), st.floats(0, 1e4), st.sampled_from([math.nan, math.inf]))
sizes = st.one_of(st.none(), st.integers(0, 2**45))
truths = st.one_of(st.none(), st.booleans())
readings = st.builds(
    DeviceGPUState,
    device_id=st.just(DeviceId("a/x:0")),
    node_id=st.just(A),
    memory_used_bytes=sizes,
    memory_total_bytes=sizes,
    compute_utilization_percent=numbers,
    thermal_temperature_c=numbers,
    thermal_throttle_threshold_c=numbers,
    is_thermal_throttling=truths,
    power_watts=numbers,
    clock_mhz=numbers,
    battery_percent=numbers,
    is_plugged_in=truths,
    health=st.sampled_from(["healthy", "degraded", "failed"]),
    ecc_corrected_count=sizes,
    energy_joules=numbers,
    thermal=st.one_of(
        st.none(),
        st.builds(
            ThermalStatus,
            state=st.just("slowed"),
            reason=st.just(""),
            work_fraction=st.floats(0, 1),
            sustained_fraction=numbers,
            predicted_temperature_c=numbers,
        ),
    ),
    last_update=st.sampled_from(["2026-01-01T00:00:00Z", "", "yesterday"]),
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(readings, st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=5),
    st.booleans(),
)
def test_per_gpu_metrics_say_what_the_readings_say(
    rows: list[tuple[DeviceGPUState, str, str]], has_dcgm_names: bool
) -> None:
    devices = tuple(
        replace(gpu("a", 1, f"cuda:{index}"), name=name, vendor=vendor)
        for index, (_, name, vendor) in enumerate(rows)
    )
    states = {
        device.device_id: replace(reading, device_id=device.device_id)
        for device, (reading, _, _) in zip(devices, rows, strict=True)
    }
    state = State(
        nodes={A: Node(identity=identity("a", devices=devices))}, live={A: NodeTelemetry(devices=states)}
    )
    text = write(DeviceMetrics(has_dcgm_names=has_dcgm_names).families(state)).decode()
    found = samples(text)
    expected: dict[Sample, float] = {}
    for index, (reading, name, vendor) in enumerate(rows):
        own = (("gpu_id", str(index)), ("name", name), ("node", "a"), ("vendor", vendor))
        for measure in MEASURES:
            value = measure.read(reading)
            if value is not None and math.isfinite(value):
                expected[measure.name, own] = float(value)
    plain = {key: value for key, value in found.items() if key[0].startswith("gpu_") and key[0] != "gpu_info"}
    assert plain == expected
    # Spelled out for those whose names are a contract.
    for index, (reading, name, vendor) in enumerate(rows):
        own = (("gpu_id", str(index)), ("name", name), ("node", "a"), ("vendor", vendor))
        assert found.get(("gpu_memory_used_bytes", own)) == reading.memory_used_bytes
        assert found.get(("gpu_memory_available_bytes", own)) == reading.memory_free_bytes
        assert found["gpu_health_status", own] == (0 if reading.health == "failed" else 1)
    assert has_dcgm_names or "DCGM" not in text
    assert len([1 for name, _ in found if name == "gpu_info"]) == len(rows)


def test_labels_are_escaped_and_numbers_are_exact() -> None:
    where = labels({"name": 'a "b" \\ c\nd', "other": "é"})
    text = write(
        [Family("x", "gauge", "a\\b\nc", [(where, 2**53 + 1), ("", 0.1), (labels({"a": "b"}), None)])]
    )
    assert text.decode() == (
        "# HELP x a\\\\b\\nc\n# TYPE x gauge\n"
        'x{name="a \\"b\\" \\\\ c\\nd",other="é"} 9007199254740993\nx 0.1\n'
    )
    assert samples(text.decode())["x", (("name", 'a "b" \\ c\nd'), ("other", "é"))] == 2**53 + 1
    assert write([Family("x", "gauge", "y", [("", None), ("", math.nan)])]) == b""
    assert b"?" in write([Family("x", "gauge", "y", [(labels({"name": "\ud800"}), 1)])])


# --- the cluster -----------------------------------------------------------------------------------------------------


def test_links_hosts_and_decisions() -> None:
    found = samples(everything())
    link = (("destination", "b"), ("source", "a"), ("type", "ethernet"))
    assert found["exo_link_latency_seconds", link] == 0.00025
    assert found["exo_link_bandwidth_bytes_per_second", link] == 1e9
    host = (("host", "host-a"), ("node", "a"))
    assert found["exo_host_memory_total_bytes", host] == 16
    assert found["exo_host_memory_available_bytes", host] == 9
    assert found["exo_model_instances", (("model", "toy"), ("status", "ready"))] == 1
    assert found["exo_is_master", ()] == found["exo_has_master", ()] == 1
    assert found["exo_events_total", ()] == found["exo_events_index", ()] > 0
    assert found["exo_nodes", (("connected", "true"),)] == 2
    for outcome in ("placed", "refused", "unanswered"):
        assert found["exo_placement_seconds_count", (("outcome", outcome),)] == 1
    assert found["exo_placement_solve_seconds_sum", ()] == 0.0025


def test_what_was_refused_is_counted_by_reason() -> None:
    found = samples(everything())
    assert found["exo_cluster_connections_total", (("outcome", "refused_foreign_certificate"),)] == 2
    assert found["exo_discovery_beacons_total", (("outcome", "malformed"),)] == 3
    assert found["exo_cluster_incidents_total", (("kind", "peer_lied"),)] == 1
    assert found["exo_cluster_incidents_total", (("kind", "candidacy"),)] == 0, "there from the start"
    assert found["exo_data_connections_refused_total", ()] == 4


async def test_who_was_noticed_and_is_no_member_is_counted_with_the_reason(world: World) -> None:
    """Two clusters with one secret, or two namespaces, refuse each other nothing: none of them even asks."""
    noticed: dict[str, PeerStatus] = {
        "b": "both_have_instances",
        "c": "both_have_instances",
        "d": "other_namespace",
    }
    world.coordinator.peers = tuple(
        PeerSeen(address=None, node_id=NodeId(name), via="multicast", status=status, detail="", age_s=0.0)
        for name, status in noticed.items()
    )
    async with client_of(world.app()) as http:
        found = samples((await http.get("/metrics")).text)
    seen = {dict(at)["status"]: value for (name, at), value in found.items() if name == "exo_peers_seen"}
    assert (seen["both_have_instances"], seen["other_namespace"], seen["two_masters"]) == (2, 1, 0)


def test_elections_are_counted_from_the_terms() -> None:
    def led(term: int, incarnation: int = 1) -> Leadership:
        return Leadership(master_node_id=None, term=term, incarnation=incarnation, is_self=False)

    elections = Elections(led(7))
    assert [elections.see(led(term)) for term in (7, 8, 8, 11)] == [0, 1, 1, 4]
    assert elections.see(led(1, incarnation=2)) == 5
    assert elections.see(led(2, incarnation=2)) == 6


def test_devices_of_nodes_that_are_gone_or_away_are_dropped() -> None:
    devices = DeviceMetrics()
    state = world_of(2, 1)
    assert write(devices.families(state)).count(b"gpu_health_status{") == 4
    away = replace(state.nodes[NodeId("n0")], is_connected=False)
    state = replace(state, nodes=state.nodes | {NodeId("n0"): away})
    assert write(devices.families(state)).count(b"gpu_health_status{") == 2
    state = replace(state, nodes={NodeId("n0"): away})
    assert write(devices.families(state)) == b""


def test_a_node_that_comes_back_with_other_devices_has_other_labels() -> None:
    devices = DeviceMetrics()
    before = world_of(1, 1)
    devices.families(before)
    other, live = machine("n0", (replace(gpu("n0", 1), name="Another GPU"),))
    after = State(nodes={NodeId("n0"): other}, live={NodeId("n0"): live})
    assert b'name="Another GPU"' in write(devices.families(after))
    assert b"Test GPU" not in write(devices.families(after))


async def test_a_request_is_counted_with_its_tokens_and_waits_until_it_is_accepted(
    world: World, http: httpx.AsyncClient
) -> None:
    chat = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
    await http.post("/v1/chat/completions", json=chat)
    await http.post("/v1/chat/completions", json=chat | {"model": "toi"})
    found = samples((await http.get("/metrics")).text)
    model = (("model", "toy"),)
    assert found["exo_prompt_tokens_total", model] > 0
    assert found["exo_time_per_output_token_seconds_count", model] == 1
    assert found["exo_request_duration_seconds_count", (("route", "/v1/chat/completions"),)] == 2
    assert found["exo_requests_waiting", ()] == found["exo_requests_active", ()] == 0
    assert found["process_resident_memory_bytes", ()] > 0


def test_hundreds_of_devices_in_one_answer() -> None:
    state = world_of(64, 8)
    metrics = metrics_of(state, has_dcgm_names=True)
    found = samples(metrics.render().decode())
    for name in ("gpu_memory_used_bytes", "gpu_health_status", "gpu_info"):
        assert len([1 for one, _ in found if one == name]) == 64 * 9
    assert len([1 for one, _ in found if one == "DCGM_FI_DEV_FB_USED"]) == 64 * 8
    began_s = time.perf_counter()
    metrics.render()
    # Ten times what it takes: what would catch it looking at every device for every device.
    assert time.perf_counter() - began_s < 1.0


# --- what others make of it ------------------------------------------------------------------------------------------


def promtool(*arguments: str, text: str = "") -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr


@needs_promtool
def test_promtool_finds_nothing_wrong() -> None:
    text = everything()
    for measure in (*MEASURES, *DCGM_MEASURES):
        assert f"\n{measure.name}{{" in text, f"{measure.name} is not part of what is checked"
    # NVIDIA's exporter writes one of its labels in a way that the checker would not.
    promtool("check", "metrics", text=text.replace("modelName=", "model_name="))
    odd, live = machine("n0", (replace(gpu("n0", 1), name='odd "name" \\ with\nall'),))
    state = State(nodes={NodeId("n0"): odd}, live={NodeId("n0"): live})
    promtool("check", "metrics", text=metrics_of(state).render().decode())


def expressions() -> Iterator[str]:
    """Every expression of the dashboard's panels."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def plain(expression: str) -> str:
    """Fill in what Grafana fills in."""
    return expression.replace("$__rate_interval", "1m").replace("$node", ".*").replace("$job", ".*")


def test_every_metric_of_the_dashboard_exists() -> None:
    known = {name for name, _ in samples(everything())}
    found = [name for text in expressions() for name in re.findall(r"\b(?:exo|gpu|process)_[a-z0-9_]+", text)]
    found = [name for name in found if name != "gpu_id"]
    assert len(set(found)) > 30
    assert set(found) <= known, set(found) - known
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            (name,) = re.findall(r"label_values\((\w+), \w+\)", variable["query"]["query"])
            assert name in known


def test_the_dashboards_labels_exist() -> None:
    carried: dict[str, set[str]] = {}
    for name, at in samples(everything()):
        carried.setdefault(name, {"instance", "job", "le"}).update(label for label, _ in at)
    for text in expressions():
        for name, matchers in re.findall(r"\b((?:exo|gpu|process)_[a-z0-9_]+)\{([^}]*)\}", text):
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                assert label in carried[name], f"{name} has no label {label}"
        for listed, inner in re.findall(r"by \(([^)]*)\) \(+(?:rate\()?((?:exo|gpu)_[a-z0-9_]+)", text):
            assert {label.strip() for label in listed.split(",")} <= carried[inner], text


def test_the_dashboard_can_be_drawn() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["type"] == "row" or (panel["targets"] and panel["description"])


@needs_promtool
def test_prometheus_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps(
            {
                "groups": [
                    {
                        "name": "dashboard",
                        "rules": [
                            {"record": f"panel:{number}", "expr": plain(text)}
                            for number, text in enumerate(expressions())
                        ],
                    }
                ]
            }
        )
    )
    promtool("check", "rules", str(rules))
