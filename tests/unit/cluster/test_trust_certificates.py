"""The authority, the certificates it gives, and the directory that keeps them."""

import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.trust import key_store
from exo.cluster.trust.authority import (
    Authority,
    create_authority,
    create_key,
    create_request,
    issue_certificate,
    request_fingerprint,
)
from exo.cluster.trust.certificates import (
    NodeCertificate,
    read_node_certificate,
    renewal_due,
    require_issued,
    to_der,
    to_pem,
)
from exo.cluster.trust.errors import CertificateError
from exo.cluster.trust.key_store import KeyStore
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from support.memberships import Membership, odd_certificate

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
A, B = NodeId("a"), NodeId("b")
AUTHORITY = create_authority(ClusterId("c1"), now=NOW)
KEY = create_key()
REQUEST = create_request(KEY, A)


def issue(node_id: NodeId = A, key: str = KEY) -> NodeCertificate:
    return read_node_certificate(
        to_der(issue_certificate(AUTHORITY, create_request(key, node_id), node_id, now=NOW))
    )


def test_a_certificate_names_its_node_and_lasts_thirty_days() -> None:
    certificate = issue()
    assert certificate.node_id == "a"
    assert certificate.valid_until - NOW == timedelta(days=30)
    assert certificate.is_valid_at(NOW - timedelta(minutes=59))  # For a node whose clock is slow.
    assert not certificate.is_valid_at(NOW - timedelta(minutes=61))
    assert certificate.is_valid_at(NOW + timedelta(days=30))
    assert not certificate.is_valid_at(NOW + timedelta(days=30, seconds=1))


def test_certificates_of_one_key_have_its_fingerprint_and_serials_of_their_own() -> None:
    one, other = issue(), issue()
    assert one.serial != other.serial and int(one.serial, 16) > 2**64
    assert one.fingerprint == other.fingerprint == request_fingerprint(create_request(KEY, A), A)
    assert issue(key=create_key()).fingerprint != one.fingerprint


@given(st.floats(min_value=0, max_value=1.5))
def test_renewal_is_due_after_two_thirds_of_the_life(part: float) -> None:
    certificate = issue()
    life = certificate.valid_until - certificate.valid_from
    assert renewal_due(certificate, certificate.valid_from + part * life) == (part >= 2 / 3)


def test_no_certificate_outlives_its_authority() -> None:
    late = NOW + timedelta(days=3640)
    certificate = to_der(issue_certificate(AUTHORITY, create_request(KEY, A), A, now=late))
    end = x509.load_pem_x509_certificate(AUTHORITY.certificate_pem.encode()).not_valid_after_utc
    assert read_node_certificate(certificate).valid_until == end


