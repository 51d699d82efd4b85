"""How a coordinator and its parts are put together for these measurements: the one place that knows constructors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.log.base import EventLog
from exo.cluster.log.segments import SegmentLog
from exo.cluster.node_id import load_node_id
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.base import Listener, Transport
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.types.nodes import HostPort, NodeIdentity

WIRE = "plain TCP"
"""What the nodes here speak; stands beside the figures that depend on it."""
HAS_ELECTIONS = False
"""Whether another node takes over where the master is lost."""
IS_LOOPBACK_ONLY = True
"""Whether the transport refuses other addresses: then nothing can be measured in network namespaces."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one coordinator is, and where it looks for the others."""

    home: Path
    secret_file: Path
    listen: HostPort
    peers: tuple[HostPort, ...]

    def arguments(self) -> list[str]:
        """As words for the command line of `coordinator_process`."""
        return [str(self.home), str(self.secret_file), str(self.listen), *map(str, self.peers)]

    @classmethod
    def parse(cls, words: list[str]) -> Self:
        """Read `arguments()` back."""
        home, secret_file, listen, *peers = words
        return cls(
            home=Path(home),
            secret_file=Path(secret_file),
            listen=HostPort.parse(listen),
            peers=tuple(map(HostPort.parse, peers)),
        )


def make_transport(secret_file: Path) -> Transport:
    """Return one of the transports between the nodes of one user on one host."""
    return TcpTransport(load_host_secret(secret_file))


def make_log(directory: Path) -> EventLog:
    """Return the log that a node keeps."""
    return SegmentLog(directory)


async def make_coordinator(place: Place) -> EmbeddedCoordinator:
    """Return a coordinator with a disk and a listener of its own; its `run` takes part until it is cancelled."""
    transport = make_transport(place.secret_file)
    listener = await transport.listen(place.listen)
    return EmbeddedCoordinator(
        identity=_identity(place, listener),
        namespace="benchmark",
        log=make_log(place.home / "log"),
        transport=transport,
        listener=listener,
        discoveries=[StaticDiscovery(place.peers)],
    )


def _identity(place: Place, listener: Listener) -> NodeIdentity:
    node_id = load_node_id(place.home)
    nowhere = HostPort("127.0.0.1", 1)
    return NodeIdentity(
        node_id=node_id,
        boot_id=uuid4().hex,
        name=node_id,
        host_id="benchmark",
        platform="linux",
        exo_version="0",
        cluster_address=listener.address,
        data_address=nowhere,
        api_address=nowhere,
        is_worker=False,
    )
