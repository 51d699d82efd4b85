"""The authority's key on a node that may lead: made, signed with, and handed on to whoever may lead next."""

from collections.abc import Callable
from datetime import UTC, datetime

import anyio.to_thread
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.trust.authority import Authority, create_authority, issue_certificate
from exo.cluster.trust.certificates import read_node_certificate, to_der
from exo.cluster.trust.key_store import KeyStore
from exo.cluster.wire import KeepAuthority
from exo.master.authority import Issued
from exo.master.errors import AuthorityUnavailableError
from exo.shared.errors import ExoError
from exo.shared.types.ids import NodeId


class NodeAuthority:
    """The master's side: signs with the key that lies in this node's key store.

    Args:
        store: This node's keys.
        coordinator: Says which cluster this is.
        share: Called when this node has the key, so that whoever may lead next gets it too.
        now: The time, aware of its zone.
    """

    def __init__(
        self,
        store: KeyStore,
        coordinator: Coordinator,
        share: Callable[[Authority], None],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._coordinator = coordinator
        self._share = share
        self._now = now

    async def create(self) -> str:
        """See master.authority.Authority."""
        authority = await anyio.to_thread.run_sync(self._load_or_make)
        # On the event loop: it wakes those who follow this node.
        self._share(authority)
        return authority.certificate_pem

    def _load_or_make(self) -> Authority:
        found = self._store.load_authority()
        if found is None:
            cluster_id = self._coordinator.state.cluster_id
            if cluster_id is None:
                raise AuthorityUnavailableError("this node is in no cluster yet; try again")
            found = create_authority(cluster_id, now=self._now())
            self._store.save_authority(found)
        return found

    async def issue(self, request_der: bytes, node_id: NodeId) -> Issued:
        """See master.authority.Authority."""
        return await anyio.to_thread.run_sync(self._issue, request_der, node_id)

    def _issue(self, request_der: bytes, node_id: NodeId) -> Issued:
        authority = self._store.load_authority()
        if authority is None or authority.certificate_pem != self._coordinator.state.access.authority_pem:
            raise AuthorityUnavailableError(
                "the node that leads does not have the key of the cluster's authority yet; try again in a moment"
            )
        certificate_pem = issue_certificate(authority, request_der, node_id, now=self._now())
        certificate = read_node_certificate(to_der(certificate_pem))
        return Issued(
            certificate_pem=certificate_pem,
            serial=certificate.serial,
            not_after_s=certificate.valid_until.timestamp(),
        )


class Heirloom:
    """The key on its way: passed on while this node leads, kept when a master passes it on.

    Args:
        store: This node's keys.
        coordinator: Carries the key, over connections that are this host's own or mutual TLS.
    """

    def __init__(self, store: KeyStore, coordinator: EmbeddedCoordinator) -> None:
        self._store = store
        self._coordinator = coordinator
        self._received: KeepAuthority | None = None
        coordinator.share_authority(None, self._receive)
        found = store.load_authority()
        if found is not None:
            self.share(found)

    def share(self, authority: Authority) -> None:
        """This node has the key: pass it on while it leads the cluster that the key belongs to."""
        message = KeepAuthority(certificate_pem=authority.certificate_pem, key_pem=authority.key_pem)
        self._coordinator.share_authority(message, self._receive)

    def forget(self) -> None:
        """This node does not belong to the key's cluster any more."""
        self._received = None
        self._coordinator.share_authority(None, self._receive)

    def _receive(self, message: KeepAuthority) -> None:
        self._received = message

    async def run(self) -> None:
        """Keep what a master passes on, until cancelled.

        It may come before the decision that says which authority is the cluster's: then it waits for that.
        """
        async for state in self._coordinator.changes():
            message = self._received
            if message is None or message.certificate_pem != state.access.authority_pem:
                continue
            self._received = None
            authority = Authority(certificate_pem=message.certificate_pem, key_pem=message.key_pem)
            try:
                await anyio.to_thread.run_sync(self._keep, authority)
            except ExoError as error:
                logger.warning("cannot keep the authority's key: {}", error.message)
                continue
            self.share(authority)

    def _keep(self, authority: Authority) -> None:
        authority.require_pair()
        if self._store.load_authority() != authority:
            self._store.save_authority(authority)
