"""What each candidate can do now: makers' or measured figures, what others' load and heat leave, and in which steps.

Load and heat count in coarse steps, so that plans do not flutter from one second to the next.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.assumed import ASSUMED
from exo.master.placement.ladder.cost_model import DeviceFigures, free_share, is_usable
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.problem import Candidate, Problem, pool_of
from exo.shared.device_figures import DeviceFigures as LookedUp
from exo.shared.device_figures import figures_for
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import DeviceId
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

UTILIZATION_STEP_PERCENT = 20
UTILIZATION_MAX_PERCENT = 80
"""However busy others keep a device, it is shared with them: a fifth of it is ours."""
HEAT_STEP_C = 5
HEAT_SHARE_STEP = 0.05
_ROUNDING = 1e-9
_ASKED_EVERY = 256
"""Devices, of which each takes some ten microseconds."""

Hardware = tuple[str, str, str]
"""Names a piece of hardware, whichever nodes tell of it."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate does on the model's work, and what keeps it from more."""

    bandwidth_bytes_per_s: float
    """Idle and cool."""
    flops_per_s: float
    """Idle and cool."""
    load_share: float
    """What others leave of it, 0 to 1."""
    heat_share: float
    """What heat leaves of it, 0 to 1."""
    load_percent: float | None
    """As the device told it; None where it did not, or the load is this cluster's own."""


