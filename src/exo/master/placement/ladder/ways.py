"""What hops can do, and what they cost by that: measured between nodes, and kept once for all their devices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.by_node import Integers, NodeLinks, NodePairs

Floats = npt.NDArray[np.float64]
VALUE_BYTES = 2
"""Activations travel as 16-bit values."""
TOKEN_BYTES = 4
TIME_NS_MAX = 10**12
_NS_PER_S = 1e9


class LinkFigures(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a hop can do, one way."""

    latency_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class NodeWays(Mapping[tuple[str, str], LinkFigures]):
    """What hops between nodes can do, as a mapping of the pairs of their devices."""

    pairs: NodePairs
    latency_s: Floats
    bandwidth_bytes_per_s: Floats

    @classmethod
    def told(
        cls,
        devices: tuple[tuple[str, ...], ...],
        sources: Integers,
        targets: Integers,
        latency_s: Floats,
        bandwidth_bytes_per_s: Floats,
    ) -> "NodeWays":
        """Return ways between nodes, told in any order, but each once; see `NodePairs` for the first three."""
        keys = sources * len(devices) + targets
        if (np.diff(keys) < 0).any():
            order = np.argsort(keys)
            sources, targets = sources[order], targets[order]
            latency_s, bandwidth_bytes_per_s = latency_s[order], bandwidth_bytes_per_s[order]
        pairs = NodePairs(devices=devices, sources=sources, targets=targets)
        return cls(pairs, latency_s, bandwidth_bytes_per_s)

    @classmethod
    def of(cls, ways: Mapping[tuple[str, str], LinkFigures]) -> "NodeWays":
        """Return the same with each device as a node of its own; ways of a device to itself are none."""
        if isinstance(ways, NodeWays):
            return ways
        told = sorted((pair, figures) for pair, figures in ways.items() if pair[0] != pair[1])
        names = sorted({name for pair, _ in told for name in pair})
        number = {name: place for place, name in enumerate(names)}
        pairs = NodePairs(
            devices=tuple((name,) for name in names),
            sources=np.array([number[pair[0]] for pair, _ in told], dtype=np.int64),
            targets=np.array([number[pair[1]] for pair, _ in told], dtype=np.int64),
        )
        return cls(
            pairs,
            np.array([figures.latency_s for _, figures in told], dtype=np.float64),
            np.array([figures.bandwidth_bytes_per_s for _, figures in told], dtype=np.float64),
        )

    def __getitem__(self, pair: tuple[str, str]) -> LinkFigures:
        row = self.pairs.row(*pair)
        if row is None:
            raise KeyError(pair)
        return self.figures(row)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((source, target) for _, source, target in self.pairs.device_pairs())

    def __len__(self) -> int:
        return self.pairs.device_pair_count

    def figures(self, row: int) -> LinkFigures:
        """Return what the hops of a row can do."""
        return LinkFigures(
            latency_s=float(self.latency_s[row]), bandwidth_bytes_per_s=float(self.bandwidth_bytes_per_s[row])
        )

    def slower(self, more_s: float) -> "NodeWays":
        """Return the same with more latency."""
        return replace(self, latency_s=self.latency_s + more_s)


def usable_links(
    ways: NodeWays, kept: frozenset[str], *, batch: int, hidden_size: int
) -> tuple[NodeLinks | None, list[tuple[str, str, LinkFigures]]]:
    """Return what the ways between these devices cost, and those that are no use, sorted by their devices.

    The costs are what `link_cost` counts of each. Nothing in place of no costs at all.
    """
    pairs, rows = ways.pairs.only(kept)
    latency_s, bandwidth = ways.latency_s[rows], ways.bandwidth_bytes_per_s[rows]
    is_usable = np.isfinite(bandwidth) & (bandwidth > 0) & np.isfinite(latency_s) & (latency_s >= 0)
    if not is_usable.all():
        lost: list[int] = np.flatnonzero(~is_usable).tolist()
        told = sorted((one, other, row) for row, one, other in pairs.device_pairs(lost))
        useless = [(one, other, ways.figures(int(rows[row]))) for one, other, row in told]
        pairs, latency_s, bandwidth = pairs.at(is_usable), latency_s[is_usable], bandwidth[is_usable]
    else:
        useless = []
    if not latency_s.size:
        return None, useless
    with np.errstate(over="ignore"):
        forward_s = latency_s + VALUE_BYTES * batch * hidden_size / bandwidth
        back_s = latency_s + TOKEN_BYTES * batch / bandwidth
        return NodeLinks(pairs, _ns(forward_s), _ns(back_s)), useless


def _ns(seconds: Floats) -> Integers:
    """Round to nanoseconds, and cut off what is absurdly slow, so that it stays a number."""
    return np.rint(np.clip(seconds * _NS_PER_S, 0.0, float(TIME_NS_MAX))).astype(np.int64)
