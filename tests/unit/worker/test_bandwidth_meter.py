"""The loop of bandwidth: hours in virtual time over links that are played, and for real over loopback."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from exo.dataplane.client import GenerationClient
from exo.dataplane.errors import NodeUnreachableError, ProbeRefusedError
from exo.dataplane.probing import Transfer
from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.backends.simulated import machine as m
from exo.gpu.backends.simulated.driver import SimulatedDriver
from exo.gpu.errors import DeviceLostError
from exo.gpu.threaded import ThreadedBackend
from exo.shared.apply import apply_telemetry
from exo.shared.types.devices import DeviceGPUState, Health
from exo.shared.types.events import (
    DeviceGPUStateUpdated,
    GPUBandwidthMeasured,
    LinkMeasured,
    Telemetry,
    TelemetryFrame,
)
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from exo.worker.bandwidth.busy import Busy
from exo.worker.bandwidth.devices import DEVICE_LIMITS, measure_devices
from exo.worker.bandwidth.errors import NotMeasurableError
from exo.worker.bandwidth.estimate import TransferLimits
from exo.worker.bandwidth.link_type import link_type_of
from exo.worker.bandwidth.meter import DEVICES_MAX, BandwidthMeter
from exo.worker.bandwidth.network import measure_node
from exo.worker.bandwidth.planner import DeviceWay, NodeWay, Pace, Way
from support import virtual_time
from support.inline_backend import InlineBackend
from support.scripted_driver import ScriptedDriver, found
from support.states import cluster, identity

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
PACE = Pace(refresh_s=600, spacing_s=5, settle_s=2)


class PlayedLinks:
    """Other nodes, each behind a link of so many bytes per second and so many seconds one way."""

    def __init__(self, rates: dict[NodeId, float], latency_s: float = 0.001) -> None:
        self.rates = rates
        self.latency_s = latency_s
        self.open_count = 0
        self.opened: list[tuple[float, NodeId]] = []
        self.moved_bytes = 0
        self.refusing: set[NodeId] = set()

    async def open(self, address: HostPort, node_id: NodeId) -> "PlayedStream":
        self.opened.append((asyncio.get_running_loop().time(), node_id))
        if node_id not in self.rates:
            raise NodeUnreachableError("gone")
        self.open_count += 1
        assert self.open_count == 1, "two measurements of one node at once"
        return PlayedStream(self, node_id)


class PlayedStream:
    own_host = peer_host = "127.0.0.1"

    def __init__(self, links: PlayedLinks, node_id: NodeId) -> None:
        self._links = links
        self._node_id = node_id

    async def ping(self, *, timeout_s: float) -> float:
        await anyio.sleep(2 * self._links.latency_s)
        if self._node_id in self._links.refusing:
            raise ProbeRefusedError("it is generating tokens")
        return 2 * self._links.latency_s

    async def transfer(self, size_bytes: int, *, timeout_s: float) -> Transfer:
        duration_s = size_bytes / self._links.rates[self._node_id]
        await anyio.sleep(duration_s)
        self._links.moved_bytes += size_bytes
        return Transfer(size_bytes, duration_s)

    async def aclose(self) -> None:
        self._links.open_count -= 1


class Story:
    """A meter of node `a`, and what it told."""

    def __init__(self, links: PlayedLinks, state: State | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.state = state or cluster(identity("a"), identity("b"), identity("c"))
        self.busy = Busy()
        self.told: list[tuple[float, Telemetry]] = []
        self.meter = BandwidthMeter(
            node_id=A,
            state=lambda: self.state,
            open_stream=links.open,
            publish=lambda events: self.told.extend((loop.time(), event) for event in events),
            busy=self.busy,
            pace=PACE,
            clock=loop.time,
            fine_clock=loop.time,
            source=random.Random(1),
        )

    async def play(self, seconds: float, script: Callable[[], Awaitable[None]] | None = None) -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.meter.run)
                if script is not None:
                    tasks.start_soon(script)


def test_each_node_is_measured_in_turn_and_again_after_a_while() -> None:
    async def main() -> None:
        links = PlayedLinks({B: 1e9 / 8, C: 1e8 / 8}, latency_s=0.004)
        story = Story(links)
        await story.play(1500)
        told = [event for _, event in story.told if isinstance(event, GPUBandwidthMeasured)]
        assert len(told) == len(story.told)
        assert {(one.source_device_id, one.dest_device_id) for one in told} == {
            ("a/cpu:0", "b/cpu:0"),
            ("a/cpu:0", "c/cpu:0"),
        }
        assert told[0].bandwidth_mbps == pytest.approx(1000) and told[1].bandwidth_mbps == pytest.approx(100)
        assert told[0].latency_ms == pytest.approx(4)
        assert told[0].link_type == "loopback"
        # At the start, and twice more within 25 minutes; each measured five times.
        assert [one.measurement_count for one in told if one.dest_device_id == "b/cpu:0"] == [5, 10, 15]
        times = [at_s for at_s, _ in story.told]
        assert times[0] < 5 and all(later - earlier >= 5 for earlier, later in itertools.pairwise(times))
        # It never took more than what a part of a second is worth.
        assert links.moved_bytes < 6 * (0.4 * 1e9 / 8 + 0.4 * 1e8 / 8)

    virtual_time.run(main())


def test_nothing_is_measured_while_there_is_work_and_what_is_under_way_is_cut_short() -> None:
    async def main() -> None:
        links = PlayedLinks({B: 1e5, C: 1e5})
        story = Story(links)

        async def script() -> None:
            await anyio.sleep(2.5)  # A transfer over so slow a link is under way.
            assert links.open_count == 1
            story.busy.note("stage", True)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert links.open_count == 0 and not story.told
            assert story.meter.obstacle() == "it is generating tokens"
            await anyio.sleep(5000)
            assert not story.told and len(links.opened) == 1
            story.busy.note("stage", False)

        await story.play(5100, script)
        # It was not held against the way: it comes first again, once all is quiet.
        assert [node_id for _, node_id in links.opened] == [B, B, C]
        assert links.opened[1][0] == pytest.approx(5002.5 + PACE.settle_s)
        assert len(story.told) == 2

    virtual_time.run(main())


def test_a_node_that_has_work_is_asked_again_soon_and_one_that_is_gone_ever_later() -> None:
    async def main() -> None:
        links = PlayedLinks({B: 1e8})
        links.refusing.add(B)
        story = Story(links)

        async def script() -> None:
            await anyio.sleep(900)
            links.refusing.clear()

        await story.play(1800, script)
        asked = [at_s for at_s, node_id in links.opened if node_id == B]
        assert all(later - earlier < 40 for earlier, later in itertools.pairwise(asked) if later < 900)
        (first, *_) = story.told
        assert 900 <= first[0] < 940
        gone = [at_s for at_s, node_id in links.opened if node_id == C]
        assert 5 <= len(gone) <= 9
        assert gone[-1] - gone[-2] > 300

    virtual_time.run(main())


def test_nodes_come_and_go() -> None:
    async def main() -> None:
        links = PlayedLinks({B: 1e8, C: 1e8})
        story = Story(links, cluster(identity("a"), identity("b")))

        async def script() -> None:
            await anyio.sleep(100)
            assert story.meter.ways() == {NodeWay(B)}
            story.state = cluster(identity("a"), identity("b"), identity("c"))
            await anyio.sleep(100)
            away = replace(story.state.nodes[B], is_connected=False)
            story.state = replace(story.state, nodes=story.state.nodes | {B: away})
            await anyio.sleep(1500)
            story.state = cluster(identity("a"), identity("b"), identity("c"))

        await story.play(1800, script)
        asked = [at_s for at_s, node_id in links.opened if node_id == B]
        # Measured once, not while it is away, and at once when it is back.
        assert len(asked) == 2 and 1700 <= asked[1] < 1720

    virtual_time.run(main())


def test_a_node_without_devices_has_a_link_all_the_same() -> None:
    async def main() -> None:
        story = Story(PlayedLinks({B: 1e8}), cluster(identity("a"), identity("b", devices=())))
        await story.play(10)
        ((_, event),) = story.told
        assert isinstance(event, LinkMeasured)
        assert (event.dest_node_id, event.measurement_count) == (B, 5)
        assert event.bandwidth_mbps == pytest.approx(800)
        frame = TelemetryFrame(node_id=A, boot_id="boot-1", seq=1, events=(event,))
        link = apply_telemetry(story.state, frame).live[A].links[B]
        assert link.bandwidth_mbps == pytest.approx(800) and link.link_type == "loopback"

    virtual_time.run(main())


def test_who_measures_does_not_let_itself_be_measured() -> None:
    async def main() -> None:
        links = PlayedLinks({B: 1e5, C: 1e5})
        story = Story(links)
        seen: list[str | None] = [story.meter.obstacle()]

        async def script() -> None:
            await anyio.sleep(2.5)
            seen.append(story.meter.obstacle())

        await story.play(3, script)
        assert seen == [None, "it is measuring itself"]

    virtual_time.run(main())


def test_a_transfer_that_takes_no_time_is_no_measurement() -> None:
    async def main() -> None:
        links = PlayedLinks({B: float("inf")})
        with pytest.raises(NotMeasurableError, match="no time"):
            await measure_node(links.open, HostPort("h", 1), B, TransferLimits())
        assert links.open_count == 0

    virtual_time.run(main())


async def test_busy_is_whoever_has_work() -> None:
    busy = Busy()
    assert busy.reason is None
    await busy.until_idle()
    busy.note("a", True)
    busy.note("b", True)
    busy.note("a", False)
    busy.note("a", False)
    assert busy.is_busy and busy.reason == "it is generating tokens"
    await busy.until_busy()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy.until_idle)
        await asyncio.sleep(0)
        busy.note("b", False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy.until_busy)
        await asyncio.sleep(0)
        busy.note("c", True)
    assert busy.is_busy


async def test_two_real_nodes_over_loopback() -> None:
    """The whole way: sockets, the other node's desk, the estimate, the event, the fold."""
    secret = b"k" * 32
    told: list[Telemetry] = []
    measured = anyio.Event()

    def publish(events: Sequence[Telemetry]) -> None:
        told.extend(events)
        measured.set()

    async with (
        GenerationClient(secret=secret, node_id=A) as one,
        GenerationClient(secret=secret, node_id=B) as other,
    ):
        there = replace(identity("b"), data_address=other.address)
        state = cluster(identity("a"), there)
        meter = BandwidthMeter(
            node_id=A,
            state=lambda: state,
            open_stream=one.open_probe,
            publish=publish,
            busy=Busy(),
            pace=Pace(settle_s=0),
            limits=TransferLimits(bytes_max=4 * 1024 * 1024, wanted_s=0.005),
        )
        other.probe_desk.obstacle = meter.obstacle
        assert not await meter.measure(
            NodeWay(B)
        )  # It is measuring itself, says the other one, which is the same.
        other.probe_desk.obstacle = lambda: None
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                # A fresh one: what was refused is tried again only in a while.
                meter = BandwidthMeter(
                    node_id=A,
                    state=lambda: state,
                    open_stream=one.open_probe,
                    publish=publish,
                    busy=Busy(),
                    pace=Pace(settle_s=0),
                    limits=TransferLimits(bytes_max=4 * 1024 * 1024, wanted_s=0.005),
                )
                tasks.start_soon(meter.run)
                await measured.wait()
                tasks.cancel_scope.cancel()
    (event,) = told
    assert isinstance(event, GPUBandwidthMeasured)
    # Memory to memory within one host: more than any network, less than there can be.
    assert 100 < event.bandwidth_mbps < 1e6
    assert 0 < event.latency_ms < 100
    assert 3 <= event.measurement_count <= 5
    frame = TelemetryFrame(node_id=A, boot_id="boot-1", seq=1, events=(event,))
    link = apply_telemetry(state, frame).live[A].links[B]
    assert link.link_type == "loopback" and link.bandwidth_mbps == event.bandwidth_mbps


