"""Says whether the candidates are alike: then a split by memory is hard to beat, else the constraint layer joins in."""

from collections.abc import Mapping, Sequence

from exo.master.placement.figures import Speed
from exo.master.placement.problem import Candidate
from exo.master.placement.words import gibibytes

MEMORY_TOLERANCE = 0.05
"""What equal devices may differ by: drivers and firmware keep some of the memory for themselves."""
UTILIZATION_POINTS = 20.0
"""More than so many percentage points between the idlest and the busiest is a difference."""


def heterogeneity(candidates: Sequence[Candidate], speeds: Mapping[str, Speed]) -> tuple[str, ...]:
    """Return how candidates differ, in words; empty: they are alike."""
    found: list[str] = []
    sizes = [one.memory_total_bytes for one in candidates]
    if sizes and min(sizes) < max(sizes) * (1 - MEMORY_TOLERANCE):
        found.append(f"memory of {gibibytes(min(sizes))} to {gibibytes(max(sizes))}")
    told = (speeds[one.device.device_id].load_percent for one in candidates)
    loads = [one for one in told if one is not None]
    if loads and max(loads) - min(loads) > UTILIZATION_POINTS:
        found.append(f"load of {min(loads):.0f} to {max(loads):.0f} %")
    return tuple(found)
