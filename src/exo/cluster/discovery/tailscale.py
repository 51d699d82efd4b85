"""Nodes in the same Tailscale network: every machine that is online there, and has something on the cluster port."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from loguru import logger

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.discovery.errors import StatusError
from exo.cluster.discovery.tailscale_status import (
    ReadStatus,
    TailscalePeer,
    TailscaleStatus,
    decode_status,
    read_status,
)
from exo.cluster.facts import Sighting
from exo.shared.types.nodes import HostPort

REFRESH_S = 15.0
KNOCK_TIMEOUT_S = 2.0
KNOCKS_AT_ONCE = 16
KNOCKS_PER_ROUND = 64
"""A network may have a thousand machines of which two are nodes: they are tried in turns."""
CLOSED_PAUSE_MAX_S = 600.0
OPEN_TRUST_S = 300.0
"""How long a machine that had something on the port is reported without knocking again."""
_NEVER_NODES = frozenset({"ios", "tvos", "js"})

Knock = Callable[[HostPort], Awaitable[bool]]
"""Says whether anything listens at an address."""


class _Door(msgspec.Struct):
    due_s: float = 0.0
    pause_s: float = 0.0
    is_open: bool = False


class TailscaleDiscovery(Discovery):
    """Reports the machines that are online and listen on the cluster port. Without Tailscale it is silent.

    Args:
        cluster_port: Where other nodes listen.
        read: Returns Tailscale's status.
        knock: Says whether something listens at an address, so that nobody waits for machines that are no nodes.
    """

    def __init__(
        self,
        *,
        cluster_port: int,
        refresh_s: float = REFRESH_S,
        read: ReadStatus = read_status,
        knock: Knock | None = None,
    ) -> None:
        self._cluster_port = cluster_port
        self._refresh_s = refresh_s
        self._read = read
        self._knock = knock or knock_by_tcp
        self._doors: dict[HostPort, _Door] = {}
        self._problem = ""

    async def run(self, facts: FactsSource, report: Report) -> None:
        while True:
            addresses = addresses_of(await self._status(), self._cluster_port)
            self._doors = {address: self._doors.get(address, _Door()) for address in addresses}
            await self._knock_where_due()
            for address, door in self._doors.items():
                if door.is_open:
                    report(Sighting(address=address, via="tailscale"))
            await asyncio.sleep(self._refresh_s)

    async def _status(self) -> TailscaleStatus:
        try:
            data = await self._read()
            found = decode_status(data) if data is not None else TailscaleStatus()
        except StatusError as error:
            if str(error) != self._problem:
                logger.info("nodes are not found by Tailscale: {}", error)
            self._problem = str(error)
            return TailscaleStatus()
        self._problem = ""
        return found

    async def _knock_where_due(self) -> None:
        now_s = asyncio.get_running_loop().time()
        due = sorted(
            (address for address, door in self._doors.items() if door.due_s <= now_s),
            key=lambda address: self._doors[address].due_s,
        )
        turns = asyncio.Semaphore(KNOCKS_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for address in due[:KNOCKS_PER_ROUND]:
                tasks.create_task(self._knock_at(address, turns, now_s))

    async def _knock_at(self, address: HostPort, turns: asyncio.Semaphore, now_s: float) -> None:
        async with turns:
            is_open = await self._knock(address)
        door = self._doors[address]
        door.is_open = is_open
        door.pause_s = 0.0 if is_open else min(max(self._refresh_s, 2 * door.pause_s), CLOSED_PAUSE_MAX_S)
        door.due_s = now_s + (OPEN_TRUST_S if is_open else door.pause_s)


def addresses_of(status: TailscaleStatus, cluster_port: int) -> list[HostPort]:
    """Return where nodes may be: one address of each machine that is online and could run one. Pure."""
    if status.backend_state != "Running":
        return []
    found = (_host(peer) for peer in (status.peer or {}).values() if peer.online)
    return [HostPort(host, cluster_port) for host in dict.fromkeys(_present(found))]


def _present(hosts: Iterable[str | None]) -> Iterable[str]:
    return (host for host in hosts if host)


def _host(peer: TailscalePeer) -> str | None:
    if peer.os.lower() in _NEVER_NODES:
        return None
    return min(peer.tailscale_ips or [], key=lambda ip: ":" in ip, default=None)  # IPv4 where there is one.


async def knock_by_tcp(address: HostPort) -> bool:
    """Connect and hang up; say whether that worked."""
    try:
        async with asyncio.timeout(KNOCK_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except (OSError, ValueError):
        return False
    writer.transport.abort()
    return True
