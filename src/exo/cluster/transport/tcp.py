"""Nodes over TCP: plain among the nodes of one user on one host, TLS 1.3 with certificates on both ends otherwise."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from exo.cluster.errors import HandshakeError, NotDiallableError
from exo.cluster.transport.addresses import is_loopback
from exo.cluster.transport.base import Connection, Heartbeat, Transport
from exo.cluster.transport.channel import Channel
from exo.cluster.transport.dialling import Dialling
from exo.cluster.transport.gate import Gate
from exo.cluster.transport.tcp_connection import Breach, TcpConnection
from exo.cluster.transport.tcp_listener import TcpListener
from exo.cluster.trust.certificates import NodeCertificate
from exo.cluster.trust.enrolment_server import EnrolmentLimits
from exo.cluster.trust.identity import TlsIdentity
from exo.cluster.trust.messages import Enrol
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

__all__ = ["TcpTransport", "is_loopback"]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class TcpTransport(Transport):
    """One port, two ways in: the host secret on loopback, a certificate of the cluster's authority from anywhere.

    Args:
        secret: The host secret, which both ends of a plain connection must know.
        random_bytes: Source of the plain handshake's nonces.
        heartbeat: How the loss of a peer is noticed.
        now: The time, aware of its zone.
        is_local: Says of a host whether it is this one, so that plain connections may be made to and from it.
        limits: How much strangers that ask to join may use.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        heartbeat: Heartbeat = Heartbeat(),
        now: Callable[[], datetime] = _utc_now,
        is_local: Callable[[str], bool] = is_loopback,
        limits: EnrolmentLimits = EnrolmentLimits(),
    ) -> None:
        self._gate = Gate(secret, random_bytes=random_bytes, now=now, is_local=is_local)
        self._heartbeat = heartbeat
        self._limits = limits
        self._open: set[TcpConnection] = set()

    # --- what may change at any time ----------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """What was let in and refused since the start; the keys are constant, see `refusals.COUNTED`."""
        return self._gate.counts

    def is_local(self, host: str) -> bool:
        """Say whether connections to and from a host are this host's own."""
        return self._gate.is_local(host)

    def set_identity(self, identity: TlsIdentity | None) -> None:
        """Show this certificate from now on. Under another authority, or none, TLS connections end; else they stay.

        Raises:
            ConfigurationError: The certificate or its key cannot be used; the one before stays.
        """
        if self._gate.set_identity(identity):
            for connection in list(self._open):
                if connection.certificate is not None or connection.is_enrolment:
                    self._gate.counts["ended_identity_changed"] += 1
                    connection.close("this node is now a member of another cluster, or of none")

    def set_revoked(self, *, node_ids: Collection[NodeId] = (), serials: Collection[str] = ()) -> None:
        """Let these nodes, and these certificates (serials in hexadecimal), in no more, and end their connections."""
        self._gate.set_revoked(node_ids, serials)
        for connection in list(self._open):
            certificate = connection.certificate
            reason = self._gate.reason_to_end(certificate) if certificate is not None else None
            if reason is not None:
                connection.close(reason)

    def set_enrol(self, enrol: Enrol | None) -> None:
        """Let this function decide about nodes that ask to join; None: they are sent away."""
        self._gate.enrol = enrol

    # --- Transport ----------------------------------------------------------------------------------------------

    async def listen(self, address: HostPort) -> TcpListener:
        self._gate.require_listenable(address.host)
        listener = TcpListener(self._gate, heartbeat=self._heartbeat, track=self._track, limits=self._limits)
        try:
            await listener.open(address)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen for other nodes on {address}: {error.strerror or error}; "
                "choose another port with EXO_CLUSTER_PORT (0 takes any free one)"
            ) from error
        return listener

    async def dial(self, address: HostPort, *, timeout_s: float) -> Connection:
        if not self._gate.is_local(address.host):
            if not self._gate.has_identity:
                raise NotDiallableError(
                    f"without node certificates only nodes of this host are admitted, and {address} is another host; "
                    "ask to be taken in first: exo join"
                )
            return await self._open_one(self._gate.tls_dialer(address), address, timeout_s)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        try:
            return await self._open_one(self._gate.plain_dialer(address), address, timeout_s)
        except HandshakeError as plain:
            if not self._gate.has_identity:
                raise
            try:
                # Another user's node of this host, which may belong to the same cluster all the same.
                rest_s = max(0.0, deadline_s - asyncio.get_running_loop().time())
                return await self._open_one(self._gate.tls_dialer(address), address, rest_s)
            except HandshakeError as error:
                raise HandshakeError(
                    f"{plain.message}; and with certificates: {error.message}",
                    is_secret_wrong=plain.is_secret_wrong,
                    code=error.code,
                ) from error

    async def _open_one(self, channel: Channel, address: HostPort, timeout_s: float) -> TcpConnection:
        try:
            return await _Dialling(self._gate, self._track, address).open(
                channel, heartbeat=self._heartbeat, timeout_s=timeout_s
            )
        except HandshakeError as error:
            self._gate.count_refused(error, address, is_dialer=True)
            raise

    def _track(self, connection: TcpConnection, is_open: bool) -> None:
        if is_open:
            self._open.add(connection)
        else:
            self._open.discard(connection)


class _Dialling(Dialling):
    """A connection to a member."""

    def __init__(self, gate: Gate, track: Callable[[TcpConnection, bool], None], address: HostPort) -> None:
        super().__init__(address)
        self._gate = gate
        self._track = track

    def greeted(self, connection: TcpConnection) -> None:
        self._track(connection, True)
        super().greeted(connection)

    def ended(self, connection: TcpConnection, error: HandshakeError | None) -> None:
        self._track(connection, False)
        super().ended(connection, error)

    def broken(self, kind: Breach) -> None:
        self._gate.counts[f"ended_{kind}"] += 1

    def reason_to_end(self, certificate: NodeCertificate) -> str | None:
        return self._gate.reason_to_end(certificate)
