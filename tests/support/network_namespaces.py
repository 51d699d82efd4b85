"""Two hosts made of network namespaces, and a cable between them. Needs rights to make them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest


def ip(*arguments: str) -> None:
    """Run `ip`; raises CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def require_namespaces() -> None:
    """Skip the test, with the reason, where namespaces cannot be made."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (iproute2)")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    probe = f"exo-{uuid4().hex[:8]}"
    try:
        ip("netns", "add", probe)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    ip("netns", "del", probe)


class TwoHosts:
    """Namespaces `left` and `right`; the interface of each is called `cable`, and is down at first."""

    def __init__(self, name: str) -> None:
        self.left, self.right = f"{name}-l", f"{name}-r"
        self.hosts = (self.left, self.right)

    def within(self, host: str, *command: str) -> list[str]:
        """Return a command line that runs in a namespace."""
        return ["ip", "netns", "exec", host, *command]

    def run(self, host: str, *command: str) -> None:
        subprocess.run(self.within(host, *command), check=True, capture_output=True, timeout=20)

    def without_v6(self) -> None:
        for host in self.hosts:
            self.run(host, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")

    def with_v4(self) -> None:
        for number, host in enumerate(self.hosts, start=1):
            self.run(host, "ip", "address", "add", f"10.99.0.{number}/24", "dev", "cable")

    def plug_in(self) -> None:
        for host in self.hosts:
            self.run(host, "ip", "link", "set", "cable", "up")


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Make two hosts with a cable between them, and take them away at the end."""
    hosts = TwoHosts(f"exo-{uuid4().hex[:6]}")
    try:
        for host in hosts.hosts:
            ip("netns", "add", host)
            hosts.run(host, "ip", "link", "set", "lo", "up")
            # No duplicate address detection: an address is there at once.
            hosts.run(host, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        ip(
            "link",
            "add",
            "cable",
            "netns",
            hosts.left,
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            hosts.right,
        )
        yield hosts
    finally:
        for host in hosts.hosts:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True, timeout=20)
