"""Hosts on a switch, made of network namespaces: each cable can be pulled, and each direction between two be lost."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from uuid import uuid4

from support.network_namespaces import ip

NOWHERE = "02:00:00:00:00:ff"
"""No host has this address: what is sent there is lost, and nobody is told."""


class SwitchedHosts:
    """Hosts 0, 1, ...; the interface of each is called `cable`. No interface or address of this machine is touched."""

    def __init__(self, name: str, count: int) -> None:
        self._switch = f"{name}-s"
        self._hosts = [f"{name}-{number}" for number in range(count)]

    @staticmethod
    def address(host: int) -> str:
        """Return the IPv4 address of a host, of the range that is meant for documents."""
        return f"198.51.100.{host + 1}"

    def within(self, host: int) -> Sequence[str]:
        """Return the beginning of a command line that runs the rest on a host."""
        return ("ip", "netns", "exec", self._hosts[host])

    def pull_out(self, host: int) -> None:
        """Pull a host's cable out: it sees that, the others see nothing."""
        ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def plug_in(self, host: int) -> None:
        ip("-n", self._switch, "link", "set", f"port{host}", "up")

    def lose(self, source: int, target: int) -> None:
        """Lose everything that a host sends to another one from now on."""
        self._send_to(source, target, NOWHERE)

    def mend(self, source: int, target: int) -> None:
        self._send_to(source, target, _mac(target))

    def make(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge0", "up")
        for number, host in enumerate(self._hosts):
            port = f"port{number}"
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            end = ("type", "veth", "peer", "name", "cable", "address", _mac(number), "netns", host)
            ip("-n", self._switch, "link", "add", port, *end)
            ip("-n", self._switch, "link", "set", port, "master", "bridge0", "up")
            ip("-n", host, "address", "add", f"{self.address(number)}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
        for source, target in permutations(range(len(self._hosts)), 2):
            self.mend(source, target)

    def remove(self) -> None:
        """Remove what there is of it. Interfaces go with the namespace that they are in."""
        for name in (*self._hosts, self._switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)

    def _send_to(self, source: int, target: int, mac: str) -> None:
        neighbour = (self.address(target), "lladdr", mac, "dev", "cable", "nud", "permanent")
        ip("-n", self._hosts[source], "neighbour", "replace", *neighbour)


def _mac(host: int) -> str:
    return f"02:00:00:00:00:{host + 1:02x}"


@contextmanager
def switched_hosts(count: int) -> Iterator[SwitchedHosts]:
    """Make hosts on a switch, and take them away at the end."""
    hosts = SwitchedHosts(f"exo-{uuid4().hex[:6]}", count)
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()
