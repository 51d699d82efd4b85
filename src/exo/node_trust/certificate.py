"""This node's certificate through its life: asked for, checked, kept, renewed, and given up."""

from collections.abc import Callable
from datetime import datetime
from typing import Literal
from uuid import uuid4

import anyio
import anyio.to_thread
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.cluster.trust.authority import issue_certificate, request_fingerprint
from exo.cluster.trust.certificates import renewal_due
from exo.cluster.trust.identity import TlsIdentity
from exo.cluster.trust.key_store import KeyStore
from exo.shared.errors import ExoError
from exo.shared.types.commands import Enrolled, EnrolNode, Refusal, Reply
from exo.shared.types.ids import CommandId, NodeId

CHECK_S = 300.0
"""How often it is looked whether the certificate is due. A machine that was suspended looks soon after it wakes."""
COMMAND_TIMEOUT_S = 15.0
_NO_CERTIFICATE_HELPS = ("certificate_wrong", "certificate_over")
"""The way to the master is this host's own, or the certificate has run out: something else has to speak for it."""


class OwnCertificate:
    """What this node shows to others.

    Args:
        store: This node's keys.
        node_id: This node.
        show: Called with each identity that is shown from then on, also with the first one, and with None.
        now: The time, aware of its zone.
    """

    def __init__(
        self,
        store: KeyStore,
        node_id: NodeId,
        show: Callable[[TlsIdentity | None], None],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._show = show
        self._now = now
        self._is_expiry_told = False
        self.identity: TlsIdentity | None = store.load_identity(node_id)
        show(self.identity)

    @property
    def has_expired(self) -> bool:
        """There is a certificate, and it is of no use any more."""
        return self.identity is not None and self._now() > self.identity.certificate.valid_until

    async def ask(
        self, coordinator: Coordinator, proof: Literal["certificate", "host_secret"]
    ) -> Reply | None:
        """Ask the master for a certificate and keep it; what speaks for this node is the way that the request takes.

        Returns the master's answer, or None where there was none.
        """
        request_der = await anyio.to_thread.run_sync(self._store.create_request, self._node_id)
        node = coordinator.state.nodes.get(self._node_id)
        command = EnrolNode(
            command_id=CommandId(uuid4().hex),
            node_id=self._node_id,
            name=node.identity.name if node is not None else "",
            request_der=request_der,
            fingerprint=request_fingerprint(request_der, self._node_id),
            address=str(node.identity.cluster_address) if node is not None else "",
            proof=proof,
            is_proven=True,
        )
        try:
            reply = await coordinator.send(command, timeout_s=COMMAND_TIMEOUT_S)
            if isinstance(reply, Enrolled):
                await self.keep(reply.certificate_pem, reply.authority_pem)
        except ExoError as error:
            logger.debug("no certificate yet: {}", error.message)
            return None
        return reply

    async def keep(self, certificate_pem: str, authority_pem: str) -> None:
        """Keep a certificate that a cluster gave, and show it from now on.

        Raises:
            CertificateError: It is for another node or key, or from another authority; the one before stays.
            ConfigurationError: It cannot be kept.
        """
        await anyio.to_thread.run_sync(self._save, certificate_pem, authority_pem)
        self.identity = await anyio.to_thread.run_sync(self._store.load_identity, self._node_id)
        self._show(self.identity)

    def _save(self, certificate_pem: str, authority_pem: str) -> None:
        self._store.require_own(self._node_id, certificate_pem=certificate_pem, authority_pem=authority_pem)
        self._store.save_membership(certificate_pem=certificate_pem, authority_pem=authority_pem)

    async def forget(self) -> None:
        """Be a member of no cluster that spans a network any more; the node's own key stays."""
        self.identity = None
        self._show(None)
        await anyio.to_thread.run_sync(self._store.forget_membership)

    # --- renewal ------------------------------------------------------------------------------------------------

    async def run(self, coordinator: Coordinator) -> None:
        """Have the certificate renewed in time, until cancelled."""
        while True:
            await self.renew(coordinator)
            await anyio.sleep(CHECK_S)

    async def renew(self, coordinator: Coordinator) -> None:
        """Have the certificate renewed if that is due."""
        identity = self.identity
        if identity is None or not renewal_due(identity.certificate, self._now()):
            return
        reply = None
        if coordinator.leadership.master_node_id is not None:
            reply = await self.ask(coordinator, "certificate")
            if isinstance(reply, Refusal) and reply.code in _NO_CERTIFICATE_HELPS:
                reply = await self.ask(coordinator, "host_secret")
        elif self.has_expired:
            await self._sign_own(identity)
        if isinstance(reply, Enrolled):
            logger.info("this node's certificate was renewed")
        elif isinstance(reply, Refusal):
            logger.warning("this node's certificate is not renewed: {}", reply.message)
        elif self.has_expired and not self._is_expiry_told:
            self._is_expiry_told = True
            logger.warning(
                "this node's certificate ran out on {:%Y-%m-%d} and no master is there to renew it; "
                "to let it in again: exo token create on a node of the cluster, then here: exo join TOKEN",
                identity.certificate.valid_until,
            )

    async def _sign_own(self, identity: TlsIdentity) -> None:
        """Sign a certificate for this node where it has the authority's key.

        When all nodes were away for so long that every certificate ran out, the voters could not reach each other to
        elect somebody who renews them. Whoever may lead may sign; a node that was removed is refused by its id.
        """
        try:
            authority = await anyio.to_thread.run_sync(self._store.load_authority)
            if authority is None or authority.certificate_pem != identity.authority_pem:
                return
            request_der = await anyio.to_thread.run_sync(self._store.create_request, self._node_id)
            certificate_pem = issue_certificate(authority, request_der, self._node_id, now=self._now())
            await self.keep(certificate_pem, identity.authority_pem)
        except ExoError as error:
            logger.warning("this node's certificate has run out and cannot be renewed: {}", error.message)
            return
        logger.warning(
            "this node's certificate had run out, without a master to renew it: it signed one itself"
        )
