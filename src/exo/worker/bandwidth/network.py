"""Measures the way to another node: a few pings, then transfers that grow until they take long enough."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from exo.dataplane.probing import Transfer
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from exo.worker.bandwidth.errors import NotMeasurableError
from exo.worker.bandwidth.estimate import Estimate, Sample, TransferLimits, estimate, next_size_bytes

PING_COUNT = 7
TRANSFER_TIMEOUT_S = 20.0
"""A link that takes the smallest transfer no faster than that is of no use to anybody."""


class Stream(Protocol):
    """What is needed of `exo.dataplane.probing.ProbeStream`."""

    @property
    def own_host(self) -> str:
        """The address of this host that the way begins at."""
        ...

    @property
    def peer_host(self) -> str:
        """The address of the other host."""
        ...

    async def ping(self, *, timeout_s: float) -> float:
        """Return what a round trip takes, in seconds."""
        ...

    async def transfer(self, size_bytes: int, *, timeout_s: float) -> Transfer:
        """Send so many bytes, and return how long they took on the way."""
        ...

    async def aclose(self) -> None:
        """End it."""
        ...


OpenStream = Callable[[HostPort, NodeId], Awaitable[Stream]]


class NodeMeasured(NamedTuple):
    """The way to another node, and the addresses that it was measured between."""

    estimate: Estimate
    own_host: str
    peer_host: str


async def measure_node(
    open_stream: OpenStream, address: HostPort, node_id: NodeId, limits: TransferLimits
) -> NodeMeasured:
    """Measure the way to a node.

    Args:
        open_stream: `GenerationClient.open_probe`.
        address: Where the node takes tokens.
        node_id: Who is there.
        limits: How far to go.

    Raises:
        DataPlaneError: It cannot be reached, or does not take part now.
        NotMeasurableError: The transfers came to nothing.
    """
    stream = await open_stream(address, node_id)
    try:
        await stream.ping(
            timeout_s=TRANSFER_TIMEOUT_S
        )  # The first one pays for what is made ready on both sides.
        round_trips_s = [await stream.ping(timeout_s=TRANSFER_TIMEOUT_S) for _ in range(PING_COUNT)]
        size_bytes = limits.first_bytes
        while True:
            sample = await _transfer(stream, size_bytes)
            larger_bytes = next_size_bytes(size_bytes, sample, limits)
            if larger_bytes is None:
                break
            size_bytes = larger_bytes
        # The last one is the first of its size.
        samples = [sample, *[await _transfer(stream, size_bytes) for _ in range(limits.count - 1)]]
        found = estimate(samples, round_trips_s)
        if found is None:
            raise NotMeasurableError(f"transfers to the node {node_id} take no time that could be measured")
        return NodeMeasured(found, stream.own_host, stream.peer_host)
    finally:
        await stream.aclose()


async def _transfer(stream: Stream, size_bytes: int) -> Sample:
    taken = await stream.transfer(size_bytes, timeout_s=TRANSFER_TIMEOUT_S)
    return Sample(taken.size_bytes, taken.duration_s)
