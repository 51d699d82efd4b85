"""Asking another cluster to take this node in, with the token that `exo join` left."""

from pathlib import Path

import anyio
import anyio.to_thread
from loguru import logger

from exo.api.access_join import PendingJoin, read_pending_join, remove_pending_join
from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.introduced import IntroducedPeers
from exo.cluster.errors import DialError
from exo.cluster.transport.addresses import is_loopback
from exo.cluster.trust.enrolment_client import EnrolProgress, enrol
from exo.cluster.trust.errors import EnrolmentError
from exo.cluster.trust.key_store import KeyStore
from exo.cluster.trust.messages import EnrolRequest
from exo.cluster.trust.token import parse_token
from exo.node_trust.certificate import OwnCertificate
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

RETRY_S = 5.0


class Joining:
    """See the module.

    Args:
        home: The data directory.
        node_id: This node.
        store: Its keys.
        own: Its certificate.
        introduced: Told where the cluster is that takes this node in.
    """

    def __init__(
        self, home: Path, node_id: NodeId, store: KeyStore, own: OwnCertificate, introduced: IntroducedPeers
    ) -> None:
        self._home = home
        self._node_id = node_id
        self._store = store
        self._own = own
        self._introduced = introduced
        self._wanted = anyio.Event()

    def wanted(self) -> None:
        """A token waits in the data directory: use it."""
        self._wanted.set()

    async def run(self, coordinator: Coordinator, namespace: str, name: str) -> None:
        """Use each token, until cancelled."""
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
                await self._wanted.wait()
            self._wanted = anyio.Event()

    async def _join_once(
        self, coordinator: Coordinator, pending: PendingJoin, namespace: str, name: str
    ) -> bool:
        """Use a token at every address that may be of its cluster; say whether the token is of no more use."""
        token = parse_token(pending.token)
        identity = self._own.identity
        is_same = identity is not None and identity.authority_hash == token.authority_hash
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
            csr=await anyio.to_thread.run_sync(self._store.create_request, self._node_id),
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
            await self._own.keep(given.certificate_pem, given.authority_pem)
            logger.success("this node may join the cluster {} now", given.cluster_id)
            self._introduced.introduce(address)
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
