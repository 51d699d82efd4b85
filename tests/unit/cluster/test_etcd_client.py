"""The way to etcd where it is blocked: wrong addresses, certificates, passwords, full disks; each says what to do."""

import asyncio
import datetime
import errno
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from exo.cluster.etcd.address import EtcdAddress
from exo.cluster.etcd.client import EtcdClient
from exo.cluster.etcd.errors import (
    EtcdError,
    EtcdFullError,
    EtcdRefusedError,
    EtcdUnreachableError,
)
from exo.cluster.etcd.faults import answer_fault, failure_fault, transport_fault
from exo.cluster.etcd.messages import Put, Range, Txn, TxnAnswer, operation
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort
from support.etcd_server import EtcdServer, free_port, running_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


async def put(address: EtcdAddress, *, key: bytes = b"exo/x", value: bytes = b"1") -> TxnAnswer:
    client = EtcdClient(address, timeout_s=0.5)
    try:
        return await client.txn(
            Txn(success=[operation(Put(key=key, value=value)), operation(Range(key=key))])
        )
    finally:
        await client.close()


def at(*endpoints: HostPort, **options: object) -> EtcdAddress:
    return EtcdAddress(endpoints=endpoints, **options)  # type: ignore[arg-type]


# --- addresses ---------------------------------------------------------------------------------------------------


async def test_nobody_there() -> None:
    with pytest.raises(
        EtcdUnreachableError, match=r"Connection refused\); start it, or correct --coordinator"
    ):
        await put(at(HostPort("127.0.0.1", free_port())))
    with pytest.raises(EtcdUnreachableError, match="cannot be reached"):
        await put(at(HostPort("no-such-host.invalid", 2379)))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and says nothing, as a machine that hangs does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


async def test_the_next_endpoint_is_asked_when_one_is_dead_or_silent(
    etcd: EtcdServer, silent_port: int
) -> None:
    dead, silent = HostPort("127.0.0.1", free_port()), HostPort("127.0.0.1", silent_port)
    client = EtcdClient(at(dead, silent, etcd.address), timeout_s=0.3)
    try:
        lease = await client.grant(5)
        assert lease.TTL == 5
        assert client.endpoint == etcd.address
        started_s = time.monotonic()
        assert await client.keep_alive(lease.ID) == 5
        assert time.monotonic() - started_s < 0.3, "the one that answered is asked first from now on"
        await client.revoke(lease.ID)
    finally:
        await client.close()
    with pytest.raises(EtcdUnreachableError, match="gave no answer in time"):
        await put(at(silent))


async def test_where_to_begin_is_spread() -> None:
    endpoints = [HostPort("127.0.0.1", port) for port in (1, 2, 3)]
    for start_at in range(6):
        client = EtcdClient(at(*endpoints), start_at=start_at)
        assert client.endpoint == endpoints[start_at % 3]
        await client.close()


