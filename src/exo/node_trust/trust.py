"""A node's certificate through its life: asked for, renewed, shown, and followed by opening the network."""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec
from loguru import logger

from exo.api.access_join import PendingJoin, read_pending_join, remove_pending_join
from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.addresses import own_hosts
from exo.cluster.discovery.interfaces import read_interfaces
from exo.cluster.discovery.introduced import IntroducedPeers
from exo.cluster.errors import DialError
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.addresses import is_loopback
from exo.cluster.transport.base import Listener
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.trust.authority import Authority, request_fingerprint
from exo.cluster.trust.certificates import renewal_due
from exo.cluster.trust.enrolment_client import EnrolProgress, enrol
from exo.cluster.trust.errors import EnrolmentError
from exo.cluster.trust.identity import TlsIdentity
from exo.cluster.trust.key_store import KeyStore
from exo.cluster.trust.messages import EnrolRequest
from exo.cluster.trust.token import parse_token
from exo.dataplane.client import GenerationClient
from exo.dataplane.identity import DataIdentity
from exo.node_trust.authority import Heirloom
from exo.shared.errors import ConfigurationError, ExoError
from exo.shared.types.commands import Enrolled, EnrolNode, Refusal
from exo.shared.types.events import NodeJoined
from exo.shared.types.ids import CommandId, NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.worker.loop import Worker

EVERYWHERE = ("0.0.0.0", "::")
RETRY_S = 5.0
RENEWAL_CHECK_S = 3600.0
COMMAND_TIMEOUT_S = 15.0


