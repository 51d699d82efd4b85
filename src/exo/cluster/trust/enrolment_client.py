"""The joiner's side of asking to join: look whose cluster it is, then ask until there is an answer."""

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec
from cryptography import x509

from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.transport.base import Connection, Heartbeat
from exo.cluster.transport.dialling import Dialling
from exo.cluster.transport.tls_channel import ENROL_PROTOCOL, TlsChannel
from exo.cluster.transport.tls_contexts import enrolment_context
from exo.cluster.trust.certificates import (
    NodeCertificate,
    public_bytes,
    require_issued,
    sha256_of,
    to_pem,
)
from exo.cluster.trust.errors import CertificateError, EnrolmentError, WrongAuthorityError
from exo.cluster.trust.messages import (
    EnrolGranted,
    EnrolOffer,
    EnrolRefused,
    EnrolRequest,
    FromServer,
    decode_from_server,
    encode_enrolment,
    with_proof,
)
from exo.cluster.trust.token import PlainToken, authority_hash
from exo.shared.types.ids import ClusterId
from exo.shared.types.nodes import HostPort

DIAL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
"""Longer than a server gives its cluster to decide."""
ASK_AGAIN_S = 2.0


class EnrolledIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has to keep once it was taken in: see `KeyStore.save_membership`."""

    cluster_id: ClusterId
    certificate: NodeCertificate
    certificate_pem: str
    authority_pem: str


class EnrolProgress(msgspec.Struct, frozen=True, kw_only=True):
    """What happens meanwhile."""

    stage: Literal["authority", "waiting", "unreachable"]
    text: str
    """One sentence for the person who waits."""
    authority_hash: str
    """Of the cluster that is asked. At the stage `authority`, before anything is sent, a caller without a token shows
    it and remembers it (`KeyStore.remember_authority`); by raising an exception it can leave."""


async def enrol(
    address: HostPort,
    *,
    request: EnrolRequest,
    token: PlainToken | None,
    known_authority: str | None,
    on_progress: Callable[[EnrolProgress], None],
    dial_timeout_s: float = DIAL_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ask_again_s: float = ASK_AGAIN_S,
) -> EnrolledIdentity:
    """Ask the cluster that a node belongs to for a certificate; returns when it is granted. Cancel to give up.

    Nothing is sent before the authority is known to be the right one: the one that the token names, or else
    `known_authority`, or else (trust on first use) any, which is then shown.

    Args:
        address: The cluster port of any member.
        request: Who asks, with `KeyStore.create_request` as `csr`; `token_id` and `proof` are filled in here.
        token: None: to be approved by a person.
        known_authority: The hash that was seen at this address before, if any.
        on_progress: Told of the authority, of each answer that says to wait, and of a server that went away.
        dial_timeout_s: For each connection.
        answer_timeout_s: For each answer.
        ask_again_s: From an answer that says to wait to the next request.

    Raises:
        WrongAuthorityError: The cluster there is another one.
        EnrolmentError: The cluster refuses, or answers nonsense.
        DialError: The node could not be reached, or speaks another protocol. (Once a wait has begun, it is tried
            again instead.)
    """
    wanted = token.authority_hash if token is not None else known_authority
    authority_der = await _look(address, dial_timeout_s, answer_timeout_s)
    found = authority_hash(authority_der)
    if wanted is not None and found != wanted:
        raise WrongAuthorityError(_other_authority(address, found, wanted, is_token=token is not None))

    def progress(stage: Literal["authority", "waiting", "unreachable"], text: str) -> None:
        on_progress(EnrolProgress(stage=stage, text=text, authority_hash=found))

    progress("authority", f"the cluster at {address} has the authority {found}")
    asking = _Asking(address, request, token, authority_der)
    is_waiting = False
    while True:
        try:
            async with asyncio.timeout(dial_timeout_s + answer_timeout_s):
                await asking.connect(dial_timeout_s)
            while True:
                async with asyncio.timeout(answer_timeout_s):
                    answer = await asking.ask()
                if isinstance(answer, EnrolGranted):
                    return _checked(answer, request, authority_der)
                if isinstance(answer, EnrolRefused):
                    raise EnrolmentError(f"the cluster refused: {answer.reason}", code=answer.code)
                if isinstance(answer, EnrolOffer):
                    raise _nonsense(address)
                is_waiting = True
                progress("waiting", answer.text)
                await asyncio.sleep(ask_again_s)
        except (DialError, ConnectionLostError, TimeoutError) as error:
            if not is_waiting or isinstance(error, HandshakeError):
                raise _as_dial_error(address, error) from error
            progress("unreachable", f"no answer from {address} any more; trying again")
        finally:
            asking.hang_up()
        await asyncio.sleep(ask_again_s)


class _Asking:
    """Connections to one address, one after the other, on which the same is asked."""

    def __init__(
        self, address: HostPort, request: EnrolRequest, token: PlainToken | None, authority_der: bytes
    ) -> None:
        self._address = address
        self._bare_request = request
        self._token = token
        self._authority_pem = to_pem(authority_der)
        self._connection: Connection | None = None
        self._request = b""

    async def connect(self, timeout_s: float) -> None:
        channel = _channel(self._address, self._authority_pem)
        connection = await Dialling(self._address).open(channel, heartbeat=Heartbeat(), timeout_s=timeout_s)
        self._connection = connection
        server_der = channel.peer_der
        if server_der is None or not isinstance(await _hear(connection, self._address), EnrolOffer):
            raise _nonsense(self._address)
        request = self._bare_request
        if self._token is not None:
            request = with_proof(request, self._token, sha256_of(server_der))
        self._request = encode_enrolment(request)

    async def ask(self) -> FromServer:
        assert self._connection is not None
        await self._connection.send(self._request)
        return await _hear(self._connection, self._address)

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close("the joiner has its answer")
            self._connection = None


async def _look(address: HostPort, dial_timeout_s: float, answer_timeout_s: float) -> bytes:
    """Return the authority that a node shows. Nothing is sent, and nothing believed."""
    connection: Connection | None = None
    try:
        connection = await Dialling(address).open(
            _channel(address, None), heartbeat=Heartbeat(), timeout_s=dial_timeout_s
        )
        async with asyncio.timeout(answer_timeout_s):
            offer = await _hear(connection, address)
    except (ConnectionLostError, TimeoutError) as error:
        raise _as_dial_error(address, error) from error
    finally:
        if connection is not None:
            connection.close("looked")
    if not isinstance(offer, EnrolOffer):
        raise _nonsense(address)
    return offer.authority


def _channel(address: HostPort, authority_pem: str | None) -> TlsChannel:
    def check(certificate_der: bytes | None, protocol: str | None) -> None:
        if protocol != ENROL_PROTOCOL:
            raise HandshakeError(
                f"the node at {address} does not take nodes in as this release does; run the same release of exo "
                "on both"
            )

    context = enrolment_context(authority_pem)
    return TlsChannel(context, is_listener=False, peer=f"the node at {address}", check_peer=check)


async def _hear(connection: Connection, address: HostPort) -> FromServer:
    try:
        return decode_from_server(await connection.receive())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _nonsense(address) from error


def _checked(answer: EnrolGranted, request: EnrolRequest, authority_der: bytes) -> EnrolledIdentity:
    """Take nothing on trust that can be checked.

    Raises:
        EnrolmentError: The certificate is not what was asked for.
    """
    try:
        if answer.authority != authority_der:
            raise CertificateError("it is from another authority than the one that was offered")
        certificate = require_issued(
            answer.certificate,
            authority_der=authority_der,
            node_id=request.node_id,
            public_key_der=public_bytes(x509.load_der_x509_csr(request.csr).public_key()),
        )
    except CertificateError as error:
        raise EnrolmentError(
            f"the certificate that the cluster gave cannot be used: {error.message}; ask another of its nodes",
            code="bad_certificate",
        ) from error
    return EnrolledIdentity(
        cluster_id=answer.cluster_id,
        certificate=certificate,
        certificate_pem=to_pem(answer.certificate),
        authority_pem=to_pem(authority_der),
    )


def _other_authority(address: HostPort, found: str, wanted: str, *, is_token: bool) -> str:
    if is_token:
        return (
            f"the token is for the cluster with the authority {wanted}, and the node at {address} belongs to the one "
            f"with {found}; nothing was sent to it: check the address, or get a token of that cluster"
        )
    return (
        f"the node at {address} showed the authority {wanted} before and shows {found} now: another cluster, or "
        "somebody in between; nothing was sent to it. If the cluster was made anew, delete that line of "
        "keys/known_authorities and ask again"
    )


def _nonsense(address: HostPort) -> EnrolmentError:
    return EnrolmentError(
        f"the node at {address} answers what this release does not understand; run the same release of exo on both",
        code="malformed",
    )


def _as_dial_error(address: HostPort, error: DialError | ConnectionLostError | TimeoutError) -> DialError:
    if isinstance(error, DialError):
        return error
    reason = error.reason if isinstance(error, ConnectionLostError) else "no answer in time"
    return DialError(f"the node at {address} hung up before it had answered: {reason}")