# --- between devices -------------------------------------------------------------------------------------------------


class Timed(ScriptedDriver):
    """Copies take a fixed time and one that grows with their size, on a clock that only they move."""

    def __init__(self, bytes_per_s: float, fixed_s: float) -> None:
        super().__init__(found(0), found(1))
        self.bytes_per_s = bytes_per_s
        self.fixed_s = fixed_s
        self.now_s = 0.0
        self.copied_bytes = 0

    def copy(self, source: bytearray, destination: bytearray, size_bytes: int) -> None:
        self.now_s += self.fixed_s + size_bytes / self.bytes_per_s
        self.copied_bytes += size_bytes


async def test_copies_between_devices_say_what_the_way_is() -> None:
    driver = Timed(bytes_per_s=25e9, fixed_s=20e-6)
    backend = InlineBackend(driver, A)
    one, other = backend.devices
    measured = await measure_devices((backend, one), (backend, other), clock=lambda: driver.now_s)
    assert measured.bandwidth_mbps == pytest.approx(200_000, rel=0.01)
    assert measured.latency_ms == pytest.approx(0.02, rel=0.05)
    assert measured.measurement_count == DEVICE_LIMITS.count
    assert not driver.buffers and len(backend.book) == 0


@pytest.mark.parametrize(("is_direct", "kind"), [(True, "p2p"), (False, "unknown"), (None, "unknown")])
async def test_the_topology_says_which_devices_reach_each_other_without_the_host(
    is_direct: bool | None, kind: str
) -> None:
    class Reaching(Timed):
        def can_reach(self, index: int, other: int) -> bool | None:
            assert {index, other} == {0, 1}
            return is_direct

    driver = Reaching(bytes_per_s=25e9, fixed_s=20e-6)
    backend = InlineBackend(driver, A)
    state, told = cluster(identity("a")), list[Telemetry]()
    meter = BandwidthMeter(
        node_id=A,
        state=lambda: state,
        open_stream=None,
        publish=told.extend,
        busy=Busy(),
        fine_clock=lambda: driver.now_s,
    )
    meter.set_devices([(backend, device) for device in backend.devices])
    for way in sorted(meter.ways(), key=str):
        assert await meter.measure(way)
    frame = TelemetryFrame(node_id=A, boot_id="boot-1", seq=1, events=tuple(told))
    links = apply_telemetry(state, frame).live[A].device_links.values()
    assert [link.link_type for link in links] == [kind, kind]


