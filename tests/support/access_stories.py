"""What the tests about access share: an authority in memory, and commands with usual values."""

import hashlib
from datetime import UTC, datetime

from exo.cluster.trust.authority import create_authority, issue_certificate
from exo.cluster.trust.certificates import read_node_certificate, to_der
from exo.master.authority import Issued
from exo.shared.errors import ExoError
from exo.shared.types.access import KeyId, KeyLimits, Scope, TokenId
from exo.shared.types.commands import CreateKey, CreateToken, EnrolmentProof, EnrolNode
from exo.shared.types.events import CertificateIssued, Decision, KeyCreated, TokenCreated
from exo.shared.types.ids import ClusterId, CommandId, NodeId

NOW_S = 1_800_000_000.0
DAY_S = 86400.0
TOKEN_ID = TokenId("abcdefghijkl")
VERIFIER = "ab" * 32
FINGERPRINT = "cd" * 32
OTHER_FINGERPRINT = "ef" * 32
COMMAND_ID = CommandId("c")
AUTHORITY_PEM = "-----BEGIN CERTIFICATE-----\nauthority\n-----END CERTIFICATE-----\n"
JOINER = NodeId("joiner")


class MemoryAuthority:
    """Stands in for the keeper of the authority's key; its certificates are numbered texts."""

    def __init__(self) -> None:
        self.created = 0
        self.issued: list[NodeId] = []
        self.error: ExoError | None = None

    async def create(self) -> str:
        self.created += 1
        if self.error is not None:
            raise self.error
        return AUTHORITY_PEM

    async def issue(self, request_der: bytes, node_id: NodeId) -> Issued:
        if self.error is not None:
            raise self.error
        self.issued.append(node_id)
        number = len(self.issued)
        return Issued(
            certificate_pem=f"certificate {number}", serial=f"{number:x}", not_after_s=NOW_S + 30 * DAY_S
        )


def create_token(*, uses: int = 1, lifetime_s: float = 3600.0, token_id: TokenId = TOKEN_ID) -> CreateToken:
    return CreateToken(
        command_id=COMMAND_ID,
        token_id=token_id,
        verifier=VERIFIER,
        lifetime_s=lifetime_s,
        uses=uses,
        created_by="test",
    )


def create_key(
    *scopes: Scope,
    secret: str = "secret",
    lifetime_s: float | None = None,
    key_id: str = "abcd1234",
    limits: KeyLimits | None = None,
) -> CreateKey:
    return CreateKey(
        command_id=COMMAND_ID,
        key_id=KeyId(key_id),
        hash=hashlib.sha256(secret.encode()).hexdigest(),
        name="laptop",
        scopes=scopes,
        lifetime_s=lifetime_s,
        created_by="test",
        limits=limits or KeyLimits(),
    )


def enrol(
    proof: EnrolmentProof = "none",
    *,
    is_proven: bool | None = None,
    node_id: str = JOINER,
    fingerprint: str = FINGERPRINT,
    token_id: TokenId | None = None,
) -> EnrolNode:
    """A node that asks for a certificate, with a right proof unless said otherwise."""
    return EnrolNode(
        command_id=COMMAND_ID,
        node_id=NodeId(node_id),
        name="basement",
        request_der=b"request",
        fingerprint=fingerprint,
        address="192.0.2.7:40000",
        proof=proof,
        is_proven=(proof != "none") if is_proven is None else is_proven,
        token_id=token_id or (TOKEN_ID if proof == "token" else None),
    )


def token_created(*, uses: int = 1, at_s: float = NOW_S, lifetime_s: float = 3600.0) -> Decision:
    return TokenCreated(
        token_id=TOKEN_ID,
        verifier=VERIFIER,
        created_at_s=at_s,
        expires_at_s=at_s + lifetime_s,
        uses=uses,
        created_by="test",
    )


def key_created(
    secret: str,
    *scopes: Scope,
    key_id: str = "abcd1234",
    expires_at_s: float | None = None,
    name: str = "laptop",
) -> Decision:
    return KeyCreated(
        key_id=KeyId(key_id),
        hash=hashlib.sha256(secret.encode()).hexdigest(),
        name=name,
        scopes=scopes,
        created_at_s=NOW_S,
        expires_at_s=expires_at_s,
        created_by="test",
    )


def certified(
    node_id: NodeId = JOINER, *, serial: str = "1", fingerprint: str = FINGERPRINT, at_s: float = NOW_S
) -> Decision:
    return CertificateIssued(
        node_id=node_id,
        serial=serial,
        fingerprint=fingerprint,
        issued_at_s=at_s,
        not_after_s=at_s + 30 * DAY_S,
        certificate_pem=f"certificate {serial}",
    )


class SigningAuthority:
    """An authority as the voters have it, with its key in memory."""

    def __init__(self) -> None:
        self.now = datetime.fromtimestamp(NOW_S, UTC)
        self.authority = create_authority(ClusterId("cluster"), now=self.now)

    async def create(self) -> str:
        return self.authority.certificate_pem

    async def issue(self, request_der: bytes, node_id: NodeId) -> Issued:
        pem = issue_certificate(self.authority, request_der, node_id, now=self.now)
        read = read_node_certificate(to_der(pem))
        return Issued(certificate_pem=pem, serial=read.serial, not_after_s=read.valid_until.timestamp())
