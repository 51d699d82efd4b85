"""Every device of the cluster as Prometheus reads it, from the state. What is not known is absent, never zero."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from exo.api.exposition import Family, Row, Value, labels
from exo.gpu.numbering import with_numbers
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.nodes import Node, NodeIdentity
from exo.shared.types.state import State

_MIB = 1024 * 1024


class Measure(msgspec.Struct, frozen=True):
    """One metric of a device."""

    name: str
    help: str
    read: Callable[[DeviceGPUState], Value]
    kind: Literal["gauge", "counter"] = "gauge"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _unix_s(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _whole_mib(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else size_bytes // _MIB


def _last_xid(now: DeviceGPUState) -> int | None:
    return next((fault.code for fault in reversed(now.faults) if fault.kind == "xid"), None)


MEASURES: tuple[Measure, ...] = (
    Measure("gpu_memory_used_bytes", "Memory in use, by everybody.", lambda now: now.memory_used_bytes),
    Measure("gpu_memory_available_bytes", "Memory left.", lambda now: now.memory_free_bytes),
    Measure("gpu_memory_total_bytes", "Memory in all.", lambda now: now.memory_total_bytes),
    Measure(
        "gpu_utilization_percent", "Compute in use, 0 to 100.", lambda now: now.compute_utilization_percent
    ),
    Measure(
        "gpu_utilization_ratio",
        "Compute in use, 0 to 1.",
        lambda now: _scaled(now.compute_utilization_percent, 0.01),
    ),
    Measure("gpu_temperature_celsius", "Temperature.", lambda now: now.thermal_temperature_c),
    Measure(
        "gpu_temperature_limit_celsius",
        "The temperature at which the device slows itself down.",
        lambda now: now.thermal_throttle_threshold_c,
    ),
    Measure(
        "gpu_throttling", "1 while heat slows the device down, else 0.", lambda now: now.is_thermal_throttling
    ),
    Measure(
        "gpu_temperature_predicted_celsius",
        "The temperature predicted for 30 seconds later.",
        lambda now: now.thermal.predicted_temperature_c if now.thermal is not None else None,
    ),
    Measure(
        "gpu_temperature_prediction_error_celsius",
        "How far such predictions were off lately, as a root mean square.",
        lambda now: now.thermal.prediction_error_c if now.thermal is not None else None,
    ),
    Measure(
        "gpu_work_ratio",
        "How much of the time exo works on it, as heat and battery allow, 0 to 1.",
        lambda now: now.thermal.work_fraction if now.thermal is not None else None,
    ),
    Measure(
        "gpu_work_sustained_ratio",
        "How much of full work it is predicted to hold for good, 0 to 1.",
        lambda now: now.thermal.sustained_fraction if now.thermal is not None else None,
    ),
    Measure("gpu_power_watts", "Power drawn: joules per second.", lambda now: now.power_watts),
    Measure(
        "gpu_energy_joules_total",
        "Energy drawn, since the driver counts.",
        lambda now: now.energy_joules,
        "counter",
    ),
    Measure("gpu_clock_hertz", "Clock of the compute units.", lambda now: _scaled(now.clock_mhz, 1e6)),
    Measure("gpu_power_limit_watts", "The most power it may draw.", lambda now: now.power_limit_watts),
    Measure(
        "gpu_clock_max_hertz", "The highest clock it may take.", lambda now: _scaled(now.clock_max_mhz, 1e6)
    ),
    Measure(
        "gpu_memory_corrected_errors_total",
        "Memory errors that were corrected, since the driver counts.",
        lambda now: now.ecc_corrected_count,
        "counter",
    ),
    Measure(
        "gpu_memory_uncorrected_errors_total",
        "Memory errors that could not be corrected, since the driver counts.",
        lambda now: now.ecc_uncorrected_count,
        "counter",
    ),
    Measure(
        "gpu_faults",
        "Faults that the driver reports; absent where it reports none.",
        lambda now: len(now.faults) or None,
    ),
    Measure(
        "gpu_memory_pressed",
        "1 while the system is short of memory, else 0.",
        lambda now: now.is_memory_pressed,
    ),
    Measure(
        "gpu_battery_ratio",
        "Charge of the host's battery, 0 to 1.",
        lambda now: _scaled(now.battery_percent, 0.01),
    ),
    Measure("gpu_plugged_in", "1 while the host is on mains, else 0.", lambda now: now.is_plugged_in),
    Measure(
        "gpu_health_status", "1 while the device is not failed, else 0.", lambda now: now.health != "failed"
    ),
    Measure(
        "gpu_degraded",
        "1 while the device works, but not as it should, else 0.",
        lambda now: now.health == "degraded",
    ),
    Measure(
        "gpu_last_update_timestamp_seconds",
        "When the device was last read.",
        lambda now: _unix_s(now.last_update),
    ),
)
"""The names, labels and units are a contract: those in the style of Prometheus's own beside those people ask for."""