async def test_memory_is_given_back_when_a_device_fails_meanwhile() -> None:
    class Failing(Timed):
        def synchronize(self, index: int) -> None:
            if self.copied_bytes > 300_000_000:
                raise DeviceLostError("gone")

    driver = Failing(25e9, 0)
    backend = InlineBackend(driver, A)
    one, other = backend.devices
    with pytest.raises(DeviceLostError):
        await measure_devices((backend, one), (backend, other), clock=lambda: driver.now_s)
    assert not driver.buffers


async def test_a_device_that_is_full_is_not_measured() -> None:
    device = m.SimulatedDevice(
        name="Card",
        vendor="nvidia",
        memory_kind="vram",
        memory_total_bytes=2**30,
        load=(m.LoadStep(at_s=0, utilization_percent=0, memory_used_bytes=2**30 - 2**20),),
    )
    full = m.SimulatedMachine(name="x", sources=("made up",), devices=(device, device))
    backend = InlineBackend(SimulatedDriver(full, lambda: 0.0), A)
    with pytest.raises(NotMeasurableError, match="too little memory free"):
        await measure_devices((backend, backend.devices[0]), (backend, backend.devices[1]), clock=lambda: 0.0)


async def test_devices_of_two_backends_are_measured_over_the_host_for_real() -> None:
    """The processor's memory, and a played device's, which is the same host's: real copies on real threads."""
    machine = m.SimulatedMachine(
        name="x",
        sources=("made up",),
        devices=(
            m.SimulatedDevice(name="Card", vendor="nvidia", memory_kind="vram", memory_total_bytes=2**28),
        ),
    )
    first, second = ThreadedBackend(CPUDriver(), A), ThreadedBackend(SimulatedDriver(machine), A)
    for backend in (first, second):
        await backend.initialize()
    state = cluster(identity("a"))
    told: list[Telemetry] = []
    meter = BandwidthMeter(node_id=A, state=lambda: state, open_stream=None, publish=told.extend, busy=Busy())
    pairs = [(backend, device) for backend in (first, second) for device in await backend.list_devices()]
    meter.set_devices(pairs)
    ways = meter.ways()
    assert len(ways) == 2
    for way in sorted(ways, key=str):
        assert await meter.measure(way)
    for event in told:
        assert isinstance(event, GPUBandwidthMeasured)
        assert event.bandwidth_mbps > 100 and event.latency_ms > 0 and event.link_type == "unknown"
    frame = TelemetryFrame(node_id=A, boot_id="boot-1", seq=1, events=tuple(told))
    assert len(apply_telemetry(state, frame).live[A].device_links) == 2
    for backend in (first, second):
        await backend.shutdown()


