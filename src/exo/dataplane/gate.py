"""Whom this process talks to over the data plane, and how: plain within its host, TLS with node certificates beyond.

Shared by all connections of a process. Who is not let in is logged once for each host and reason.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable

import msgspec
from loguru import logger

from exo.dataplane.errors import HandshakeError
from exo.dataplane.handshake import Dialler, Listener, TlsDialler, TlsListener
from exo.dataplane.identity import DataIdentity, DataTrust, PeerCertificate
from exo.dataplane.opening import Opening, Way
from exo.dataplane.tls_pipe import TlsContexts, TlsPipe
from exo.shared.addresses import LOOPBACK, is_loopback
from exo.shared.errors import ConfigurationError
from exo.shared.handshake import NONCE_BYTES
from exo.shared.tls import TLS_FIRST_BYTE
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

STRANGERS_MAX = 64
"""Connections that have not proved anything yet; more are turned away."""
STRANGERS_PER_HOST_MAX = 16
"""Of them from one other host, so that none can take all the room."""
_LOGGED_MAX = 1024


class Gate:
    """See the module.

    Args:
        secret: The host secret.
        node_id: This process's node.
        sender: This process's name, for the peers' logs.
        is_local: Says of a host whether it is this one. Plain connections come from there only.
        random_bytes: Source of the plain handshake's nonces.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        node_id: NodeId,
        sender: str,
        is_local: Callable[[str], bool] = is_loopback,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._secret = secret
        self._node_id = node_id
        self._sender = sender
        self._random_bytes = random_bytes
        self._contexts: TlsContexts | None = None
        self._logged: set[tuple[str, str]] = set()
        self.refused_count = 0
        """Connections that were not let in, since the start."""
        self.is_local = is_local
        self.trust = DataTrust()

    def set_identity(self, identity: DataIdentity | None) -> bool:
        """Show what lies in these files now; True: the authority changed, so what is connected in TLS is void.

        Raises:
            ConfigurationError: The certificate or its key cannot be used; all stays as it was.
        """
        contexts = TlsContexts(identity) if identity is not None else None
        before = self.trust.identity
        self._contexts = contexts
        self.trust = msgspec.structs.replace(self.trust, identity=identity)
        return (before and before.authority_pem) != (identity and identity.authority_pem)

    def set_revoked(self, node_ids: Collection[NodeId], serials: Collection[str]) -> None:
        """Let nobody in any more with one of these; for who is in see `reason_to_end`."""
        self.trust = msgspec.structs.replace(
            self.trust, removed_node_ids=frozenset(node_ids), revoked_serials=frozenset(serials)
        )

    def require_listenable(self, host: str) -> None:
        """Check that there is a sense in listening on an address.

        Raises:
            ConfigurationError: From other hosts nobody could be let in.
        """
        if not is_loopback(host) and self._contexts is None:
            raise ConfigurationError(
                f"cannot take tokens from other hosts on {host}: without a certificate of a cluster there are none "
                "that may come; use 127.0.0.1, or make a token first: exo token create"
            )

    def reason_to_end(self, opening: Opening) -> str | None:
        """Return why somebody who was let in is not welcome any more.

        A certificate that runs out ends nothing that is connected: its node has had a newer one for days.
        """
        if opening.certificate is None or not opening.certificate.is_revoked(self.trust):
            return None
        return f"the certificate of the node {opening.certificate.node_id} was revoked"

    # --- dialling -----------------------------------------------------------------------------------------------

    def dial(self, address: HostPort, *, node_id: NodeId | None, purpose: str) -> tuple[HostPort, Opening]:
        """Return where to connect for an address, and how to go on there.

        Args:
            address: As its node tells it to others.
            node_id: Whose address it is.
            purpose: What for.

        Raises:
            HandshakeError: It is on another host, and this node has no certificate, or it is not known whose it is.
        """
        if self.is_local(address.host):
            return address, self._plain(purpose)
        if node_id == self._node_id:
            # Every listener of the data plane is reached on loopback too, and there nothing has to be encrypted.
            return HostPort(LOOPBACK, address.port), self._plain(purpose)
        peer = f"the node at {address}"
        if self._contexts is None:
            raise HandshakeError(
                "it is on another host, and this node has no certificate of a cluster to show there; "
                "take the node in first: exo join"
            )
        if node_id is None:
            raise HandshakeError("it is on another host, and nobody said which node should be there")

        def require_welcome(certificate: PeerCertificate) -> None:
            if certificate.node_id != node_id:
                raise HandshakeError(
                    f"{peer} is the node {certificate.node_id}, and {node_id} should be there; "
                    "its address may be out of date, try again"
                )
            self._require_not_revoked(certificate, peer)

        tls = TlsPipe(self._contexts.dialling, is_listener=False, peer=peer)
        handshake = TlsDialler(purpose=purpose, sender=self._sender, listener=peer)
        return address, Opening(handshake, tls, require_welcome=require_welcome)

    def _plain(self, purpose: str) -> Opening:
        nonce = self._random_bytes(NONCE_BYTES)
        return Opening(Dialler(secret=self._secret, nonce=nonce, purpose=purpose, sender=self._sender))

    # --- listening ----------------------------------------------------------------------------------------------

    def accept(self, host: str) -> Opening:
        """Return how to go on with somebody who connected from a host."""
        peer = f"the node connecting from {host}"

        def choose(first_byte: int) -> Way:
            if first_byte == TLS_FIRST_BYTE:
                if self._contexts is None:
                    raise HandshakeError(f"{peer} wants TLS, and this node has no certificate of a cluster")
                return TlsListener(), TlsPipe(self._contexts.listening, is_listener=True, peer=peer)
            if not self.is_local(host):
                raise HandshakeError(
                    f"{peer} is on another host and shows no certificate; take it in first: exo join"
                )
            return Listener(secret=self._secret, nonce=self._random_bytes(NONCE_BYTES)), None

        return Opening(
            None,
            choose=choose,
            require_welcome=lambda certificate: self._require_not_revoked(certificate, peer),
            on_refused=lambda reason: self._refused(host, reason),
        )

    def has_room(self, host: str, strangers: Iterable[str]) -> bool:
        """Say whether one more may come, beside those that have come from these hosts and proved nothing yet.

        This host's own have room of their own: nobody from outside can take it.
        """
        is_near = self.is_local(host)
        per_host = Counter(stranger for stranger in strangers if self.is_local(stranger) == is_near)
        if not is_near and per_host[host] >= STRANGERS_PER_HOST_MAX:
            return False
        return per_host.total() < STRANGERS_MAX

    def _require_not_revoked(self, certificate: PeerCertificate, peer: str) -> None:
        if certificate.is_revoked(self.trust):
            raise HandshakeError(
                f"the certificate of {peer} (node {certificate.node_id}) was revoked; that node has to be taken in "
                "again: exo join"
            )

    def _refused(self, host: str, reason: str) -> None:
        self.refused_count += 1
        if (host, reason) in self._logged:
            return
        if len(self._logged) >= _LOGGED_MAX:
            self._logged.clear()
        self._logged.add((host, reason))
        logger.warning("refused a connection to the data plane: {}", reason)