def request_with(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    )
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("request_der", "reason"),
    [
        (b"", "cannot be read"),
        (b"garbage", "cannot be read"),
        (create_request(KEY, A)[:-5], "cannot be read"),
        (create_request(KEY, B), "does not name the node a"),
        (request_with(ec.generate_private_key(ec.SECP384R1())), "another kind than P-256"),
        (request_with(ed25519.Ed25519PrivateKey.generate()), "another kind than P-256"),
    ],
)
def test_a_bad_request_gets_no_certificate(request_der: bytes, reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        issue_certificate(AUTHORITY, request_der, A, now=NOW)


@pytest.mark.parametrize("node_id", ["", "a/b", "a b", "x" * 65, "ä"])
def test_no_certificate_is_given_for_a_name_that_is_no_node_id(node_id: str) -> None:
    with pytest.raises(CertificateError, match="no node id"):
        issue_certificate(AUTHORITY, create_request(KEY, A), NodeId(node_id), now=NOW)


@given(st.integers(0, 8 * len(REQUEST) - 1))
def test_a_request_with_any_bit_changed_gets_no_certificate(bit: int) -> None:
    request = bytearray(REQUEST)
    request[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateError):
        issue_certificate(AUTHORITY, bytes(request), A, now=NOW)


@given(st.binary())
def test_garbage_is_no_certificate(data: bytes) -> None:
    with pytest.raises(CertificateError):
        read_node_certificate(data)
    with pytest.raises(CertificateError):
        to_pem(data)


@pytest.mark.parametrize(
    ("name", "uris"),
    [
        ("a", ("exo://node/b",)),
        ("a", ("exo://node/a", "exo://node/b")),
        ("a", ("https://a",)),
        ("a", ()),
        ("a b", ("exo://node/a b",)),
    ],
)
def test_a_certificate_that_does_not_name_exactly_one_node_is_none(
    tmp_path: Path, name: str, uris: tuple[str, ...]
) -> None:
    certificate = odd_certificate(Membership(tmp_path), KEY, name=name, uris=uris)
    with pytest.raises(CertificateError, match=r"no node's certificate"):
        read_node_certificate(to_der(certificate))


def test_a_node_takes_only_its_own_certificate() -> None:
    other_authority = create_authority(ClusterId("c2"), now=NOW)

    def check(authority: Authority = AUTHORITY, node_id: NodeId = A, key: str = KEY) -> None:
        certificate = issue_certificate(authority, create_request(key, node_id), node_id, now=NOW)
        key_object = serialization.load_pem_private_key(KEY.encode(), None)
        public = key_object.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        require_issued(
            to_der(certificate), authority_der=AUTHORITY.certificate_der, node_id=A, public_key_der=public
        )

    check()
    for wrong, reason in (
        ({"authority": other_authority}, "not signed by"),
        ({"node_id": B}, "for the node b, this node is a"),
        ({"key": create_key()}, "another key"),
    ):
        with pytest.raises(CertificateError, match=reason):
            check(**wrong)  # type: ignore[arg-type]


def test_the_authority_does_not_show_its_key_by_accident() -> None:
    secret = AUTHORITY.key_pem.splitlines()[1]
    assert secret not in repr(AUTHORITY) and secret not in str(AUTHORITY)


# --- the key store ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path)


def join(store: KeyStore, authority: Authority = AUTHORITY, node_id: NodeId = A) -> str:
    certificate = issue_certificate(authority, store.create_request(node_id), node_id, now=NOW)
    store.save_membership(certificate_pem=certificate, authority_pem=authority.certificate_pem)
    return certificate


def names(store: KeyStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_a_member_finds_its_identity_again(store: KeyStore) -> None:
    assert store.load_identity(A) is None
    certificate = join(store)
    identity = store.load_identity(A)
    assert identity is not None
    assert identity.certificate == read_node_certificate(to_der(certificate))
    assert identity.certificate_file.read_text() == certificate
    assert names(store) == ["ca.pem", "node.key", "node.pem"]
    join(store)  # Renewed, with the same key.
    renewed = store.load_identity(A)
    assert renewed is not None
    assert renewed.certificate.serial != identity.certificate.serial
    assert renewed.certificate.fingerprint == identity.certificate.fingerprint


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such modes on Windows")
def test_only_the_owner_can_read_the_keys(store: KeyStore) -> None:
    store.save_authority(AUTHORITY)
    join(store)
    store.remember_authority(HostPort("10.0.0.1", 1), "hash")
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.directory.iterdir()} == {0o600}
    (store.directory / "node.key").chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"mode 640.*chmod 600"):
        store.load_identity(A)


