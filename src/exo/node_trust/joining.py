"""Asking another cluster to take this node in, with the token that `exo join` left."""

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import anyio
import anyio.to_thread
from loguru import logger

from exo.api.access_join import PendingJoin, read_pending_join, reason_not_to_join, remove_pending_join
from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.introduced import IntroducedPeers
from exo.cluster.errors import DialError
from exo.cluster.trust.enrolment_client import EnrolProgress, enrol
from exo.cluster.trust.errors import EnrolmentError, TokenError, WrongAuthorityError
from exo.cluster.trust.key_store import KeyStore
from exo.cluster.trust.messages import EnrolRequest
from exo.cluster.trust.token import PlainToken, parse_token
from exo.node_trust.certificate import OwnCertificate
from exo.shared.errors import ConfigurationError, ExoError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

RETRY_S = 5.0
_UNDECIDED = ("failed", "malformed", "bad_certificate")
"""The node that was asked could not decide: another one can, or this one later."""


class Joining:
    """See the module.

    Args:
        home: The data directory.
        node_id: This node.
        store: Its keys.
        own: Its certificate.
        introduced: Told where the cluster is that takes this node in.
        is_local: Says of a host whether it is this one.
    """

    def __init__(
        self,
        home: Path,
        node_id: NodeId,
        store: KeyStore,
        own: OwnCertificate,
        introduced: IntroducedPeers,
        is_local: Callable[[str], bool],
    ) -> None:
        self._home = home
        self._node_id = node_id
        self._store = store
        self._own = own
        self._introduced = introduced
        self._is_local = is_local
        self._wanted = anyio.Event()
        self._told: set[str] = set()

    def wanted(self) -> None:
        """A token waits in the data directory: use it."""
        self._wanted.set()

    async def run(self, coordinator: Coordinator, namespace: str, name: str) -> None:
        """Use each token, until cancelled."""
        while True:
            pending = await self._read()
            if pending is not None and await self._join(coordinator, pending, namespace, name):
                await anyio.to_thread.run_sync(remove_pending_join, self._home)
                self._told.clear()
                pending = None
            with anyio.move_on_after(RETRY_S if pending is not None else None):
                await self._wanted.wait()
                self._told.clear()
            self._wanted = anyio.Event()

    async def _read(self) -> PendingJoin | None:
        try:
            return await anyio.to_thread.run_sync(read_pending_join, self._home)
        except ConfigurationError as error:
            self._tell(error.message)
            return None

    async def _join(self, coordinator: Coordinator, pending: PendingJoin, namespace: str, name: str) -> bool:
        """Use a token at every address that may be of its cluster; say whether the token is of no more use."""
        try:
            token = parse_token(pending.token)
            addresses = self._addresses(coordinator, pending)
        except (TokenError, ValueError) as error:
            logger.warning("the join token that was left for this node cannot be used: {}", error)
            return True
        has_master = coordinator.leadership.master_node_id is not None
        reason = reason_not_to_join(coordinator.state, token.authority_hash, has_master=has_master)
        if reason is not None:
            logger.warning("{}", reason)
            return True
        if not addresses:
            self._tell("no node of the cluster is seen; name one with exo join TOKEN --address HOST:PORT")
        request = EnrolRequest(
            node_id=self._node_id,
            name=name,
            platform=f"{platform.system().lower()}-{platform.machine().lower()}",
            exo_version=version("exo"),
            csr=await anyio.to_thread.run_sync(self._store.create_request, self._node_id),
            namespace=namespace,
        )
        for address in addresses:
            is_decided = await self._ask(address, request, token, is_named=pending.address is not None)
            if is_decided:
                return True
        return False

    async def _ask(
        self, address: HostPort, request: EnrolRequest, token: PlainToken, *, is_named: bool
    ) -> bool:
        """Ask one node of the cluster; say whether there is a decision."""
        try:
            given = await enrol(
                address, request=request, token=token, known_authority=None, on_progress=self._tell_progress
            )
            await self._own.keep(given.certificate_pem, given.authority_pem)
        except WrongAuthorityError as error:
            # Of several nodes in the neighbourhood one may be of the right cluster.
            self._tell(f"joining through {address} failed: {error.message}")
            return is_named
        except EnrolmentError as error:
            self._tell(f"joining through {address} failed: {error.message}")
            return error.code not in _UNDECIDED
        except (DialError, ExoError) as error:
            self._tell(f"joining through {address} failed: {error.message}")
            return False
        logger.success("this node may join the cluster {} now", given.cluster_id)
        self._introduced.introduce(address)
        return True

    def _addresses(self, coordinator: Coordinator, pending: PendingJoin) -> list[HostPort]:
        if pending.address is not None:
            return [HostPort.parse(pending.address)]
        seen = (
            peer.address for peer in coordinator.peers_seen if peer.status in ("other_secret", "unreachable")
        )
        return [
            address
            for address in dict.fromkeys(seen)
            if address is not None and not self._is_local(address.host)
        ]

    def _tell_progress(self, progress: EnrolProgress) -> None:
        if progress.text not in self._told:
            self._told.add(progress.text)
            logger.info("{}", progress.text)

    def _tell(self, text: str) -> None:
        """Warn once of what may come again every few seconds."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("{}", text)
