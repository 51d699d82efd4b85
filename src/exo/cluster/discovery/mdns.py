"""Finding nodes by mDNS and DNS-SD (RFC 6762, RFC 6763): also where a network passes its own services on by name."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import zeroconf
from loguru import logger
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from exo.cluster.discovery.announced import (
    SERVICE_TYPE,
    Announced,
    Announcement,
    announce,
    judge_announced,
    read_announced,
)
from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.discovery.interfaces import Interface, read_interfaces
from exo.cluster.transport.addresses import is_loopback

REPEAT_S = 15.0
"""How often those that are there are reported: one that could not be reached may be by then."""
REREAD_S = 10.0
"""How often the interfaces are read again."""
RETRY_S = 30.0
"""How long to wait where mDNS is not possible before it is tried again."""
UPDATE_PAUSE_S = 1.0
"""Least time between two announcements, however often the facts change."""
SERVICES_MAX = 256
"""Nodes that are kept; one is enough to find all others of its cluster."""
RESOLVE_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 3.0

_Unusable = (OSError, RuntimeError, zeroconf.Error)


class MdnsDiscovery(Discovery):
    """Announces this node as a service and reports the others. What they say is a hint; the handshake decides.

    A node that can only be reached on this host (a loopback address) takes no part until it can be reached by others:
    its neighbours on this host hear its beacons, and the port of mDNS is open to the network on whatever interface one
    takes part.

    Args:
        only_on: Addresses of the interfaces to take part on, whatever the node's address; None: all there are.
        repeat_s: How often those that are there are reported again.
        interfaces: Returns this host's interfaces as they are now.
    """

    def __init__(
        self,
        *,
        only_on: Sequence[str] | None = None,
        repeat_s: float = REPEAT_S,
        reread_s: float = REREAD_S,
        retry_s: float = RETRY_S,
        interfaces: Callable[[], Sequence[Interface]] = read_interfaces,
    ) -> None:
        self._only_on = only_on
        self._repeat_s = repeat_s
        self._reread_s = reread_s
        self._retry_s = retry_s
        self._interfaces = interfaces
        self._wake = asyncio.Event()
        self._has_changed = asyncio.Event()
        self._names: dict[str, bool] = {}
        """Services of which something is new: True where they are there, False where they are gone."""
        self._known: dict[str, Announced] = {}
        self._attempts: dict[str, int] = {}
        self._said: set[str] = set()

    @property
    def known(self) -> list[Announced]:
        """Who is announced now, this node among them."""
        return list(self._known.values())

    def nudge(self) -> None:
        self._wake.set()

    async def run(self, facts: FactsSource, report: Report) -> None:
        while True:
            await self._until_reachable(facts)
            try:
                await self._take_part(facts, report)
            except* _Unusable as group:
                error = _first(group)
                text = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._say_once(f"nodes are not found by mDNS here ({text})")
            await asyncio.sleep(self._retry_s)

    async def _until_reachable(self, facts: FactsSource) -> None:
        while self._only_on is None and is_loopback(facts().cluster_address.host):
            await self._wake_within(self._reread_s)

    async def _wake_within(self, seconds: float) -> bool:
        """Wait for a nudge for so long; say whether it came."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _take_part(self, facts: FactsSource, report: Report) -> None:
        self._names.clear()
        self._known.clear()
        async with _opened(self._only_on) as mdns:
            browser = AsyncServiceBrowser(mdns.zeroconf, [SERVICE_TYPE], handlers=[self._changed])
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._announce(mdns, facts))
                    tasks.create_task(self._resolve(mdns, facts, report))
                    tasks.create_task(self._repeat(facts, report))
            finally:
                await browser.async_cancel()

    # --- announcing ---------------------------------------------------------------------------------------------

    async def _announce(self, mdns: AsyncZeroconf, facts: FactsSource) -> None:
        """Keep this node's announcement and the interfaces as they ought to be."""
        interfaces = self._interfaces()
        announced: Announcement | None = None
        while True:
            wanted = announce(facts(), interfaces)
            if wanted != announced:
                await self._register(mdns, wanted, is_update=announced is not None)
                announced = wanted
            await asyncio.sleep(UPDATE_PAUSE_S)
            if not await self._wake_within(self._reread_s):
                before, interfaces = interfaces, self._interfaces()
                if interfaces != before and self._only_on is None:
                    await mdns.async_update_interfaces()

    async def _register(self, mdns: AsyncZeroconf, wanted: Announcement, *, is_update: bool) -> None:
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{wanted.label}.{SERVICE_TYPE}",
            port=wanted.port,
            properties=dict(wanted.properties),
            server=wanted.server,
            parsed_addresses=list(wanted.hosts),
        )
        is_registered = is_update and mdns.zeroconf.registry.async_get_info_name(info.key) is not None
        put: Any = mdns  # Its types are not whole.
        try:
            await (
                await (put.async_update_service(info) if is_registered else put.async_register_service(info))
            )
        except zeroconf.NonUniqueNameException:
            self._say_once(
                f"another node is announced by mDNS under this node's id {wanted.label}: a copied data directory; "
                "delete its file node_id"
            )

    # --- hearing ------------------------------------------------------------------------------------------------

    def _changed(
        self,
        zeroconf: zeroconf.Zeroconf,
        service_type: str,
        name: str,
        state_change: zeroconf.ServiceStateChange,
    ) -> None:
        if name in self._names or len(self._names) < SERVICES_MAX:
            self._names[name] = state_change.name != "Removed"
            self._has_changed.set()

    async def _resolve(self, mdns: AsyncZeroconf, facts: FactsSource, report: Report) -> None:
        """Look up what is new, one after the other: mostly it came along with the name."""
        while True:
            while self._names:
                name = next(iter(self._names))
                if not self._names.pop(name):
                    self._known.pop(name, None)
                    self._attempts.pop(name, None)
                    continue
                info = AsyncServiceInfo(SERVICE_TYPE, name)
                if not await info.async_request(mdns.zeroconf, RESOLVE_TIMEOUT_S * 1000):
                    continue
                found = read_announced(info.port, info.parsed_scoped_addresses(), info.decoded_properties)
                if found is not None and (name in self._known or len(self._known) < SERVICES_MAX):
                    self._known[name] = found
                    self._report(name, found, self._interfaces(), facts, report)
            self._has_changed.clear()
            await self._has_changed.wait()

    async def _repeat(self, facts: FactsSource, report: Report) -> None:
        while True:
            await asyncio.sleep(self._repeat_s)
            if self._known:
                interfaces = self._interfaces()
                for name, found in list(self._known.items()):
                    self._report(name, found, interfaces, facts, report)

    def _report(
        self,
        name: str,
        found: Announced,
        interfaces: Sequence[Interface],
        facts: FactsSource,
        report: Report,
    ) -> None:
        attempt = self._attempts.get(name, 0)
        self._attempts[name] = attempt + 1
        item = judge_announced(found, facts(), interfaces, attempt, via="mdns")
        if item is not None:
            report(item)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.info("{}", text)


@asynccontextmanager
async def _opened(only_on: Sequence[str] | None) -> AsyncGenerator[AsyncZeroconf]:
    """Take part in mDNS; say goodbye at the end.

    Raises:
        OSError, RuntimeError, zeroconf.Error: There is no network, or no multicast.
    """
    mdns = _open(only_on)
    try:
        await mdns.zeroconf.async_wait_for_start()
        yield mdns
    finally:
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True), contextlib.suppress(*_Unusable):
            await mdns.async_close()


def _open(only_on: Sequence[str] | None) -> AsyncZeroconf:
    if only_on is not None:
        return AsyncZeroconf(interfaces=list(only_on))
    try:
        return AsyncZeroconf(ip_version=zeroconf.IPVersion.All)
    except _Unusable:
        return AsyncZeroconf(ip_version=zeroconf.IPVersion.V4Only)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