def test_two_processes_that_make_the_key_at_once_have_the_same(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = KeyStore(store.directory.parent)
    theirs: list[bytes] = []

    def interrupted() -> str:
        monkeypatch.setattr(key_store, "create_key", create_key)
        theirs.append(other.create_request(A))
        return create_key()

    monkeypatch.setattr(key_store, "create_key", interrupted)
    own = store.create_request(A)
    assert request_fingerprint(own, A) == request_fingerprint(theirs[0], A)


def test_the_authority_is_kept_and_forgotten(store: KeyStore) -> None:
    assert store.load_authority() is None
    store.save_authority(AUTHORITY)
    assert store.load_authority() == AUTHORITY
    join(store)
    assert store.load_authority() == AUTHORITY
    store.forget_authority_key()
    assert store.load_authority() is None
    assert store.load_identity(A) is not None
    store.forget_membership()
    assert store.load_identity(A) is None
    assert names(store) == ["node.key"]


def test_the_authoritys_key_that_comes_while_the_certificate_is_kept_stays(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = threading.Thread(target=store.save_authority, args=(AUTHORITY,))
    remove = store._remove

    def interrupted(name: str) -> None:
        if not coming.ident:
            coming.start()
            coming.join(0.2)
        remove(name)

    monkeypatch.setattr(store, "_remove", interrupted)
    join(store)
    coming.join()
    assert store.load_authority() == AUTHORITY
    assert store.load_identity(A) is not None


def test_joining_another_cluster_leaves_nothing_of_the_one_before(store: KeyStore) -> None:
    store.save_authority(AUTHORITY)
    join(store)
    other = create_authority(ClusterId("c2"), now=NOW)
    join(store, other)
    assert store.load_authority() is None
    identity = store.load_identity(A)
    assert identity is not None and identity.authority_pem == other.certificate_pem
    store.save_authority(AUTHORITY)
    assert store.load_identity(A) is None


class PowerFailure(Exception):
    pass


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_crash_in_the_middle_of_joining_leaves_the_old_or_the_new_or_nothing(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """At whichever step of the disk it comes: never a mixture that a person has to clear up."""
    store.save_authority(AUTHORITY)
    join(store)
    other = create_authority(ClusterId("c2"), now=NOW)
    left = steps

    def count_down(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise PowerFailure

    real_replace, real_unlink = Path.replace, Path.unlink
    with monkeypatch.context() as broken:
        broken.setattr(key_store, "sync_directory", count_down)
        broken.setattr(key_store, "sync_descriptor", count_down)
        broken.setattr(Path, "replace", lambda *a: (count_down(), real_replace(*a))[1])
        broken.setattr(Path, "unlink", lambda *a, **k: (k or count_down(), real_unlink(*a, **k))[1])
        try:
            join(store, other)
            is_done = True
        except PowerFailure:
            is_done = False
    identity = store.load_identity(A)
    authority = store.load_authority()
    kept = identity.authority_pem if identity is not None else None
    assert kept in (None, AUTHORITY.certificate_pem, other.certificate_pem)
    assert authority is None or authority == AUTHORITY
    if is_done:
        assert kept == other.certificate_pem
    join(store, other)
    assert store.load_identity(A) is not None


@pytest.mark.parametrize(
    ("file", "content"),
    [("node.pem", "garbage"), ("ca.pem", ""), ("node.key", "garbage"), ("node.pem", None)],
)
def test_a_damaged_file_is_explained(store: KeyStore, file: str, content: str | None) -> None:
    join(store)
    if content is None:  # Of another node: a copied directory.
        content = issue_certificate(AUTHORITY, create_request(KEY, B), B, now=NOW)
    (store.directory / file).write_text(content)
    with pytest.raises(ConfigurationError, match=r"keys.*cannot be used.*join the cluster again"):
        store.load_identity(A)


def test_an_authority_with_another_key_is_explained(store: KeyStore) -> None:
    store.save_authority(AUTHORITY)
    (store.directory / "ca.key").write_text(KEY)
    with pytest.raises(ConfigurationError, match="do not belong together"):
        store.load_authority()


def test_a_home_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file, where a directory should be")
    with pytest.raises(ConfigurationError, match="choose another EXO_HOME"):
        KeyStore(tmp_path).create_request(A)


def test_who_was_asked_is_remembered(store: KeyStore) -> None:
    one, other = HostPort("10.0.0.1", 52416), HostPort("fe80::1", 52416)
    assert store.known_authority(one) is None
    store.remember_authority(one, "first")
    store.remember_authority(other, "second")
    store.remember_authority(one, "third")
    again = KeyStore(store.directory.parent)
    assert (again.known_authority(one), again.known_authority(other)) == ("third", "second")
    assert names(store) == ["known_authorities"]