@pytest.fixture
async def impostor() -> AsyncIterator[HostPort]:
    """A web server that is not etcd."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if b"keepalive" in head or b"watch" in head else b"404 Not Found"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()


async def test_something_else_is_there(impostor: HostPort) -> None:
    with pytest.raises(EtcdRefusedError, match=r"is not etcd 3.4 or newer .*HTTP 404 'hello'"):
        await put(at(impostor))
    client = EtcdClient(at(impostor))
    try:
        with pytest.raises(EtcdRefusedError, match=r"does not speak as etcd 3.4 and newer do"):
            await client.keep_alive(1)
        with pytest.raises(EtcdRefusedError, match=r"does not speak as etcd 3.4 and newer do"):
            async for _ in client.watch(b"a", b"b", 1):
                pass
    finally:
        await client.close()


async def test_a_watch_ends_with_its_etcd(tmp_path: Path) -> None:
    with running_etcd(tmp_path) as server:
        client = EtcdClient(at(server.address), timeout_s=0.5)
        watch = client.watch(b"a", b"b", 1)
        await anext(watch)
        server.kill()
        with pytest.raises(EtcdUnreachableError, match="ended the connection"):
            await anext(watch)
        with pytest.raises(EtcdUnreachableError, match="Connection refused"):
            await anext(client.watch(b"a", b"b", 1))
        server.start().until_ready()
        watch = client.watch(b"a", b"b", 1)
        await anext(watch)
        await watch.aclose()
        server.pause()
        with pytest.raises(EtcdUnreachableError, match="gave no answer in time"):
            await anext(client.watch(b"a", b"b", 1))
        await client.close()


# --- certificates ------------------------------------------------------------------------------------------------


class Authority:
    """Signs certificates for etcd and for nodes, into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(constraints, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def sign(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Return the files of a certificate for both ends of a connection, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            self._builder(subject, key)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "site")


@pytest.fixture(scope="module")
def tls_etcd(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[EtcdServer]:
    """Wants certificates of the authority, and has one."""
    certificate, key = authority.sign("etcd")
    arguments = [
        f"--cert-file={certificate}",
        f"--key-file={key}",
        "--client-cert-auth",
        f"--trusted-ca-file={authority.file}",
    ]
    server = EtcdServer(tmp_path_factory.mktemp("etcd"), arguments=arguments, scheme="https").start()
    try:
        yield server
    finally:
        server.kill()


async def until_answering(address: EtcdAddress) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await put(address)
                return
            except EtcdUnreachableError:
                await asyncio.sleep(0.05)


async def test_with_certificates_of_its_authority_a_node_is_let_in(
    tls_etcd: EtcdServer, authority: Authority
) -> None:
    certificate, key = authority.sign("node")
    address = at(
        tls_etcd.address,
        is_tls=True,
        ca_file=authority.file,
        certificate_file=certificate,
        key_file=key,
    )
    await until_answering(address)
    client = EtcdClient(address)
    watch = client.watch(b"a", b"b", 1)
    assert (await anext(watch)).header.revision > 0
    await watch.aclose()
    await client.close()


async def test_certificates_that_do_not_fit_are_told_apart(
    tls_etcd: EtcdServer, authority: Authority, etcd: EtcdServer, tmp_path: Path
) -> None:
    certificate, key = authority.sign("node")
    other = Authority(tmp_path, "other")
    other_certificate, other_key = other.sign("stranger")
    ours = {"certificate_file": certificate, "key_file": key}
    await until_answering(at(tls_etcd.address, is_tls=True, ca_file=authority.file, **ours))
    with pytest.raises(EtcdRefusedError, match=r"is not trusted .*\?ca=PATH"):
        await put(at(tls_etcd.address, is_tls=True, ca_file=other.file, **ours))
    with pytest.raises(EtcdRefusedError, match=r"is not trusted .*host name"):
        await put(
            at(HostPort("localhost", tls_etcd.address.port), is_tls=True, ca_file=authority.file, **ours)
        )
    # The alert says so, where it is not lost behind the end of the connection.
    with pytest.raises(EtcdError, match=r"\?cert=PATH&key=PATH"):
        await put(at(tls_etcd.address, is_tls=True, ca_file=authority.file))
    with pytest.raises(EtcdError, match=r"\?cert=PATH&key=PATH"):
        stranger = {"certificate_file": other_certificate, "key_file": other_key}
        await put(at(tls_etcd.address, is_tls=True, ca_file=authority.file, **stranger))
    with pytest.raises(EtcdError, match="use etcds://"):
        await put(at(tls_etcd.address))
    with pytest.raises(EtcdError, match="use etcd://"):
        await put(at(etcd.address, is_tls=True, ca_file=authority.file))


async def test_one_endpoint_with_a_wrong_certificate_does_not_keep_a_node_out(
    tls_etcd: EtcdServer, authority: Authority
) -> None:
    certificate, key = authority.sign("node")
    wrong = HostPort("localhost", tls_etcd.address.port)
    address = at(
        wrong,
        tls_etcd.address,
        is_tls=True,
        ca_file=authority.file,
        certificate_file=certificate,
        key_file=key,
    )
    await until_answering(address)
    with pytest.raises(EtcdRefusedError, match="is not trusted"):
        dead = HostPort("127.0.0.1", free_port())
        await put(
            at(wrong, dead, is_tls=True, ca_file=authority.file, certificate_file=certificate, key_file=key)
        )


def test_files_that_cannot_be_read_are_named(tmp_path: Path, authority: Authority) -> None:
    address = HostPort("127.0.0.1", 1)
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"missing.pem .*correct ca, cert and key"):
        EtcdClient(at(address, is_tls=True, ca_file=missing))
    with pytest.raises(ConfigurationError, match=r"text.pem"):
        EtcdClient(at(address, is_tls=True, ca_file=authority.file, certificate_file=text, key_file=text))
    with pytest.raises(ConfigurationError, match="correct password_file"):
        EtcdClient(at(address, user="exo", password_file=missing))


# --- passwords and rights ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Lets `exo` write below `exo/` and forgets who it is after two seconds."""
    arguments = ["--auth-token-ttl=1"]
    with running_etcd(tmp_path_factory.mktemp("etcd"), arguments=arguments) as server:
        server.demand_password("exo", "right")
        server.grant("exo", "exo/", password="right")
        yield server


async def test_passwords_and_rights(locked_etcd: EtcdServer, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("right\n")
    wrong.write_text("wrong\n")
    address = locked_etcd.address
    with pytest.raises(EtcdRefusedError, match=r"does not know who asks .*\?user=NAME&password_file=PATH"):
        await put(at(address))
    with pytest.raises(
        EtcdRefusedError, match="does not take the user and password; correct the password file"
    ):
        await put(at(address, user="exo", password_file=wrong))
    with pytest.raises(EtcdRefusedError, match="denies this user the right; grant the role readwrite"):
        await put(at(address, user="exo", password_file=right), key=b"other")
    assert (await put(at(address, user="exo", password_file=right))).succeeded


async def test_a_token_that_has_expired_is_renewed(locked_etcd: EtcdServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("right")
    client = EtcdClient(at(locked_etcd.address, user="exo", password_file=password))
    read = Txn(success=[operation(Range(key=b"exo/x"))])
    try:
        assert (await client.txn(read)).succeeded
        first, client._token = client._token, "forgotten.1"
        assert (await client.txn(read)).succeeded
        assert client._token not in (None, "forgotten.1", first)
        client._token = "forgotten.1"
        with pytest.raises(EtcdRefusedError, match="does not know who asks"):
            async for _ in client.watch(b"exo/", b"exo/~", 1):
                pass
        watch = client.watch(b"exo/", b"exo/~", 1)
        await anext(watch)
        await watch.aclose()
    finally:
        await client.close()


async def test_a_password_is_of_no_harm_where_none_is_wanted(etcd: EtcdServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("right")
    assert (await put(at(etcd.address, user="exo", password_file=password))).succeeded


# --- limits ------------------------------------------------------------------------------------------------------


async def test_a_full_etcd_says_how_to_make_room(tmp_path: Path) -> None:
    advice = "compact and defragment it, then `etcdctl alarm disarm`"
    with (
        running_etcd(tmp_path, quota_bytes=1024 * 1024) as server,
        pytest.raises(EtcdFullError, match=advice),
    ):
        for number in range(100):
            await put(at(server.address), key=f"exo/{number}".encode(), value=b"x" * 100_000)


async def test_a_request_that_is_too_large_says_which_limit_to_raise(etcd: EtcdServer) -> None:
    with pytest.raises(EtcdRefusedError, match="--max-request-bytes of 1572864 or more"):
        await put(at(etcd.address), value=b"x" * 1_600_000)
    assert (await put(at(etcd.address), value=b"x" * 1_500_000)).succeeded


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (14, "etcdserver: no leader", EtcdUnreachableError),
        (14, "etcdserver: leader changed", EtcdUnreachableError),
        (14, "etcdserver: request timed out", EtcdUnreachableError),
        (4, "context deadline exceeded", EtcdUnreachableError),
        (0, "rpc error: code = Unavailable desc = etcdserver: no leader", EtcdUnreachableError),
        (8, "etcdserver: too many requests", EtcdUnreachableError),
        (8, "etcdserver: mvcc: database space exceeded", EtcdFullError),
        (3, "etcdserver: duplicate key given in txn request", EtcdRefusedError),
        (2, "", EtcdRefusedError),
    ],
)
def test_what_etcd_says_is_sorted(code: int, text: str, kind: type[EtcdError]) -> None:
    fault = failure_fault("http://x", code, text)
    assert type(fault) is kind
    assert ";" in fault.message, "the next step"
    assert "etcdserver:" not in fault.message or "desc" in fault.message


def test_an_alert_over_certificates_is_told_from_a_lost_connection() -> None:
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required")
    assert "does not take this node's certificate" in transport_fault("https://x", alert).message
    assert isinstance(transport_fault("https://x", alert), EtcdRefusedError)
    lost = transport_fault("http://x", ConnectionResetError(errno.ECONNRESET, "reset"))
    assert (
        lost.message
        == "etcd at http://x ended the connection (Connection reset by peer); see whether it runs"
    )


def test_an_answer_that_is_no_json_is_quoted() -> None:
    fault = answer_fault("http://x", 502, b"<html>Bad Gateway\xff</html>")
    assert isinstance(fault, EtcdRefusedError) and "HTTP 502 '<html>Bad Gateway" in fault.message
