"""Who is let in, with what this node has now: the host secret, a certificate, a list of revocations.

Shared by a transport, its listeners and its connections. What is decided here is counted, and logged once for each
host and reason.
"""

from collections import Counter
from collections.abc import Callable, Collection
from datetime import datetime
from typing import NamedTuple

from loguru import logger

from exo.cluster.errors import HandshakeError
from exo.cluster.transport.addresses import is_loopback
from exo.cluster.transport.channel import Channel, PlainChannel
from exo.cluster.transport.greeting import Greeting
from exo.cluster.transport.refusals import COUNTED
from exo.cluster.transport.tls_channel import (
    CLUSTER_PROTOCOL,
    ENROL_PROTOCOL,
    TLS_FIRST_BYTE,
    TlsChannel,
)
from exo.cluster.transport.tls_contexts import TlsContexts
from exo.cluster.trust.certificates import NodeCertificate, read_node_certificate
from exo.cluster.trust.errors import CertificateError
from exo.cluster.trust.identity import TlsIdentity
from exo.cluster.trust.messages import Enrol
from exo.shared.errors import ConfigurationError
from exo.shared.handshake import NONCE_BYTES
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

_LOGGED_MAX = 1024


class _Revoked(NamedTuple):
    node_ids: frozenset[NodeId] = frozenset()
    serials: frozenset[str] = frozenset()


