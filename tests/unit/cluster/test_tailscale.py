"""Finding nodes in a Tailscale network, against a stand-in of its socket, its application and its command."""

import asyncio
import base64
import json
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from exo.cluster.discovery.errors import StatusError
from exo.cluster.discovery.tailscale import (
    KNOCKS_PER_ROUND,
    OPEN_TRUST_S,
    TailscaleDiscovery,
    addresses_of,
    knock_by_tcp,
)
from exo.cluster.discovery.tailscale_status import Way, decode_status, find_app, find_way, read_status
from exo.shared.types.nodes import HostPort
from support.discoveries import Ear, eventually, facts, with_nodes
from support.virtual_time import run


@pytest.fixture
def lines() -> Iterator[list[str]]:
    said: list[str] = []
    handle = logger.add(lambda message: said.append(str(message)), level="INFO", format="{message}")
    yield said
    logger.remove(handle)


def peer(number: int, **changes: Any) -> dict[str, Any]:
    """Return a machine as Tailscale tells of it."""
    return {
        "ID": f"n{number}CNTRL",
        "PublicKey": f"nodekey:{number:064x}",
        "HostName": f"host-{number}",
        "DNSName": f"host-{number}.tail1234.ts.net.",
        "OS": "linux",
        "UserID": 1,
        "TailscaleIPs": [f"100.64.{number // 250}.{number % 250 + 1}", f"fd7a:115c:a1e0::{number:x}"],
        "AllowedIPs": [f"100.64.{number // 250}.{number % 250 + 1}/32"],
        "Addrs": None,
        "CurAddr": "",
        "Relay": "fra",
        "RxBytes": 0,
        "TxBytes": 0,
        "LastSeen": "2026-01-01T00:00:00Z",
        "Online": True,
        "ExitNode": False,
        "Active": False,
        "PeerAPIURL": None,
        "InNetworkMap": True,
    } | changes


