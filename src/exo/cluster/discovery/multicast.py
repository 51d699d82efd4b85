"""Zero configuration on one host or network: every node says once a second, by UDP multicast, that it is there."""

import asyncio
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable

from loguru import logger

from exo.cluster.discovery.base import Discovery, FactsSource, Report
from exo.cluster.discovery.beacon import BEACON_BYTES_MAX, BeaconFault, decode_beacon, encode_beacon
from exo.cluster.facts import PeerSeen, Sighting
from exo.cluster.transport.tcp import is_loopback
from exo.shared.types.nodes import HostPort

GROUP = "239.255.101.120"
INTERVAL_S = 1.0
NUDGE_PAUSE_S = 0.05
"""Least time between two beacons, however often the facts change."""
SOURCES_MAX = 256

_DETAILS: dict[BeaconFault, str] = {
    "malformed": "something that is no beacon of exo was sent to the discovery port",
    "other_version": "it runs another release of exo, with another beacon",
    "other_secret": "it has another host secret: it belongs to another user or host, or has another "
    "EXO_HOST_SECRET_FILE",
}


class MulticastDiscovery(Discovery):
    """Beacons in both directions. What is heard is a hint; the connection's handshake decides.

    A node that can only be reached on this host (a loopback address) speaks on the loopback interface alone.

    Args:
        secret: The host secret, under which beacons are made.
        port: UDP port that all nodes share.
        group: IPv4 multicast group.
        jitter: Returns a number from 0 to 1; keeps nodes from speaking in step.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        port: int,
        group: str = GROUP,
        interval_s: float = INTERVAL_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._secret = secret
        self._port = port
        self._group = group
        self._interval_s = interval_s
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._known_boots: dict[str, None] = {}
        self.counts: Counter[str] = Counter()
        """Beacons heard, by what became of them: `heard`, `malformed`, `other_secret`, `other_version`."""

    def nudge(self) -> None:
        self._wake.set()

    async def run(self, facts: FactsSource, report: Report) -> None:
        loop = asyncio.get_running_loop()
        try:
            receiver = _open_receiver(self._group, self._port)
        except OSError as error:
            logger.info("nodes are not found by multicast here ({}); name them with --peer", error)
            await asyncio.Event().wait()
            return
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Receiver(lambda data, source: self._heard(data, source, report)), sock=receiver
            )
        except BaseException:
            receiver.close()
            raise
        senders = _open_senders(facts().cluster_address)
        try:
            await self._speak(facts, senders)
        finally:
            transport.close()
            for sender in senders:
                sender.close()

    async def _speak(self, facts: FactsSource, senders: list[socket.socket]) -> None:
        has_failed = False
        while True:
            beacon = encode_beacon(self._secret, facts())
            failures = 0
            for sender in senders:
                try:
                    sender.sendto(beacon, (self._group, self._port))
                except OSError as error:
                    failures += 1
                    if failures == len(senders) and not has_failed:
                        has_failed = True
                        logger.info("beacons cannot be sent here ({}); name peers with --peer", error)
            await asyncio.sleep(NUDGE_PAUSE_S)
            try:
                async with asyncio.timeout(self._interval_s * (0.85 + 0.2 * self._jitter())):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _heard(self, data: bytes, source: tuple[str, int], report: Report) -> None:
        if len(data) > BEACON_BYTES_MAX:
            data = b""
        found = decode_beacon(self._secret, data)
        if isinstance(found, str):
            self.counts[found] += 1
            address = HostPort(source[0], source[1])
            report(
                PeerSeen(address=address, via="multicast", status=found, detail=_DETAILS[found], age_s=0.0)
            )
            return
        self.counts["heard"] += 1
        if found.boot_id not in self._known_boots:
            # Somebody new: answer at once, so that it does not have to wait for the next regular beacon.
            self._known_boots[found.boot_id] = None
            if len(self._known_boots) > SOURCES_MAX:
                del self._known_boots[next(iter(self._known_boots))]
            self.nudge()
        report(Sighting(address=found.cluster_address, facts=found, via="multicast"))


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, heard: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._heard = heard

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._heard(data, (addr[0], addr[1]))


def _open_receiver(group: str, port: int) -> socket.socket:
    """Return a socket that hears the group on the loopback and the default interface.

    Raises:
        OSError: The port cannot be shared, or neither interface takes the membership.
    """
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        # Several nodes of one host hear the same port.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Bound to the group, the socket hears nothing but the group; Windows has no such binding.
        receiver.bind(("" if sys.platform == "win32" else group, port))
        failure: OSError | None = None
        joined = 0
        for interface in ("127.0.0.1", "0.0.0.0"):
            membership = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton(interface))
            try:
                receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
                joined += 1
            except OSError as error:
                failure = error
        if not joined and failure is not None:
            raise failure
        receiver.setblocking(False)
    except BaseException:
        receiver.close()
        raise
    return receiver


def _open_senders(cluster_address: HostPort) -> list[socket.socket]:
    """Return a socket for each interface on which the address can be reached."""
    interfaces = ["127.0.0.1"] if is_loopback(cluster_address.host) else ["127.0.0.1", "0.0.0.0"]
    senders: list[socket.socket] = []
    for interface in interfaces:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        try:
            sender.setblocking(False)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
        except OSError:
            sender.close()
            continue
        senders.append(sender)
    return senders
