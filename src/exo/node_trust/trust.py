"""What this node shows to others and whom it shuts out, kept up to date for as long as it runs."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.addresses import own_hosts
from exo.cluster.discovery.interfaces import read_interfaces
from exo.cluster.discovery.introduced import IntroducedPeers
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.base import Listener
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.trust.authority import Authority
from exo.cluster.trust.identity import TlsIdentity
from exo.cluster.trust.key_store import KeyStore
from exo.dataplane.client import GenerationClient
from exo.dataplane.identity import DataIdentity
from exo.node_trust.authority import Heirloom
from exo.node_trust.certificate import OwnCertificate
from exo.node_trust.joining import Joining
from exo.shared.addresses import ANY_HOSTS
from exo.shared.errors import ConfigurationError, ExoError
from exo.shared.types.access import Access
from exo.shared.types.commands import Refusal
from exo.shared.types.events import NodeJoined
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State
from exo.worker.loop import Worker

RETRY_S = 5.0
PARTING_S = 0.2
"""How long a node that was removed may go on to listen."""


class NodeTrust:
    """See the module.

    Args:
        home: The data directory.
        node_id: This node.
        transport: Shows the certificate.
        cluster_host: Where to listen for other nodes; None: on all addresses once there is a certificate.
        advertise_host: The address that others are told; None: the host's first one.
        now: The time, aware of its zone.
    """

    def __init__(
        self,
        home: Path,
        node_id: NodeId,
        transport: TcpTransport,
        *,
        cluster_host: str | None,
        advertise_host: str | None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._node_id = node_id
        self._transport = transport
        self._cluster_host = cluster_host
        self._advertise_host = advertise_host
        self._client: GenerationClient | None = None
        self._worker: Worker | None = None
        self._heirloom: Heirloom | None = None
        self.store = KeyStore(home)
        self.introduced = IntroducedPeers()
        self.own = OwnCertificate(self.store, node_id, self._show, now)
        self._joining = Joining(home, node_id, self.store, self.own, self.introduced, transport.is_local)

    def attach(self, client: GenerationClient, worker: Worker | None) -> None:
        """Keep the data plane up to date as well."""
        self._client, self._worker = client, worker
        client.set_identity(self.data_identity())
        if worker is not None:
            worker.set_identity(self.data_identity())
            worker.set_data_host(self.listen_host(), advertised_host=self.advertised_host())

    @property
    def identity(self) -> TlsIdentity | None:
        """What this node shows."""
        return self.own.identity

    def data_identity(self) -> DataIdentity | None:
        """Return the certificate in the form in which stage processes get it."""
        return data_identity(self.identity)

    # --- what others ask ----------------------------------------------------------------------------------------

    def beacon_keys(self, host_secret: bytes) -> list[bytes]:
        """Return the keys under which this node's beacons are made and read: its cluster's, and its host's."""
        return beacon_keys(self.identity, host_secret)

    def join_wanted(self) -> None:
        """A token waits in the data directory: use it."""
        self._joining.wanted()

    def listen_host(self) -> str:
        """Return where to listen for other nodes."""
        if self._cluster_host is not None:
            return self._cluster_host
        return "127.0.0.1" if self.identity is None else "0.0.0.0"

    def advertised(self, address: HostPort) -> HostPort:
        """Return the address that others are told for one at which this node listens."""
        if self._advertise_host is not None:
            return HostPort(self._advertise_host, address.port)
        if address.host not in ANY_HOSTS:
            return address
        return HostPort(self.advertised_host() or "127.0.0.1", address.port)

    def advertised_host(self) -> str | None:
        """Return the host that others are told; None: it can be reached from itself only."""
        if self._advertise_host is not None or self.identity is None:
            return self._advertise_host
        if self.listen_host() not in ANY_HOSTS:
            return self.listen_host()
        hosts = own_hosts(read_interfaces())
        return hosts[0] if hosts else None

    def share_with(self, coordinator: Coordinator) -> Callable[[Authority], None]:
        """Have the authority's key passed on to whoever may lead next, and keep what a master passes on.

        Returns what to call when this node has made the key.
        """
        if not isinstance(coordinator, EmbeddedCoordinator):
            return lambda authority: None
        self._heirloom = Heirloom(self.store, coordinator)
        return self._heirloom.share

    # --- running ------------------------------------------------------------------------------------------------

    async def run(self, coordinator: Coordinator, listener: Listener, namespace: str, name: str) -> None:
        """Follow what the cluster decides, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._shut_out, coordinator)
            if isinstance(coordinator, EmbeddedCoordinator):
                tasks.start_soon(self._leave_behind, coordinator)
            tasks.start_soon(self._follow, coordinator, listener)
            tasks.start_soon(self.own.run, coordinator)
            tasks.start_soon(self._joining.run, coordinator, namespace, name)
            if self._heirloom is not None:
                tasks.start_soon(self._heirloom.run)

    async def _shut_out(self, coordinator: Coordinator) -> None:
        """Let in no more whom the cluster has removed. Apart from everything that may have to wait for a master."""
        seen: Access | None = None
        async for state in coordinator.changes():
            access = state.access
            if access is seen:
                continue
            if access.removed != (seen.removed if seen is not None else {}):
                # Who was removed is to hear of it: by then it has no say any more.
                await anyio.sleep(PARTING_S)
            seen = access
            node_ids, serials = frozenset(access.removed), frozenset(access.revoked)
            for part in (self._transport, self._client, self._worker):
                if part is not None:
                    part.set_revoked(node_ids=node_ids, serials=serials)

    async def _leave_behind(self, coordinator: EmbeddedCoordinator) -> None:
        """Keep nothing of a cluster that this node was removed from, neither its certificate nor its key."""
        removal = None
        async for _ in coordinator.changes():
            before, removal = removal, coordinator.removed_from
            if removal is None or removal is before or self.identity is None:
                continue
            if self.identity.authority_pem == removal.authority_pem:
                await self.own.forget()
                if self._heirloom is not None:
                    self._heirloom.forget()

    async def _follow(self, coordinator: Coordinator, listener: Listener) -> None:
        """Get a certificate where the cluster has an authority, then listen for others and tell them where."""
        async for _ in coordinator.changes():
            while True:
                if await self._settle(coordinator, coordinator.state, listener):
                    break
                await anyio.sleep(RETRY_S / 5)

    async def _settle(self, coordinator: Coordinator, state: State, listener: Listener) -> bool:
        """Do what is to be done on this state; False: something has to be tried again."""
        node = state.nodes.get(self._node_id)
        if state.access.authority_pem is None or node is None:
            return True
        if self.identity is None or self.identity.authority_pem != state.access.authority_pem:
            reply = await self.own.ask(coordinator, "host_secret")
            if isinstance(reply, Refusal):
                logger.warning("the cluster gives this node no certificate: {}", reply.message)
                # What speaks against it may change with the next decision; that somebody is not ready, by itself.
                return reply.status != 503
            return reply is not None
        if listener.address.host != self.listen_host() and not await self._widen(listener):
            return False
        wanted = msgspec.structs.replace(
            node.identity,
            cluster_address=self.advertised(listener.address),
            data_address=self._client.address if self._client is not None else node.identity.data_address,
        )
        return wanted == node.identity or await self._tell_addresses(coordinator, wanted)

    async def _widen(self, listener: Listener) -> bool:
        host, advertised_host = self.listen_host(), self.advertised_host()
        try:
            if self._client is not None:
                await self._client.widen(host, advertised_host=advertised_host)
            if self._worker is not None:
                self._worker.set_data_host(host, advertised_host=advertised_host)
            await listener.widen(host)
        except ConfigurationError as error:
            logger.warning("{}", error.message)
            await anyio.sleep(RETRY_S)
            return False
        return True

    async def _tell_addresses(self, coordinator: Coordinator, identity: NodeIdentity) -> bool:
        try:
            await coordinator.propose(
                [NodeJoined(identity=identity)], cause_id=f"address-{identity.cluster_address}"
            )
        except ExoError as error:
            logger.debug("the addresses are not told yet: {}", error.message)
            return False
        logger.info("other hosts reach this node at {}", identity.cluster_address)
        return True

    def _show(self, identity: TlsIdentity | None) -> None:
        self._transport.set_identity(identity)
        shown = data_identity(identity)
        for part in (self._client, self._worker):
            if part is not None:
                part.set_identity(shown)


def data_identity(identity: TlsIdentity | None) -> DataIdentity | None:
    """Return a certificate in the form in which stage processes get it."""
    if identity is None:
        return None
    return DataIdentity(
        certificate_file=str(identity.certificate_file),
        key_file=str(identity.key_file),
        authority_pem=identity.authority_pem,
    )


def beacon_keys(identity: TlsIdentity | None, host_secret: bytes) -> list[bytes]:
    """Return the keys of beacons that a node with this certificate makes and reads.

    The cluster's is made of the authority's certificate, which anybody may see: a beacon is a hint, and TLS decides.
    """
    if identity is None:
        return [host_secret]
    return [hashlib.sha256(b"exo beacon" + identity.authority_der).digest(), host_secret]