DCGM_MEASURES: tuple[Measure, ...] = (
    Measure("DCGM_FI_DEV_GPU_TEMP", "GPU temperature in Celsius.", lambda now: now.thermal_temperature_c),
    Measure("DCGM_FI_DEV_POWER_USAGE", "Power drawn in watts.", lambda now: now.power_watts),
    Measure("DCGM_FI_DEV_SM_CLOCK", "Clock of the compute units in MHz.", lambda now: now.clock_mhz),
    Measure(
        "DCGM_FI_DEV_GPU_UTIL", "Compute in use in percent.", lambda now: now.compute_utilization_percent
    ),
    Measure("DCGM_FI_DEV_FB_USED", "Memory in use in MiB.", lambda now: _whole_mib(now.memory_used_bytes)),
    Measure("DCGM_FI_DEV_FB_FREE", "Memory left in MiB.", lambda now: _whole_mib(now.memory_free_bytes)),
    Measure("DCGM_FI_DEV_XID_ERRORS", "Number of the last Xid that was reported.", _last_xid),
)
"""What dashboards made for NVIDIA's dcgm-exporter look for, of GPUs of any vendor."""


class _Labelled(NamedTuple):
    device_id: DeviceId
    own: str
    info: str
    dcgm: str | None
    """None: it is no GPU."""


class DeviceMetrics:
    """Keeps the labels of every device, which stay as long as its node runs."""

    def __init__(self, *, has_dcgm_names: bool = False) -> None:
        self._has_dcgm_names = has_dcgm_names
        self._known: dict[NodeId, tuple[NodeIdentity, tuple[_Labelled, ...]]] = {}

    def families(self, state: State) -> list[Family]:
        """Return the metrics of the devices of all connected nodes that have been read."""
        present: list[tuple[_Labelled, DeviceGPUState]] = []
        infos: list[Row] = []
        for node_id, node in sorted(state.nodes.items()):
            live = state.live.get(node_id)
            if live is None or not node.is_connected:
                continue
            for labelled in self._labelled(node_id, node):
                now = live.devices.get(labelled.device_id)
                if now is not None:
                    present.append((labelled, now))
                    infos.append((labelled.info, 1))
        for gone in self._known.keys() - state.nodes.keys():
            self._known.pop(gone, None)
        families = [
            Family(one.name, one.kind, one.help, [(labelled.own, one.read(now)) for labelled, now in present])
            for one in MEASURES
        ]
        families.append(Family("gpu_info", "gauge", "What a device is; always 1.", infos))
        families.append(
            Family(
                "gpu_refused_devices",
                "gauge",
                "Devices, or all those of one driver, that are there and are not used, by reason.",
                _refused(state),
            )
        )
        if self._has_dcgm_names:
            gpus = [(labelled.dcgm, now) for labelled, now in present if labelled.dcgm is not None]
            families += [
                Family(one.name, one.kind, one.help, [(where, one.read(now)) for where, now in gpus])
                for one in DCGM_MEASURES
            ]
        return families

    def _labelled(self, node_id: NodeId, node: Node) -> tuple[_Labelled, ...]:
        known = self._known.get(node_id)
        if known is None or known[0] is not node.identity:
            devices = with_numbers(node.identity.devices)
            known = node.identity, tuple(_label(node, index, device) for index, device in devices)
            self._known[node_id] = known
        return known[1]


def _refused(state: State) -> list[Row]:
    rows: list[Row] = []
    for node_id, node in sorted(state.nodes.items()):
        live = state.live.get(node_id)
        if live is None or live.profile is None or not node.is_connected:
            continue
        counts = Counter((one.backend, one.kind) for one in live.profile.refused_devices)
        for (backend, kind), count in sorted(counts.items()):
            where = {"node": node_id, "host": node.identity.name, "backend": backend, "kind": kind}
            rows.append((labels(where), count))
    return rows


def _label(node: Node, index: int, device: GPUDevice) -> _Labelled:
    identity = node.identity
    own = {"gpu_id": str(index), "node": identity.node_id, "vendor": device.vendor, "name": device.name}
    info = own | {
        "device_id": device.device_id,
        "host": identity.name,
        "alias": device.local_alias,
        "backend": device.backend,
        "memory_kind": device.memory_kind,
        "driver": device.driver_version or "",
        "uuid": device.uuid or "",
    }
    dcgm = {
        "gpu": str(index),
        "UUID": device.uuid or device.device_id,
        "device": f"{device.vendor.lower()}{index}",
        "modelName": device.name,
        "Hostname": identity.name,
    }
    return _Labelled(
        device.device_id, labels(own), labels(info), None if device.backend == "cpu" else labels(dcgm)
    )
