"""From what a driver says of its devices to devices of the cluster: ids, aliases, and no id twice. Pure."""

from collections.abc import Sequence

from exo.gpu.driver import FoundDevice
from exo.shared.types.devices import Backend, GPUDevice, SupportLevel
from exo.shared.types.ids import NodeId, device_id


def describe(
    found: Sequence[FoundDevice], backend: Backend, node_id: NodeId, support_level: SupportLevel | None
) -> list[GPUDevice]:
    """Return the devices in the driver's order.

    A device is named after its UUID, so that it keeps its id when others come or go; after its index where it has none,
    or where the driver gives one UUID twice.
    """
    uuids = [one.uuid for one in found]
    return [
        _described(one, backend, node_id, support_level, is_uuid_unique=uuids.count(one.uuid) == 1)
        for one in found
    ]


def _described(
    found: FoundDevice,
    backend: Backend,
    node_id: NodeId,
    support_level: SupportLevel | None,
    *,
    is_uuid_unique: bool,
) -> GPUDevice:
    own = found.uuid if found.uuid and is_uuid_unique else str(found.index)
    return GPUDevice(
        device_id=device_id(node_id, f"{backend}:{own.replace('/', '-')}"),
        local_alias=f"{backend}:{found.index}",
        name=found.name,
        vendor=found.vendor,
        backend=backend,
        memory_kind=found.memory_kind,
        memory_total_bytes=found.memory_total_bytes,
        compute_units=found.compute_units,
        compute_capability=found.compute_capability,
        clock_mhz=found.clock_mhz,
        memory_bandwidth_bytes_per_s=found.memory_bandwidth_bytes_per_s,
        flops_per_s=found.flops_per_s,
        driver_version=found.driver_version,
        uuid=found.uuid,
        is_simulated=backend == "simulated",
        pci_address=found.pci_address,
        support_level=support_level,
    )