def status(*peers: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(
        {
            "Version": "1.80.0",
            "TUN": True,
            "BackendState": "Running",
            "AuthURL": "",
            "TailscaleIPs": ["100.64.0.99"],
            "Self": peer(98, TailscaleIPs=["100.64.0.99"]),
            "Health": None,
            "MagicDNSSuffix": "tail1234.ts.net",
            "CurrentTailnet": {"Name": "someone@example.com", "MagicDNSEnabled": True},
            "Peer": {one["PublicKey"]: one for one in peers},
            "User": {"1": {"ID": 1, "LoginName": "someone@example.com"}},
        }
        | changes
    ).encode()


Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes, code: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {code}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def answering(body: bytes, code: str = "200 OK") -> Respond:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(response(body, code))

    return respond


class Daemon:
    """A stand-in for tailscaled: keeps the requests, and answers as a test wants."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.requests: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            if "\r\nHost: local-tailscaled.sock\r\n" not in head:
                writer.write(response(b"invalid localapi request", "403 Forbidden"))
            else:
                await self.respond(head, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(path: Path, respond: Respond) -> AsyncIterator[Daemon]:
    daemon = Daemon(respond)
    server = await asyncio.start_unix_server(daemon.serve, path)
    try:
        yield daemon
    finally:
        server.close()


def at(path: Path, *, timeout_s: float = 5.0) -> Callable[[], Awaitable[bytes | None]]:
    return lambda: read_status(lambda: Way(socket=str(path)) if path.exists() else None, timeout_s=timeout_s)


async def open_door(_: HostPort) -> bool:
    return True


async def test_machines_that_are_online_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "tailscaled.sock"
    machines = status(
        peer(1),
        peer(2, Online=False),
        peer(3, OS="iOS"),
        peer(4, TailscaleIPs=["fd7a:115c:a1e0::4"]),
        peer(5, TailscaleIPs=None),
        peer(6, OS="windows"),
    )
    ear = Ear()
    discovery = TailscaleDiscovery(cluster_port=7, refresh_s=0.02, read=at(path), knock=open_door)

    async def story() -> None:
        async with listening(path, answering(machines)) as daemon:
            await ear.until(lambda: len(ear.sightings) >= 6)
            assert ear.addresses() == {"100.64.0.2:7", "[fd7a:115c:a1e0::4]:7", "100.64.0.7:7"}
            assert {sighting.via for sighting in ear.sightings} == {"tailscale"}
            assert daemon.requests[0].startswith("GET /localapi/v0/status HTTP/1.1\r\n")
            daemon.respond = answering(status(peer(9)))
            await ear.until(lambda: "100.64.0.10:7" in ear.addresses())
            ear.sightings.clear()
            await ear.until(lambda: len(ear.sightings) >= 3)
            assert ear.addresses() == {"100.64.0.10:7"}

    await with_nodes({"a": discovery}, {"a": ear}, story)


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (answering(b"access denied", "403 Forbidden"), "--operator"),
        (answering(b"oops", "500 Internal Server Error"), "500"),
        (answering(b"{"), "cannot be read"),
        (answering(b'{"Peer": [1, 2]}'), "cannot be read"),
        (answering(b'{"Peer": ' + b'{"a":' * 20_000), "cannot be read"),
        (answering(b"\xff\xfe"), "cannot be read"),
    ],
)
async def test_what_cannot_be_used_is_said_once_and_tried_again(
    tmp_path: Path, lines: list[str], respond: Respond, words: str
) -> None:
    path = tmp_path / "tailscaled.sock"
    ear = Ear()
    discovery = TailscaleDiscovery(cluster_port=7, refresh_s=0.01, read=at(path), knock=open_door)

    async def story() -> None:
        async with listening(path, respond) as daemon:
            await eventually(lambda: len(daemon.requests) >= 3)
            assert len(lines) == 1
            assert words in lines[0]
            daemon.respond = answering(status(peer(1)))
            await ear.until(lambda: bool(ear.sightings))
        assert len(lines) == 1

    await with_nodes({"a": discovery}, {"a": ear}, story)


async def test_a_daemon_that_hangs_or_hangs_up_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "tailscaled.sock"
    ear = Ear()
    discovery = TailscaleDiscovery(
        cluster_port=7, refresh_s=0.01, read=at(path, timeout_s=0.1), knock=open_door
    )

    async def hang(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await asyncio.sleep(30)

    async def hang_up(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def story() -> None:
        async with listening(path, hang) as daemon:
            await eventually(lambda: bool(lines))
            assert "no answer within 0.1 s" in lines[0]
            daemon.respond = hang_up
            await eventually(lambda: len(lines) == 2)
            assert "broke" in lines[1]

    await with_nodes({"a": discovery}, {"a": ear}, story)


async def test_without_tailscale_it_is_silent(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "tailscaled.sock"
    ear = Ear()
    discovery = TailscaleDiscovery(cluster_port=7, refresh_s=0.01, read=at(path), knock=open_door)

    async def story() -> None:
        await asyncio.sleep(0.05)
        assert not ear.sightings
        async with listening(path, answering(status(peer(1)))):
            await ear.until(lambda: bool(ear.sightings))
        assert path.exists() or sys.version_info >= (3, 13)
        await asyncio.sleep(0.05)  # Its socket stays behind, and nobody listens.
        path.unlink(missing_ok=True)

    await with_nodes({"a": discovery}, {"a": ear}, story)
    assert lines == []


def test_a_thousand_machines_are_tried_in_turns() -> None:
    machines = decode_status(status(*(peer(number) for number in range(1000))))
    addresses = addresses_of(machines, 7)
    assert len(set(addresses)) == 1000
    nodes = {addresses[3], addresses[997]}
    knocks: list[tuple[float, HostPort]] = []
    at_once = 0
    most_at_once = 0

    async def knock(address: HostPort) -> bool:
        nonlocal at_once, most_at_once
        knocks.append((asyncio.get_running_loop().time(), address))
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.01 if address in nodes else 2.0)
        at_once -= 1
        return address in nodes

    async def read() -> bytes | None:
        return status(*(peer(number) for number in range(1000)))

    ear = Ear()

    async def story() -> None:
        discovery = TailscaleDiscovery(cluster_port=7, read=read, knock=knock)
        task = asyncio.ensure_future(discovery.run(facts, ear.report))
        await asyncio.sleep(3600)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())
    assert {sighting.address for sighting in ear.sightings} == nodes
    assert most_at_once <= 16
    first_s = {address: at_s for at_s, address in reversed(knocks)}
    assert len(first_s) == 1000
    assert max(first_s.values()) < 600, "everybody had a turn"
    assert len(knocks) <= 3600 / 15 * KNOCKS_PER_ROUND


def test_a_closed_door_is_knocked_at_ever_more_seldom_and_an_open_one_rarely() -> None:
    knocks: dict[str, list[float]] = {"100.64.0.2": [], "100.64.0.3": []}

    async def knock(address: HostPort) -> bool:
        knocks[address.host].append(asyncio.get_running_loop().time())
        return address.host == "100.64.0.3"

    async def read() -> bytes | None:
        return status(peer(1), peer(2))

    ear = Ear()

    async def story() -> None:
        discovery = TailscaleDiscovery(cluster_port=7, read=read, knock=knock)
        task = asyncio.ensure_future(discovery.run(facts, ear.report))
        await asyncio.sleep(3599)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())
    assert knocks["100.64.0.2"] == [0, 15, 45, 105, 225, 465, 945, 1545, 2145, 2745, 3345]
    assert knocks["100.64.0.3"] == [OPEN_TRUST_S * turn for turn in range(12)]
    assert len(ear.sightings) == 240


def test_a_network_that_is_switched_off_has_nobody() -> None:
    assert addresses_of(decode_status(status(peer(1), BackendState="Stopped")), 7) == []
    assert addresses_of(decode_status(status(Peer=None)), 7) == []
    assert addresses_of(decode_status(b"{}"), 7) == []


@given(st.binary(max_size=100))
def test_any_bytes_are_a_status_or_an_error(data: bytes) -> None:
    try:
        addresses_of(decode_status(data), 7)
    except StatusError as error:
        assert str(error)


async def test_knocking_says_whether_anybody_listens() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        address = HostPort(*server.sockets[0].getsockname()[:2])
        assert await knock_by_tcp(address)
    assert not await knock_by_tcp(address)
    assert not await knock_by_tcp(HostPort("not an address", 1))


async def test_the_application_of_macos_is_asked_with_its_password(tmp_path: Path, lines: list[str]) -> None:
    async def respond(head: str, writer: asyncio.StreamWriter) -> None:
        wanted = base64.b64encode(b":hunter2").decode()
        ok = f"\r\nAuthorization: Basic {wanted}\r\n" in head
        writer.write(response(status(peer(1))) if ok else response(b"", "401 Unauthorized"))

    daemon = Daemon(respond)
    server = await asyncio.start_server(daemon.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert find_app(tmp_path) is None
    (tmp_path / "ipnport").symlink_to(str(port))
    with pytest.raises(StatusError, match="administrators"):
        find_app(tmp_path)
    proof = tmp_path / f"sameuserproof-{port}"
    async with server:
        proof.write_text("wrong\n")
        with pytest.raises(StatusError, match="operator"):
            await read_status(lambda: find_app(tmp_path))
        proof.write_text("hunter2\n")
        data = await read_status(lambda: find_app(tmp_path))
        assert data is not None
        assert addresses_of(decode_status(data), 7) == [HostPort("100.64.0.2", 7)]
    assert await read_status(lambda: find_app(tmp_path)) is None, "the folder stays when it ends"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
async def test_where_there_is_only_a_command_it_is_asked(tmp_path: Path) -> None:
    def command(script: str) -> Callable[[], Way]:
        path = tmp_path / "tailscale"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return lambda: Way(command=str(path))

    (tmp_path / "answer.json").write_bytes(status(peer(1)))
    data = await read_status(command(f'[ "$*" = "status --json" ] && cat {tmp_path}/answer.json; exit 1'))
    assert data is not None
    assert addresses_of(decode_status(data), 7) == [HostPort("100.64.0.2", 7)]
    assert await read_status(command("exit 1")) is None
    with pytest.raises(StatusError, match="no answer within"):
        await read_status(command("exec sleep 30"), timeout_s=0.2)
    with pytest.raises(StatusError, match="cannot be started"):
        await read_status(lambda: Way(command=str(tmp_path / "missing")))


def test_each_platform_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket_file = tmp_path / "tailscaled.socket"
    monkeypatch.setattr("exo.cluster.discovery.tailscale_status.MAC_APP_FOLDER", tmp_path / "none")
    monkeypatch.setattr("exo.cluster.discovery.tailscale_status.WINDOWS_COMMAND", tmp_path / "tailscale.exe")
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(
        "exo.cluster.discovery.tailscale_status.SOCKETS",
        {"linux": ("/nowhere", str(socket_file)), "darwin": (str(socket_file),)},
    )
    assert [find_way(platform) for platform in ("linux", "darwin", "win32", "freebsd")] == [None] * 4
    socket_file.touch()
    assert find_way("linux") == find_way("darwin") == Way(socket=str(socket_file))
    (tmp_path / "tailscale.exe").touch()
    assert find_way("win32") == Way(command=str(tmp_path / "tailscale.exe"))
    monkeypatch.setattr("shutil.which", lambda _: r"D:\tailscale.exe")
    assert find_way("win32") == Way(command=r"D:\tailscale.exe")
