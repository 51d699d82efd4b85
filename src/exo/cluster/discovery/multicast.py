"""Zero configuration on one host or network: every node says once a second, by UDP multicast, that it is there."""

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence

from loguru import logger

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.discovery.beacon import BEACON_BYTES_MAX, encode_beacon
from exo.cluster.discovery.groups import GROUP_V4, GROUP_V6, Group, Heard
from exo.cluster.discovery.hearing import Hearing
from exo.cluster.discovery.interfaces import Interface, read_interfaces
from exo.cluster.transport.addresses import is_loopback
from exo.shared.types.nodes import HostPort

INTERVAL_S = 1.0
INTERVAL_MAX_S = 4.0
"""Where many nodes speak, each speaks more seldom; still often enough for a sighting to stay fresh."""
CROWD = 250
"""Nodes within hearing from which on each speaks more seldom."""
NUDGE_PAUSE_S = 0.05
"""Least time between two beacons, however often the facts change; longer among more than NUDGE_CROWD nodes."""
NUDGE_CROWD = 20
REREAD_S = 10.0
"""How often the interfaces are read again, and a closed port is tried again."""

GroupMaker = Callable[[Heard], list[Group]]


class MulticastDiscovery(Discovery):
    """Beacons in both directions, on IPv4 and IPv6. What is heard is a hint; the connection's handshake decides.

    A node that can only be reached on this host (a loopback address) speaks on the loopback interface alone.

    Args:
        keys: Returns the keys that this node has now: beacons are made with all of them, and believed when they are
            made with any. Without keys the node only listens.
        port: UDP port that all nodes share.
        jitter: Returns a number from 0 to 1; keeps nodes from speaking in step.
        wall_clock: Seconds since 1970, told to others so that people find clocks that are wrong.
        interfaces: Returns this host's interfaces as they are now.
        make_groups: Makes the groups to take part in, given whom to call with what is heard.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[bytes]],
        *,
        port: int,
        interval_s: float = INTERVAL_S,
        reread_s: float = REREAD_S,
        jitter: Callable[[], float] = random.random,
        wall_clock: Callable[[], float] = time.time,
        interfaces: Callable[[], Sequence[Interface]] = read_interfaces,
        make_groups: GroupMaker | None = None,
    ) -> None:
        self._keys = keys
        self._port = port
        self._interval_s = interval_s
        self._reread_s = reread_s
        self._jitter = jitter
        self._wall_clock = wall_clock
        self._interfaces = interfaces
        self._make_groups = make_groups or self._both_groups
        self._wake = asyncio.Event()
        self._hearing = Hearing(keys, via="multicast")
        self._said: set[str] = set()

    @property
    def counts(self) -> Counter[str]:
        """Beacons heard, by what became of them: `heard`, `malformed`, `other_secret`, `other_version`."""
        return self._hearing.counts

    def nudge(self) -> None:
        self._wake.set()

    async def run(self, facts: FactsSource, report: Report) -> None:
        loop = asyncio.get_running_loop()

        def heard(data: bytes, source: HostPort) -> None:
            news = self._hearing.hear(data, source, facts(), loop.time())
            if news is not None:
                if news.is_new:
                    # Answer at once, so that the new one does not have to wait for the next regular beacon.
                    self.nudge()
                report(news.item)

        groups = self._make_groups(heard)
        try:
            while True:
                await self._look_around(groups)
                self._hearing.forget(loop.time())
                await self._speak(groups, facts, loop.time() + self._reread_s)
        finally:
            for group in groups:
                group.close()

    def _both_groups(self, heard: Heard) -> list[Group]:
        return [
            Group(socket.AF_INET, GROUP_V4, self._port, heard),
            Group(socket.AF_INET6, GROUP_V6, self._port, heard),
        ]

    async def _look_around(self, groups: list[Group]) -> None:
        """Open what is not open, and take the interfaces as they are now."""
        interfaces = self._interfaces()
        problems: list[str] = []
        for group in groups:
            try:
                if not group.is_open:
                    await group.open()
                if not group.use(interfaces):
                    problems.append(
                        f"{group.family_name}: {group.join_problem or 'no interface has an address'}"
                    )
            except OSError as error:
                problems.append(f"{group.family_name}: {error.strerror or error}")
        if len(problems) == len(groups):
            self._say_once(
                "hear",
                f"nodes are not found by multicast here ({'; '.join(problems)}); name them with --peer",
            )
        elif problems and not self._said:
            self._say_once("family", f"nodes are found by multicast, but not on {problems[0]}")

    async def _speak(self, groups: list[Group], facts: FactsSource, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            self._wake.clear()
            keys = self._keys()
            if keys:
                self._send(groups, encode_beacon(keys, facts(), now_s=self._wall_clock()), facts)
            pause_s, interval_s = pace(self._hearing.node_count, self._interval_s)
            await asyncio.sleep(pause_s)
            try:
                async with asyncio.timeout(interval_s * (0.85 + 0.2 * self._jitter())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _send(self, groups: list[Group], beacon: bytes, facts: FactsSource) -> None:
        if len(beacon) > BEACON_BYTES_MAX:
            self._say_once(
                "long",
                f"a beacon of {len(beacon)} bytes is too long to be sent; choose a shorter --namespace",
            )
            return
        is_near = is_loopback(facts().cluster_address.host)
        problems = [group.send(beacon, is_loopback_only=is_near) for group in groups if group.has_interfaces]
        if problems and all(problem is not None for problem in problems) and "hear" not in self._said:
            self._say_once("send", f"beacons cannot be sent here ({problems[0]}); name peers with --peer")

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.info("{}", text)


def pace(node_count: int, interval_s: float) -> tuple[float, float]:
    """Return the least pause after a beacon and the usual time to the next one, in seconds, among so many nodes. Pure.

    So a thousand nodes send 250 beacons a second, and 400 when all of them have news at once.
    """
    pause_s = NUDGE_PAUSE_S * max(1.0, node_count / NUDGE_CROWD)
    longest_s = max(interval_s, INTERVAL_MAX_S)
    return pause_s, min(longest_s, interval_s * max(1.0, node_count / CROWD))