class Candidates(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates of a problem, in its order, as the cost model takes them."""

    figures: tuple[DeviceFigures, ...]
    measured: frozenset[str]
    """Those whose bandwidth was measured: what was measured is reached already."""
    speeds: dict[str, Speed]
    first_of_kind: tuple[Candidate, ...]
    """One candidate for each piece of hardware."""


class _Twins(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one piece of hardware by all nodes that tell of it: nodes of a host share its processor."""

    bandwidth_bytes_per_s: float | None
    flops_per_s: float | None
    utilization_percent: float | None
    load_percent: float | None
    heat_share: float
    headroom_c: float | None


def figures_of(
    state: State, problem: Problem, *, should_stop: Callable[[], bool] = lambda: False
) -> Candidates:
    """Return what the candidates of a problem can do on this state. Pure.

    Raises:
        StoppedError: `should_stop` said so; it is asked every few milliseconds.
    """
    twins = _twins(state, problem, should_stop)
    known: dict[GPUDevice, LookedUp] = {}
    # A machine is in one place, whatever its nodes say.
    zones: dict[str, str] = {}
    for one in problem.candidates:
        host = state.nodes[one.node_id].identity.host_id
        zones[host] = max(zones.get(host, ""), one.zone)
    figures: list[DeviceFigures] = []
    measured: set[str] = set()
    speeds: dict[str, Speed] = {}
    first: dict[Hardware, Candidate] = {}
    for number, one in enumerate(problem.candidates):
        _ask(number, should_stop)
        node = state.nodes[one.node_id]
        key = _hardware(node, one.device)
        made, speed, is_measured = _device(one, node, twins[key], known)
        figures.append(replace(made, zone=zones[made.host]))
        speeds[made.device_id] = speed
        if is_measured:
            measured.add(made.device_id)
        first.setdefault(key, one)
    return Candidates(
        figures=tuple(figures),
        measured=frozenset(measured),
        speeds=speeds,
        first_of_kind=tuple(first.values()),
    )


def used_by_others_percent(told: float | None) -> float | None:
    """Return a device's load in whole steps, rounded down, and never all of it; None where it is not known."""
    if told is None or not math.isfinite(told):
        return None
    steps = max(0.0, told) // UTILIZATION_STEP_PERCENT
    return min(float(UTILIZATION_MAX_PERCENT), steps * UTILIZATION_STEP_PERCENT)


def heat_of(reading: DeviceGPUState) -> tuple[float, float | None]:
    """Return the share of full work that heat leaves for good, and the degrees to the limit that the device tells.

    Where the share is foreseen, it says more than degrees do, and these are None.
    """
    thermal = reading.thermal
    if thermal is not None and is_usable(thermal.sustained_fraction):
        share = min(1.0, thermal.sustained_fraction or 0.0)
        steps = math.floor(share / HEAT_SHARE_STEP + _ROUNDING)
        return max(HEAT_SHARE_STEP, round(steps * HEAT_SHARE_STEP, 2)), None
    limit_c = reading.thermal_throttle_threshold_c
    if limit_c is None and thermal is not None and not thermal.is_limit_assumed:
        limit_c = thermal.limit_c
    now_c = reading.thermal_temperature_c
    if limit_c is None or now_c is None or not math.isfinite(limit_c - now_c):
        return 1.0, None
    return 1.0, float((limit_c - now_c) // HEAT_STEP_C * HEAT_STEP_C)


def _device(
    one: Candidate, node: Node, twins: _Twins, looked_up: dict[GPUDevice, LookedUp]
) -> tuple[DeviceFigures, Speed, bool]:
    """Return a candidate's figures, its speed, and whether its bandwidth was measured.

    `looked_up` keeps what is known of devices, for a thousand of them are mostly of a few kinds.
    """
    kind = replace(
        one.device,
        device_id=DeviceId(""),
        local_alias="",
        uuid=None,
        pci_address=None,
        measured_memory_bandwidth_bytes_per_s=twins.bandwidth_bytes_per_s,
        measured_flops_per_s=twins.flops_per_s,
    )
    known = looked_up.get(kind)
    if known is None:
        known = looked_up[kind] = figures_for(kind)
    bandwidth = known.memory_bandwidth_bytes_per_s
    compute = known.compute_in("float32" if one.device.backend == "cpu" else "float16")
    figures = DeviceFigures(
        device_id=one.device.device_id,
        node_id=one.node_id,
        host=node.identity.host_id,
        zone=one.zone,
        pool_id=one.pool,
        memory_bandwidth_bytes_per_s=bandwidth.value * twins.heat_share,
        flops_per_s=compute.value * twins.heat_share,
        utilization_percent=twins.utilization_percent,
        thermal_headroom_c=twins.headroom_c,
    )
    cool = replace(figures, thermal_headroom_c=None)
    load_share = free_share(cool, ASSUMED)
    speed = Speed(
        bandwidth_bytes_per_s=bandwidth.value,
        flops_per_s=compute.value,
        load_share=load_share,
        heat_share=twins.heat_share * free_share(figures, ASSUMED) / load_share,
        load_percent=twins.load_percent,
    )
    return figures, speed, bandwidth.basis == "measured"


def _hardware(node: Node, device: GPUDevice) -> Hardware:
    """Name the hardware: processors and chips that share a host's memory are told of by each node of that host."""
    return pool_of(node, device), device.backend, device.uuid or device.name


def _ask(number: int, should_stop: Callable[[], bool]) -> None:
    if number % _ASKED_EVERY == 0 and should_stop():
        raise StoppedError


def _twins(state: State, problem: Problem, should_stop: Callable[[], bool]) -> dict[Hardware, _Twins]:
    """Put together what the nodes tell of the same hardware, so that they are alike where they are the same."""
    told: dict[Hardware, list[tuple[GPUDevice, DeviceGPUState | None]]] = {}
    ours: set[Hardware] = set()
    placed = _placed(state)
    nodes = {one.node_id for one in problem.candidates}
    hosts = {state.nodes[node_id].identity.host_id for node_id in nodes}
    for node_id, node in sorted(state.nodes.items()):
        if not node.is_connected or node.identity.host_id not in hosts:
            continue
        live = state.live.get(node_id)
        for device in node.identity.devices:
            key = _hardware(node, device)
            reading = live.devices.get(device.device_id) if live is not None else None
            told.setdefault(key, []).append((device, reading))
            if device.device_id in placed:
                ours.add(key)
    found: dict[Hardware, _Twins] = {}
    for number, (key, rows) in enumerate(told.items()):
        _ask(number, should_stop)
        found[key] = _together(rows, is_ours=key in ours)
    return found


def _together(rows: Sequence[tuple[GPUDevice, DeviceGPUState | None]], *, is_ours: bool) -> _Twins:
    readings = [reading for _, reading in rows if reading is not None]
    told = [one.compute_utilization_percent for one in readings]
    loads = [one for one in told if one is not None and math.isfinite(one)]
    load = None if is_ours else min(loads, default=None)
    heats = [heat_of(one) for one in readings]
    return _Twins(
        bandwidth_bytes_per_s=_most(device.measured_memory_bandwidth_bytes_per_s for device, _ in rows),
        flops_per_s=_most(device.measured_flops_per_s for device, _ in rows),
        # A device that works for this cluster shows its own work as load.
        utilization_percent=used_by_others_percent(load),
        load_percent=load,
        heat_share=min((share for share, _ in heats), default=1.0),
        headroom_c=min((one for _, one in heats if one is not None), default=None),
    )


def _most(values: Iterable[float | None]) -> float | None:
    return max((one for one in values if one is not None and is_usable(one)), default=None)


def _placed(state: State) -> set[DeviceId]:
    return {
        device_id
        for instance in state.instances.values()
        for plan, stage in zip(instance.plan.stages, instance.stages, strict=True)
        if stage.phase != "failed"
        for device_id in plan.device_ids
    }
