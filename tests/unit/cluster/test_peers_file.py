"""Peers from a file: what may stand in it, what is said of what may not, and changes while a node runs."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from exo.cluster.discovery.peers_file import (
    FILE_BYTES_MAX,
    PEERS_MAX,
    NamedPeer,
    PeersFileDiscovery,
    parse_peers,
    read_peers,
)
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort
from support.discoveries import Ear, eventually, with_nodes


@pytest.fixture
def lines() -> Iterator[list[str]]:
    said: list[str] = []
    handle = logger.add(lambda message: said.append(str(message)), level="WARNING", format="{message}")
    yield said
    logger.remove(handle)


ATTIC, CELLAR = NamedPeer(HostPort("attic", 7)), NamedPeer(HostPort("10.0.0.2", 52416), "cellar")


@pytest.mark.parametrize(
    ("text", "is_toml"),
    [
        ('["attic:7", {"address": "10.0.0.2", "name": "cellar"}]', False),
        ('{"peers": [{"address": "attic:7"}, {"address": "10.0.0.2:52416", "name": "cellar"}]}', False),
        ('["attic:7", "attic:7", {"address": "10.0.0.2", "name": "cellar"}]', False),
        ('peers = ["attic:7", {address = "10.0.0.2", name = "cellar"}]', True),
        ('[[peers]]\naddress = "attic:7"\n[[peers]]\naddress = "10.0.0.2"\nname = "cellar"\n', True),
    ],
)
def test_the_same_peers_in_every_form(text: str, is_toml: bool) -> None:
    assert parse_peers(text, default_port=52416, is_toml=is_toml) == (ATTIC, CELLAR)


def test_addresses_of_ipv6_are_addresses() -> None:
    found = parse_peers('["[fe80::1%eth0]:7", "fd00::1"]', default_port=9, is_toml=False)
    assert [peer.address for peer in found] == [HostPort("fe80::1%eth0", 7), HostPort("fd00::1", 9)]


@pytest.mark.parametrize(
    ("text", "is_toml", "words"),
    [
        ('[\n"attic:7",\n"cellar:8\n]', False, "line 3"),
        ("[1, 2", False, "line 1, column 6"),
        ('peers = ["attic:7"\nnext = 1', True, "line 2"),
        ('["attic:7", "cellar:0"]', False, "peers[1]: 'cellar:0' is not an address"),
        ('["attic:7", 8]', False, "peers[1] is missing or not text"),
        ('[{"name": "attic"}]', False, "peers[0].address is missing"),
        ('[{"address": "attic:x"}]', False, "peers[0].address: 'attic:x'"),
        ('[{"address": "attic", "name": 7}]', False, "peers[0].name is not text"),
        ('[{"addres": "attic"}]', False, "peers[0].addres is no field"),
        ('{"peer": []}', False, "'peer' is no field"),
        ("{}", False, "no list of peers"),
        ("7", False, "no list of peers"),
        ("", False, "line 1"),
        ("[[peers]]\nname = 'attic'", True, "peers[0].address is missing"),
    ],
)
def test_an_error_names_the_line_or_the_field(text: str, is_toml: bool, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_peers(text, default_port=1, is_toml=is_toml)
    assert words in str(caught.value)


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_peers_or_an_error(text: str, is_toml: bool) -> None:
    try:
        parse_peers(text, default_port=1, is_toml=is_toml)
    except ValueError as error:
        assert str(error)


def test_files_that_are_none(tmp_path: Path) -> None:
    def error_of(data: bytes | None, name: str = "peers.json") -> str:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ConfigurationError) as caught:
            read_peers(path, default_port=1)
        assert str(path) in caught.value.message
        return caught.value.message

    assert "No such file" in error_of(None, "missing.json")
    assert "UTF-8" in error_of(b'["\xff:1"]')
    assert "longer than" in error_of(b" " * (FILE_BYTES_MAX + 1))
    assert f"{PEERS_MAX + 1} peers" in error_of(b"[" + b",".join([b'"a:1"'] * (PEERS_MAX + 1)) + b"]")
    assert error_of(b"[" * 100_000)
    assert "cannot read" in error_of(None, ".")
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf["attic:7"]')
    assert read_peers(tmp_path / "marked.json", default_port=1) == (ATTIC,)


async def test_a_change_is_noticed_and_a_bad_file_changes_nothing(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "peers.json"
    path.write_text('["attic:7"]')
    ear = Ear()
    discovery = PeersFileDiscovery(path, default_port=1, poll_s=0.01, pause_s=(0.01, 0.02))

    def replace(text: str) -> None:
        draft = tmp_path / "draft"
        draft.write_text(text)
        draft.replace(path)

    async def until_reported_again() -> None:
        ear.sightings.clear()
        await ear.until(lambda: len(ear.sightings) >= 3)

    async def story() -> None:
        await ear.until(lambda: ear.addresses() == {"attic:7"})
        replace('["cellar:8"]')
        await ear.until(lambda: "cellar:8" in ear.addresses())
        replace('["cellar:8", ')
        await eventually(lambda: bool(lines))
        await until_reported_again()
        assert ear.addresses() == {"cellar:8"}
        path.unlink()
        await eventually(lambda: len(lines) == 2)
        await until_reported_again()
        assert ear.addresses() == {"cellar:8"}
        replace('["garden:9"]')
        await ear.until(lambda: "garden:9" in ear.addresses())
        await until_reported_again()
        assert ear.addresses() == {"garden:9"}

    await with_nodes({"a": discovery}, {"a": ear}, story)
    assert len(lines) == 2, lines
    assert "line 1" in lines[0]
    assert "before stay" in lines[0]
    assert "No such file" in lines[1]


async def test_a_file_that_comes_later_is_read_then(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "peers.toml"
    ear = Ear()

    async def story() -> None:
        await eventually(lambda: bool(lines))
        path.write_text('peers = ["attic"]')
        await ear.until(lambda: ear.addresses() == {"attic:52416"})

    discovery = PeersFileDiscovery(path, default_port=52416, poll_s=0.01)
    await with_nodes({"a": discovery}, {"a": ear}, story)
    assert len(lines) == 1
    assert "no peer is tried" in lines[0]


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "peers.json"
    path.write_text('["attic:7"]')
    discovery = PeersFileDiscovery(path, default_port=1)
    assert asyncio.run(discovery._reread())  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr("exo.cluster.discovery.peers_file.read_peers", None)
    assert not asyncio.run(discovery._reread())  # pyright: ignore[reportPrivateUsage]
    os.utime(path, ns=(1, 1))
    with pytest.raises(TypeError):
        asyncio.run(discovery._reread())  # pyright: ignore[reportPrivateUsage]
