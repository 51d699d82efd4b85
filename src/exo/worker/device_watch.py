"""Tells the cluster which devices this node has while they come and go."""

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.cluster.errors import UnsendableError
from exo.gpu.backend import GPUBackend
from exo.gpu.inventory import Inventory, signature
from exo.shared.errors import NoMasterError
from exo.shared.types.devices import GPUDevice
from exo.shared.types.events import Decision, DeviceAppeared, DeviceLost
from exo.shared.types.ids import DeviceId, NodeId

LOOK_INTERVAL_S = 10.0


class DeviceSource(Protocol):
    """Where the devices are found (`gpu.discovery.GPUDiscoveryService`)."""

    @property
    def inventory(self) -> Inventory:
        """What was found at the last look."""
        ...

    async def look_again(self) -> Inventory:
        """Look for devices that came or went."""
        ...


class DeviceWatch:
    """Looks at an interval, and when it is asked to; keeps the cluster's list of this node's devices true.

    Args:
        source: Finds the devices.
        coordinator: The cluster.
        boot_id: This start of the node: the cause of what it tells.
        on_devices: Told of the devices before the first look, and whenever they are others.
        interval_s: Between looks.
    """

    def __init__(
        self,
        *,
        source: DeviceSource,
        coordinator: Coordinator,
        boot_id: str,
        on_devices: Callable[[Sequence[tuple[GPUBackend, GPUDevice]]], None] = lambda devices: None,
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._source = source
        self._coordinator = coordinator
        self._boot_id = boot_id
        self._on_devices = on_devices
        self._interval_s = interval_s
        self._is_wanted = anyio.Event()

    def look_soon(self) -> None:
        """Look at once, or as soon as the present look has ended."""
        self._is_wanted.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        inventory = self._source.inventory
        self._on_devices(_pairs(inventory))
        while True:
            with anyio.move_on_after(self._interval_s):
                await self._is_wanted.wait()
            self._is_wanted = anyio.Event()
            before, inventory = inventory, await self._source.look_again()
            if {signature(one) for one in before.devices} != {signature(one) for one in inventory.devices}:
                _announce(before, inventory)
                self._on_devices(_pairs(inventory))
            await self._tell(inventory)

    async def _tell(self, inventory: Inventory) -> None:
        """Propose what is not as the cluster has it. Without a master the next look tries again."""
        node_id = self._coordinator.node_id
        node = self._coordinator.state.nodes.get(node_id)
        if node is None or node.identity.boot_id != self._boot_id:
            return
        events = device_changes(node.identity.devices, inventory, node_id)
        if not events:
            return
        try:
            await self._coordinator.propose(events, cause_id=self._boot_id)
        except UnsendableError as error:
            logger.error("the cluster cannot be told of this node's devices: {}", error.message)
        except NoMasterError:
            logger.debug("{} changes of devices wait for a master", len(events))


def device_changes(known: Sequence[GPUDevice], inventory: Inventory, node_id: NodeId) -> list[Decision]:
    """Return the decisions that lead from the devices that the cluster knows to those that are there. Pure.

    A device that is another one under the same id appears again, in the place of what it was.
    """
    there = {one.device_id: one for one in inventory.devices}
    before = {one.device_id: one for one in known}
    lost = [
        DeviceLost(node_id=node_id, device_id=device_id, reason=_why(inventory, device_id))
        for device_id in before
        if device_id not in there
    ]
    appeared = [
        DeviceAppeared(node_id=node_id, device=one)
        for device_id, one in there.items()
        if device_id not in before or signature(before[device_id]) != signature(one)
    ]
    return [*lost, *appeared]


def _why(inventory: Inventory, device_id: DeviceId) -> str:
    return inventory.why_not(device_id) or "its driver does not list it any more"


def _announce(before: Inventory, after: Inventory) -> None:
    known = {one.device_id for one in before.devices}
    there = {one.device_id for one in after.devices}
    for one in after.devices:
        if one.device_id not in known:
            size_gib = one.memory_total_bytes / 2**30
            logger.info("GPU detected: {} ({:.1f} GiB), as {}", one.name, size_gib, one.local_alias)
    for one in before.devices:
        if one.device_id not in there:
            logger.warning("GPU gone: {} ({}): {}", one.name, one.local_alias, _why(after, one.device_id))


def _pairs(inventory: Inventory) -> list[tuple[GPUBackend, GPUDevice]]:
    return [(one.backend, one.device) for one in inventory.used]
