"""The classic weighted score of each candidate, for people to compare devices by; the predicted tokens/s decide."""

from collections.abc import Mapping

import msgspec

from exo.master.placement.figures import Speed
from exo.master.placement.ladder.by_node import NodeLinks
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.problem import Problem

_DECIMALS = 3


class GPUDeviceScore(msgspec.Struct, frozen=True, kw_only=True):
    """One device's parts, each 0 to 1: its share of the best candidate's."""

    compute: float
    """FLOP/s that others leave."""
    memory: float
    """Free bytes of the memory that it takes from."""
    network: float
    """How quickly a step reaches the nearest other candidate."""
    thermal: float
    """What heat leaves of its speed."""
    bandwidth: float
    """Memory bandwidth."""

    @property
    def total(self) -> float:
        """Compute 40 %, memory 30 %, network 15 %, thermal 10 %, bandwidth 5 %."""
        parts = (
            0.40 * self.compute,
            0.30 * self.memory,
            0.15 * self.network,
            0.10 * self.thermal,
            0.05 * self.bandwidth,
        )
        return round(sum(parts), _DECIMALS)


def device_scores(
    problem: Problem, speeds: Mapping[str, Speed], costs: CostProblem
) -> dict[str, GPUDeviceScore]:
    """Return the score of each candidate whose speed is known, by device id."""
    hops = _nearest_hop_ns(costs)
    compute = {name: speed.flops_per_s * speed.load_share for name, speed in speeds.items()}
    most_compute = max(compute.values(), default=0.0)
    most_bandwidth = max((speed.bandwidth_bytes_per_s for speed in speeds.values()), default=0.0)
    most_memory = max((one.memory_free_bytes for one in problem.candidates), default=0)
    quickest = min(hops.values(), default=0)
    found: dict[str, GPUDeviceScore] = {}
    for one in problem.candidates:
        name = one.device.device_id
        speed = speeds.get(name)
        if speed is None:
            continue
        found[name] = GPUDeviceScore(
            compute=_share(compute[name], most_compute),
            memory=_share(one.memory_free_bytes, most_memory),
            network=_share(quickest, hops[name]) if hops.get(name) else 1.0,
            thermal=speed.heat_share,
            bandwidth=_share(speed.bandwidth_bytes_per_s, most_bandwidth),
        )
    return found


def _share(value: float, most: float) -> float:
    return min(1.0, value / most) if most > 0 else 0.0


def _nearest_hop_ns(costs: CostProblem) -> dict[str, int]:
    """Return what a step takes to the nearest other device: measured, else by class."""
    hosts: dict[tuple[str, str], int] = {}
    zones: dict[str, int] = {}
    for device in costs.devices:
        hosts[device.zone, device.host] = hosts.get((device.zone, device.host), 0) + 1
        zones[device.zone] = zones.get(device.zone, 0) + 1
    links = costs.links
    measured = NodeLinks.of(links.measured).nearest_ns()
    found: dict[str, int] = {}
    for device in costs.devices:
        name = device.device_id
        if hosts[device.zone, device.host] > 1:
            found[name] = links.host.forward_ns
        elif name in measured:
            found[name] = measured[name]
        elif len(costs.devices) > 1:
            found[name] = (links.zone if zones[device.zone] > 1 else links.cluster).forward_ns
    return found