def test_devices_that_cannot_be_measured_are_no_ways() -> None:
    state = cluster(identity("a"))
    meter = BandwidthMeter(
        node_id=A, state=lambda: state, open_stream=None, publish=lambda _: None, busy=Busy()
    )
    watching = ScriptedDriver(found(0), found(1))
    watching.is_computing = False
    backend = InlineBackend(watching, A)
    meter.set_devices([(backend, device) for device in backend.devices])
    assert not meter.ways()
    many = InlineBackend(ScriptedDriver(*[found(index) for index in range(DEVICES_MAX + 1)]), A)
    meter.set_devices([(many, device) for device in many.devices])
    assert not meter.ways()
    meter.set_devices([(many, device) for device in many.devices[:3]])
    assert len(meter.ways()) == 6
    # The processor beside as many GPUs as can be is no reason to measure none.
    processor = InlineBackend(CPUDriver(), A)
    meter.set_devices(
        [(many, device) for device in many.devices[:DEVICES_MAX]] + [(processor, processor.devices[0])]
    )
    assert len(meter.ways()) == (DEVICES_MAX + 1) * DEVICES_MAX


def test_a_device_that_has_failed_is_not_measured_until_it_is_trusted_again() -> None:
    backend = InlineBackend(ScriptedDriver(*[found(index) for index in range(3)]), A)
    first, second, third = backend.devices
    known = cluster(identity("a"))

    def ways_when(health: Health) -> set[Way]:
        now = DeviceGPUState(device_id=second.device_id, node_id=A, health=health, last_update="")
        frame = TelemetryFrame(node_id=A, boot_id="boot-1", seq=1, events=(DeviceGPUStateUpdated(state=now),))
        state = apply_telemetry(known, frame)
        meter = BandwidthMeter(
            node_id=A, state=lambda: state, open_stream=None, publish=lambda _: None, busy=Busy()
        )
        meter.set_devices([(backend, device) for device in backend.devices])
        return meter.ways()

    ends = first.device_id, third.device_id
    assert ways_when("failed") == {DeviceWay(*ends), DeviceWay(*reversed(ends))}
    assert len(ways_when("degraded")) == len(ways_when("healthy")) == 6


