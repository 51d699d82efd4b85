"""Where the data plane listens: loopback reaches it in any case, and others are told an address that they can use."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exo.dataplane.listening import bind, reached_at, resolve
from exo.shared.types.nodes import HostPort


@contextmanager
def bound(host: str, port: int | tuple[int, int] = 0) -> Iterator[list[socket.socket]]:
    sockets = bind(host, port)
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def has_v6() -> bool:
    try:
        bind("::1", 0)[0].close()
    except OSError:
        return False
    return True


needs_v6 = pytest.mark.skipif(not has_v6(), reason="this host has no IPv6")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "127.0.0.2", "localhost"])
def test_one_socket_is_enough_for_loopback_and_for_everything(host: str) -> None:
    with bound(host) as sockets:
        (one,) = sockets
        assert answers("127.0.0.2" if host == "127.0.0.2" else "127.0.0.1", one.getsockname()[1])


@needs_v6
def test_all_addresses_of_ipv6_are_those_of_ipv4_too() -> None:
    with bound("::") as sockets:
        port = sockets[0].getsockname()[1]
        assert answers("::1", port)
        assert answers("127.0.0.1", port)


@needs_v6
def test_loopback_of_ipv6_alone() -> None:
    with bound("::1") as sockets:
        port = sockets[0].getsockname()[1]
        assert answers("::1", port)
        assert not answers("127.0.0.1", port)
        assert reached_at(sockets[0], "192.0.2.1") == HostPort("::1", port)


def test_a_single_address_comes_with_loopback_at_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    # As an address of a network card is treated; this one is here on every machine.
    monkeypatch.setattr("exo.dataplane.listening.is_loopback", lambda host: host == "127.0.0.1")
    with bound("127.0.0.3") as sockets:
        assert [one.getsockname()[0] for one in sockets] == ["127.0.0.3", "127.0.0.1"]
        assert len({one.getsockname()[1] for one in sockets}) == 1
        port = sockets[0].getsockname()[1]
        assert answers("127.0.0.1", port)
    with bound("127.0.0.1") as other:
        port = other[0].getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.3", port)
        # What the attempt had bound already is let go.
        socket.create_server(("127.0.0.3", port)).close()


def test_what_others_are_told() -> None:
    with bound("0.0.0.0") as wide, bound("127.0.0.1") as near:
        wide_port, near_port = (one.getsockname()[1] for one in (wide[0], near[0]))
        assert reached_at(wide[0], "192.0.2.1") == HostPort("192.0.2.1", wide_port)
        assert reached_at(wide[0], None) == HostPort("127.0.0.1", wide_port)
        # Nobody else could come here, whatever is advertised.
        assert reached_at(near[0], "192.0.2.1") == HostPort("127.0.0.1", near_port)


def test_a_range_of_ports() -> None:
    with bound("127.0.0.1") as probe:
        taken = probe[0].getsockname()[1]
        with bound("127.0.0.1", (taken, taken + 20)) as first:
            assert taken < first[0].getsockname()[1] <= taken + 20
        with pytest.raises(OSError, match=f"no port of {taken} to {taken} can be used"):
            bind("127.0.0.1", (taken, taken))


def test_an_address_of_another_machine() -> None:
    with pytest.raises(OSError, match="assign"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 300, "\udcff"])
def test_a_name_that_is_none(host: str) -> None:
    with pytest.raises(OSError):
        resolve(HostPort(host, 1))


def test_a_name_with_two_addresses_means_the_one_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*arguments: object, **options: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 7, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 7)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert resolve(HostPort("two", 7))[4] == ("127.0.0.1", 7)
