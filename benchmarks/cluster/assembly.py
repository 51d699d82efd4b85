"""How a coordinator and its parts are put together for these measurements: the one place that knows constructors."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from uuid import uuid4

from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.log.base import EventLog
from exo.cluster.log.segments import SegmentLog
from exo.cluster.log.store import open_store
from exo.cluster.node_id import load_node_id
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.base import Listener, Transport
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.trust.authority import create_authority, issue_certificate
from exo.cluster.trust.key_store import KeyStore
from exo.shared.types.ids import ClusterId
from exo.shared.types.nodes import HostPort, NodeIdentity

WIRE = "mutual TLS"
"""What the nodes here speak; stands beside the figures that depend on it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one coordinator is, and where it looks for the others. What they share lies beside its home."""

    home: Path
    listen: HostPort
    peers: tuple[HostPort, ...]

    def arguments(self) -> list[str]:
        """As words for the command line of `coordinator_process`."""
        return [str(self.home), str(self.listen), *map(str, self.peers)]

    @classmethod
    def parse(cls, words: list[str]) -> Self:
        """Read `arguments()` back."""
        home, listen, *peers = words
        return cls(home=Path(home), listen=HostPort.parse(listen), peers=tuple(map(HostPort.parse, peers)))


def admit(home: Path) -> None:
    """Make a node's home, with a certificate of the authority that all homes in one folder have in common."""
    home.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    shared = KeyStore(home.parent / "authority")
    if shared.load_authority() is None:
        shared.save_authority(create_authority(ClusterId("benchmark"), now=now))
    authority = shared.load_authority()
    assert authority is not None
    keys, node_id = KeyStore(home), load_node_id(home)
    certificate = issue_certificate(authority, keys.create_request(node_id), node_id, now=now)
    keys.save_membership(certificate_pem=certificate, authority_pem=authority.certificate_pem)


def make_transport(home: Path) -> Transport:
    """Return the transport of a node that was admitted. It speaks TLS on loopback, too."""
    secret = load_host_secret(home.parent / "secret" / "host.secret")
    transport = TcpTransport(secret, is_local=lambda _: False)
    transport.set_identity(KeyStore(home).load_identity(load_node_id(home)))
    return transport


def make_log(directory: Path) -> EventLog:
    """Return the log that a node keeps."""
    return SegmentLog(directory)


async def make_coordinator(place: Place) -> EmbeddedCoordinator:
    """Return a coordinator with a disk and a listener of its own; its `run` takes part until it is cancelled."""
    transport = make_transport(place.home)
    listener = await transport.listen(place.listen)
    return EmbeddedCoordinator(
        identity=_identity(place, listener),
        namespace="benchmark",
        store=open_store(place.home / "log"),
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
        host_id=node_id,
        platform="linux",
        exo_version="0",
        cluster_address=listener.address,
        data_address=nowhere,
        api_address=nowhere,
        is_worker=False,
    )