class Gate:
    """See the module.

    Args:
        secret: The host secret.
        random_bytes: Source of the plain handshake's nonces.
        now: The time, aware of its zone, for certificates that expire while a connection lasts. (Those of a
            handshake are checked by OpenSSL, with the system's clock.)
        is_local: Says of a host whether plain connections may come from it.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        now: Callable[[], datetime],
        is_local: Callable[[str], bool],
    ) -> None:
        self._secret = secret
        self._random_bytes = random_bytes
        self._now = now
        self.is_local = is_local
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self.identity: TlsIdentity | None = None
        self.enrol: Enrol | None = None
        self._contexts: TlsContexts | None = None
        self._revoked = _Revoked()
        self._logged: set[tuple[str, str]] = set()

    # --- what changes while running -----------------------------------------------------------------------------

    def set_identity(self, identity: TlsIdentity | None) -> bool:
        """Show another certificate from now on; True: the authority changed, so what is connected is void.

        Raises:
            ConfigurationError: The certificate or its key cannot be used; the one before stays.
        """
        contexts = TlsContexts(identity) if identity is not None else None
        before = self.identity.authority_pem if self.identity is not None else None
        self.identity, self._contexts = identity, contexts
        return before != (identity.authority_pem if identity is not None else None)

    def set_revoked(self, node_ids: Collection[NodeId], serials: Collection[str]) -> None:
        self._revoked = _Revoked(frozenset(node_ids), frozenset(serials))

    # --- dialling -----------------------------------------------------------------------------------------------

    @property
    def has_identity(self) -> bool:
        return self._contexts is not None

    def plain_dialer(self, address: HostPort) -> Channel:
        nonce = self._random_bytes(NONCE_BYTES)
        return PlainChannel(Greeting(self._secret, side="dialer", nonce=nonce, peer=_node_at(address)))

    def tls_dialer(self, address: HostPort) -> Channel:
        assert self._contexts is not None, "look at has_identity first"
        peer = _node_at(address)

        def check(certificate_der: bytes | None, protocol: str | None) -> NodeCertificate:
            if protocol != CLUSTER_PROTOCOL:
                raise _other_version(peer)
            return self._admit(certificate_der, peer)

        return TlsChannel(self._contexts.dialling, is_listener=False, peer=peer, check_peer=check)

    # --- listening ----------------------------------------------------------------------------------------------

    def require_listenable(self, host: str) -> None:
        """Check that there is a sense in listening on an address.

        Raises:
            ConfigurationError: From other hosts nobody could be let in.
        """
        if not is_loopback(host) and not self.has_identity:
            raise ConfigurationError(
                f"cannot listen for other nodes on {host}: without node certificates they are admitted on "
                "this host only; use 127.0.0.1, or make a token first: exo token create"
            )

    def accepted(self, first_byte: int, address: HostPort) -> Channel:
        """Return how to go on with somebody who dialled.

        Raises:
            HandshakeError: Not at all.
        """
        peer = f"the node dialling from {address.host}"
        if first_byte == TLS_FIRST_BYTE:
            if self._contexts is None:
                raise HandshakeError(
                    f"{peer} wants TLS, and this node has no certificate of a cluster yet", code="no_identity"
                )

            def check(certificate_der: bytes | None, protocol: str | None) -> NodeCertificate | None:
                if protocol == ENROL_PROTOCOL:
                    if self.enrol is None:
                        raise HandshakeError(
                            "this node takes nobody in; ask another one", code="no_enrolment"
                        )
                    return None
                if protocol != CLUSTER_PROTOCOL:
                    raise _other_version(peer)
                return self._admit(certificate_der, peer)

            return TlsChannel(self._contexts.listening, is_listener=True, peer=peer, check_peer=check)
        if not self.is_local(address.host):
            raise HandshakeError(
                f"{peer} is on another host and shows no certificate; take it in first: exo join",
                code="plain_from_afar",
            )
        nonce = self._random_bytes(NONCE_BYTES)
        return PlainChannel(Greeting(self._secret, side="listener", nonce=nonce, peer=peer))

    # --- judging ------------------------------------------------------------------------------------------------

    def _admit(self, certificate_der: bytes | None, peer: str) -> NodeCertificate:
        """Decide about a certificate that OpenSSL has found to be the authority's and in its time."""
        if certificate_der is None:
            raise HandshakeError(
                f"{peer} shows no certificate; it has to be taken in first: exo join", code="no_certificate"
            )
        try:
            certificate = read_node_certificate(certificate_der)
        except CertificateError as error:
            raise HandshakeError(f"{peer}: {error.message}", code="malformed_certificate") from error
        if self._is_revoked(certificate):
            raise HandshakeError(
                f"the certificate of {peer} (node {certificate.node_id}) was revoked; that node has to be taken in "
                "again: exo join",
                code="revoked_certificate",
            )
        return certificate

    def reason_to_end(self, certificate: NodeCertificate) -> str | None:
        """Return why somebody who was let in is not welcome any more."""
        if self._is_revoked(certificate):
            self.counts["ended_revoked"] += 1
            return f"the certificate of the node {certificate.node_id} was revoked"
        if self._now() > certificate.valid_until:
            self.counts["ended_expired"] += 1
            return f"the certificate of the node {certificate.node_id} has expired"
        return None

    def _is_revoked(self, certificate: NodeCertificate) -> bool:
        return certificate.node_id in self._revoked.node_ids or certificate.serial in self._revoked.serials

    # --- telling ------------------------------------------------------------------------------------------------

    def count_accepted(self, *, is_tls: bool, is_enrolment: bool) -> None:
        kind = "enrolment" if is_enrolment else "tls" if is_tls else "plain"
        self.counts[f"accepted_{kind}"] += 1

    def count_refused(self, error: HandshakeError, address: HostPort, *, is_dialer: bool = False) -> None:
        """Count a handshake that failed, and log it once; what this node dialled is for its caller to log."""
        self.counts[f"refused_{error.code}"] += 1
        key = (error.code, address.host)
        if is_dialer or key in self._logged:
            return
        if len(self._logged) >= _LOGGED_MAX:
            self._logged.clear()
        self._logged.add(key)
        logger.warning("refused a connection from {}: {}", address, error.message)


def _node_at(address: HostPort) -> str:
    return f"the node at {address}"


def _other_version(peer: str) -> HandshakeError:
    return HandshakeError(
        f"{peer} speaks another version of the cluster protocol; run the same release of exo on both",
        code="other_protocol",
    )