async def test_a_device_that_is_gone_is_a_failure_and_nothing_is_told() -> None:
    told: list[Telemetry] = []
    meter = BandwidthMeter(
        node_id=A, state=State, open_stream=PlayedLinks({}).open, publish=told.extend, busy=Busy()
    )
    assert not await meter.measure(DeviceWay(DeviceId("a/x"), DeviceId("a/y")))
    assert not await meter.measure(NodeWay(B))
    assert not told


# --- what kind of link -----------------------------------------------------------------------------------------------


def interface(
    root: Path, name: str, kind: str = "1", *, driver: str | None = None, lower: Sequence[str] = ()
) -> Path:
    """Describe an interface as Linux does; without a driver it is virtual."""
    directory = root / "net" / name
    directory.mkdir(parents=True)
    (directory / "type").write_text(f"{kind}\n")
    if driver is not None:
        (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (directory / "device").mkdir()
        (directory / "device" / "driver").symlink_to(root / "drivers" / driver)
    for one in lower:
        (directory / f"lower_{one}").symlink_to(root / "net" / one)
    return directory


def test_links_of_linux(tmp_path: Path) -> None:
    interface(tmp_path, "eth0", driver="e1000e")
    (interface(tmp_path, "wlan0", driver="iwlwifi") / "wireless").mkdir()
    interface(tmp_path, "tb0", driver="thunderbolt-net")
    interface(tmp_path, "ib0", "32", driver="mlx5_core")
    (interface(tmp_path, "roce0", driver="mlx5_core") / "device" / "infiniband").mkdir()
    interface(tmp_path, "tun0", "65534")
    interface(tmp_path, "bond0", lower=("eth0", "roce0"))
    interface(tmp_path, "vlan5", lower=("eth0",))
    interface(tmp_path, "br0", lower=("vlan5",))
    interface(tmp_path, "loop", lower=("loop",))
    interface(tmp_path, "can0", "280", driver="can")
    expected = {
        "eth0": "ethernet",
        "wlan0": "wifi",
        "tb0": "thunderbolt",
        "ib0": "rdma",
        "roce0": "rdma",
        "tun0": "unknown",
        "bond0": "unknown",
        "vlan5": "ethernet",
        "br0": "ethernet",
        "loop": "unknown",
        "can0": "unknown",
        "gone0": "unknown",
    }
    addresses = {name: [f"10.0.0.{number}"] for number, name in enumerate(expected)}
    for name, kind in expected.items():
        got = link_type_of(addresses[name][0], "192.168.0.9", addresses, tmp_path / "net", "linux")
        assert got == kind, name


def test_links_elsewhere_and_within_this_host(tmp_path: Path) -> None:
    addresses = {
        "Wi-Fi 2": ["10.0.0.1"],
        "Ethernet": ["10.0.0.2"],
        "odd": ["10.0.0.3"],
        "Thunderbolt Bridge": ["fe80::1"],
    }

    def kind(own: str, peer: str, platform: str = "win32") -> str:
        return link_type_of(own, peer, addresses, tmp_path, platform)

    assert kind("10.0.0.1", "10.0.9.9") == "wifi"
    assert kind("10.0.0.2", "10.0.9.9") == "ethernet"
    assert kind("fe80::1", "fe80::2") == "thunderbolt"
    assert kind("10.0.0.3", "10.0.9.9") == kind("10.0.0.4", "10.0.9.9") == "unknown"
    assert kind("10.0.0.1", "10.0.9.9", "darwin") == "unknown"
    # Another node of the same host, at an address of that host.
    assert (
        kind("10.0.0.1", "10.0.0.2") == kind("127.0.0.1", "127.0.0.1") == kind("", "localhost") == "loopback"
    )


def test_this_host_says_something() -> None:
    from exo.worker.bandwidth.link_type import link_type

    assert link_type("127.0.0.1", "127.0.0.1") == "loopback"
    assert link_type("203.0.113.1", "203.0.113.2") == "unknown"
