"""Devices that come and go become decisions, and what the cluster believes becomes true again."""

from collections.abc import Callable, Sequence

import anyio
from msgspec.structs import replace

from exo.gpu.backend import GPUBackend
from exo.gpu.inventory import Inventory, RefusedDevice, UsedDevice
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import GPUDevice
from exo.shared.types.events import DeviceAppeared, DeviceLost
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from exo.worker.device_watch import DeviceWatch, device_changes
from support.coordinator import MemoryCoordinator
from support.scripted_driver import ScriptedDriver
from support.states import GIB, cluster, cpu, gpu, identity

NODE = NodeId("n")
BACKEND = ThreadedBackend(ScriptedDriver(), NODE)
CPU, GPU, OTHER = cpu("n", 8 * GIB), gpu("n", 8 * GIB), gpu("n", 8 * GIB, alias="cuda:1")


def inventory(*devices: GPUDevice, refused: Sequence[RefusedDevice] = ()) -> Inventory:
    return Inventory(used=tuple(UsedDevice(BACKEND, one) for one in devices), refused=tuple(refused))


def changes(known: Sequence[GPUDevice], there: Inventory) -> list[tuple[str, str]]:
    return [
        ("appeared", event.device.device_id)
        if isinstance(event, DeviceAppeared)
        else ("lost", f"{event.device_id}: {event.reason}")
        for event in device_changes(known, there, NODE)
        if isinstance(event, DeviceAppeared | DeviceLost)
    ]


def test_what_is_as_the_cluster_knows_it_changes_nothing() -> None:
    assert changes([CPU, GPU], inventory(CPU, GPU)) == []
    assert changes([], inventory()) == []
    assert changes([CPU], inventory(replace(CPU, clock_mhz=1.0))) == []


def test_what_came_and_what_went() -> None:
    assert changes([CPU, GPU], inventory(CPU, OTHER)) == [
        ("lost", "n/cuda:0: its driver does not list it any more"),
        ("appeared", "n/cuda:1"),
    ]


def test_another_device_under_the_same_id_takes_its_place() -> None:
    assert changes([GPU], inventory(replace(GPU, driver_version="581"))) == [("appeared", "n/cuda:0")]


def test_a_device_that_is_refused_is_lost_for_that_reason() -> None:
    refused = RefusedDevice(GPU, "wrong", "its check failed: wrong sums")
    assert changes([CPU, GPU], inventory(CPU, refused=[refused])) == [
        ("lost", "n/cuda:0: its check failed: wrong sums")
    ]


class Source:
    """Finds what the test puts there."""

    def __init__(self, now: Inventory) -> None:
        self.inventory = now
        self.next = now
        self.look_count = 0

    async def look_again(self) -> Inventory:
        self.look_count += 1
        self.inventory = self.next
        return self.inventory


def coordinator(*devices: GPUDevice) -> MemoryCoordinator:
    return MemoryCoordinator(NODE, cluster(identity("n", devices=devices)))


def known(cluster: MemoryCoordinator) -> list[str]:
    return [one.device_id for one in cluster.state.nodes[NODE].identity.devices]


class Followed:
    """Takes down whom the watch told of which devices."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def __call__(self, devices: Sequence[tuple[GPUBackend, GPUDevice]]) -> None:
        self.told.append([device.device_id for _, device in devices])


async def until(is_so: Callable[[], bool], nudge: Callable[[], None] = lambda: None) -> None:
    with anyio.fail_after(20):
        while not is_so():
            nudge()
            await anyio.sleep(0.001)


async def test_changes_are_proposed_and_those_who_follow_the_devices_are_told() -> None:
    source, cluster_, followed = Source(inventory(CPU, GPU)), coordinator(CPU, GPU), Followed()
    watch = DeviceWatch(source=source, coordinator=cluster_, boot_id="boot-1", on_devices=followed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        await anyio.wait_all_tasks_blocked()
        assert followed.told == [["n/cpu:0", "n/cuda:0"]] and source.look_count == 0
        source.next = inventory(CPU, OTHER)
        watch.look_soon()
        await until(lambda: known(cluster_) == ["n/cpu:0", "n/cuda:1"])
        assert followed.told[1:] == [["n/cpu:0", "n/cuda:1"]]
        watch.look_soon()
        await until(lambda: source.look_count == 2)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert [type(one) for one in cluster_.proposed] == [DeviceLost, DeviceAppeared]
    assert len(followed.told) == 2


async def test_it_looks_at_an_interval_and_tells_again_what_nobody_could_hear() -> None:
    source, cluster_ = Source(inventory(CPU)), coordinator(CPU)
    cluster_.has_master = False
    watch = DeviceWatch(source=source, coordinator=cluster_, boot_id="boot-1", interval_s=0.001)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        source.next = inventory(CPU, GPU)
        await until(lambda: source.look_count >= 3)
        assert known(cluster_) == ["n/cpu:0"]
        cluster_.has_master = True
        await until(lambda: known(cluster_) == ["n/cpu:0", "n/cuda:0"])
        tasks.cancel_scope.cancel()


async def test_what_an_older_message_brought_back_is_put_right() -> None:
    source, cluster_ = Source(inventory(CPU)), coordinator(CPU, GPU)
    watch = DeviceWatch(source=source, coordinator=cluster_, boot_id="boot-1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        await anyio.wait_all_tasks_blocked()
        watch.look_soon()
        await until(lambda: known(cluster_) == ["n/cpu:0"])
        tasks.cancel_scope.cancel()


async def test_nothing_is_said_in_the_name_of_another_start_of_the_node() -> None:
    source, cluster_ = Source(inventory(CPU)), coordinator(CPU, GPU)
    for boot_id, coordinator_ in (("boot-2", cluster_), ("boot-1", MemoryCoordinator(NODE, State()))):
        watch = DeviceWatch(source=source, coordinator=coordinator_, boot_id=boot_id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await anyio.wait_all_tasks_blocked()
            looks = source.look_count
            watch.look_soon()
            await until(lambda looks=looks: source.look_count > looks)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert coordinator_.proposed == []