class NodeTrust:
    """Keeps what this node shows to others up to date, for as long as it runs.

    Args:
        home: The data directory.
        node_id: This node.
        transport: Shows the certificate.
        cluster_host: Where to listen for other nodes; None: on all addresses once there is a certificate.
        advertise_host: The address that others are told; None: the host's first one.
    """

    def __init__(
        self,
        home: Path,
        node_id: NodeId,
        transport: TcpTransport,
        *,
        cluster_host: str | None,
        advertise_host: str | None,
    ) -> None:
        self._home = home
        self._node_id = node_id
        self._transport = transport
        self._cluster_host = cluster_host
        self._advertise_host = advertise_host
        self._client: GenerationClient | None = None
        self._worker: Worker | None = None
        self._join_wanted = asyncio.Event()
        self._heirloom: Heirloom | None = None
        self.store = KeyStore(home)
        self.identity: TlsIdentity | None = None
        self.introduced = IntroducedPeers()
        self._show(self.store.load_identity(node_id))

    def attach(self, client: GenerationClient, worker: Worker | None) -> None:
        """Keep the data plane up to date as well."""
        self._client, self._worker = client, worker
        client.set_identity(self.data_identity())
        if worker is not None:
            worker.set_identity(self.data_identity())
            worker.set_data_host(self.listen_host(), advertised_host=self.advertised_host())

    def data_identity(self) -> DataIdentity | None:
        """Return the certificate in the form in which stage processes get it."""
        if self.identity is None:
            return None
        return DataIdentity(
            certificate_file=str(self.identity.certificate_file),
            key_file=str(self.identity.key_file),
            authority_pem=self.identity.authority_pem,
        )

    # --- what others ask ----------------------------------------------------------------------------------------

    def beacon_keys(self, host_secret: bytes) -> list[bytes]:
        """Return the keys under which this node's beacons are made and read: its cluster's, and its host's.

        The cluster's is made of the authority's certificate, which anybody may see: a beacon is a hint, and TLS
        decides.
        """
        if self.identity is None:
            return [host_secret]
        return [hashlib.sha256(b"exo beacon" + self.identity.authority_der).digest(), host_secret]

    def join_wanted(self) -> None:
        """A token waits in the data directory: use it."""
        self._join_wanted.set()

    def listen_host(self) -> str:
        """Return where to listen for other nodes."""
        if self._cluster_host is not None:
            return self._cluster_host
        return "127.0.0.1" if self.identity is None else "0.0.0.0"

    def advertised(self, address: HostPort) -> HostPort:
        """Return the address that others are told for one at which this node listens."""
        if self._advertise_host is not None:
            return HostPort(self._advertise_host, address.port)
        if address.host not in EVERYWHERE:
            return address
        return HostPort(self.advertised_host() or "127.0.0.1", address.port)

    def advertised_host(self) -> str | None:
        """Return the host that others are told; None: it can be reached from itself only."""
        if self._advertise_host is not None or self.identity is None:
            return self._advertise_host
        if self.listen_host() not in EVERYWHERE:
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
            tasks.start_soon(self._follow, coordinator, listener)
            tasks.start_soon(self._renew, coordinator)
            tasks.start_soon(self._join, coordinator, namespace, name)
            if self._heirloom is not None:
                tasks.start_soon(self._heirloom.run)

    async def _follow(self, coordinator: Coordinator, listener: Listener) -> None:
        seen = None
        async for state in coordinator.changes():
            access = state.access
            if access is not seen:
                seen = access
                self._set_revoked(frozenset(access.removed), frozenset(access.revoked))
            node = state.nodes.get(self._node_id)
            if access.authority_pem is None or node is None:
                continue
            if self.identity is None or self.identity.authority_pem != access.authority_pem:
                if not await self._ask(coordinator, "host_secret"):
                    await anyio.sleep(RETRY_S / 5)
                continue
            wanted = msgspec.structs.replace(
                node.identity,
                cluster_address=self.advertised(listener.address),
                data_address=self._client.address if self._client is not None else node.identity.data_address,
            )
            if listener.address.host != self.listen_host():
                await self._widen(listener)
            elif wanted != node.identity:
                await self._tell_addresses(coordinator, wanted)

    def _set_revoked(self, node_ids: frozenset[NodeId], serials: frozenset[str]) -> None:
        self._transport.set_revoked(node_ids=node_ids, serials=serials)
        for part in (self._client, self._worker):
            if part is not None:
                part.set_revoked(node_ids=node_ids, serials=serials)

    async def _widen(self, listener: Listener) -> None:
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

    async def _tell_addresses(self, coordinator: Coordinator, identity: NodeIdentity) -> None:
        try:
            await coordinator.propose(
                [NodeJoined(identity=identity)], cause_id=f"address-{identity.cluster_address}"
            )
            logger.info("other hosts reach this node at {}", identity.cluster_address)
        except ExoError as error:
            logger.debug("the addresses are not told yet: {}", error.message)
            await anyio.sleep(RETRY_S / 5)

    async def _ask(self, coordinator: Coordinator, proof: str) -> bool:
        """Ask the master for a certificate; what speaks for this node is the connection that the request takes."""
        request_der = await anyio.to_thread.run_sync(self.store.create_request, self._node_id)
        node = coordinator.state.nodes.get(self._node_id)
        command = EnrolNode(
            command_id=CommandId(uuid4().hex),
            node_id=self._node_id,
            name=node.identity.name if node is not None else "",
            request_der=request_der,
            fingerprint=request_fingerprint(request_der, self._node_id),
            address=str(node.identity.cluster_address) if node is not None else "",
            proof="certificate" if proof == "certificate" else "host_secret",
            is_proven=True,
        )
        try:
            reply = await coordinator.send(command, timeout_s=COMMAND_TIMEOUT_S)
        except ExoError as error:
            logger.debug("no certificate yet: {}", error.message)
            return False
        if isinstance(reply, Enrolled):
            await self._keep(reply.certificate_pem, reply.authority_pem)
            return True
        if isinstance(reply, Refusal):
            logger.warning("the cluster gives this node no certificate: {}", reply.message)
        return False

    async def _keep(self, certificate_pem: str, authority_pem: str) -> None:
        def keep() -> TlsIdentity | None:
            self.store.save_membership(certificate_pem=certificate_pem, authority_pem=authority_pem)
            return self.store.load_identity(self._node_id)

        self._show(await anyio.to_thread.run_sync(keep))

    def _show(self, identity: TlsIdentity | None) -> None:
        self.identity = identity
        self._transport.set_identity(identity)
        if self._client is not None:
            self._client.set_identity(self.data_identity())
        if self._worker is not None:
            self._worker.set_identity(self.data_identity())

    async def _renew(self, coordinator: Coordinator) -> None:
        while True:
            if self.identity is not None and renewal_due(self.identity.certificate, datetime.now(UTC)):
                logger.info("this node's certificate is due to be renewed")
                await self._ask(coordinator, "certificate")
            await anyio.sleep(RENEWAL_CHECK_S)

    # --- joining another cluster --------------------------------------------------------------------------------

    async def _join(self, coordinator: Coordinator, namespace: str, name: str) -> None:
        while True:
            try:
                pending = await anyio.to_thread.run_sync(read_pending_join, self._home)
            except ConfigurationError as error:
                logger.warning("{}", error.message)
                pending = None
            if pending is not None and await self._join_once(coordinator, pending, namespace, name):
                await anyio.to_thread.run_sync(remove_pending_join, self._home)
                pending = None
            with anyio.move_on_after(RETRY_S if pending is not None else None):
                await self._join_wanted.wait()
            self._join_wanted.clear()

    async def _join_once(
        self, coordinator: Coordinator, pending: PendingJoin, namespace: str, name: str
    ) -> bool:
        """Use a token at every address that may be of its cluster; say whether the token is of no more use."""
        token = parse_token(pending.token)
        is_same = self.identity is not None and self.identity.authority_hash == token.authority_hash
        if is_same and coordinator.leadership.master_node_id is not None:
            logger.info("this node is a member of that cluster already")
            return True
        addresses = _addresses(coordinator, pending)
        if not addresses:
            logger.warning("no node of the cluster is seen; name one with exo join TOKEN --address HOST:PORT")
        request = EnrolRequest(
            node_id=self._node_id,
            name=name,
            platform="",
            exo_version="",
            csr=await anyio.to_thread.run_sync(self.store.create_request, self._node_id),
            namespace=namespace,
        )
        for address in addresses:
            try:
                given = await enrol(
                    address, request=request, token=token, known_authority=None, on_progress=_tell
                )
            except EnrolmentError as error:
                logger.error("joining through {} failed: {}", address, error.message)
                return True
            except DialError as error:
                logger.warning("joining through {} failed: {}", address, error.message)
                continue
            await self._keep(given.certificate_pem, given.authority_pem)
            logger.success("this node may join the cluster {} now", given.cluster_id)
            self.introduced.introduce(address)
            return True
        return False


def _addresses(coordinator: Coordinator, pending: PendingJoin) -> list[HostPort]:
    if pending.address is not None:
        return [HostPort.parse(pending.address)]
    seen = (peer.address for peer in coordinator.peers_seen if peer.status in ("other_secret", "unreachable"))
    return [
        address for address in dict.fromkeys(seen) if address is not None and not is_loopback(address.host)
    ]


def _tell(progress: EnrolProgress) -> None:
    logger.info("{}", progress.text)
