"""Finding each other between two hosts, in real processes and network namespaces: IPv4, IPv6, and late cables."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.network_namespaces import TwoHosts, require_namespaces, two_hosts

TESTS = Path(__file__).parents[1]
PROCESS = TESTS / "support" / "discovery_process.py"
WAIT_S = 20.0

pytestmark = [pytest.mark.privileged, pytest.mark.slow]


class Node:
    """A process that looks for others on one of the hosts."""

    def __init__(self, hosts: TwoHosts, host: str, name: str, way: str, address: str) -> None:
        self.told: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            hosts.within(host, sys.executable, str(PROCESS), name, way, address),
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent / 'src'}"},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.told.append(json.loads(line))
                self._changed.notify_all()

    def until(self, condition: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait until what was told fulfils a condition."""
        deadline_s = time.monotonic() + WAIT_S
        with self._changed:
            while not condition(self.told):
                rest_s = deadline_s - time.monotonic()
                assert rest_s > 0, self.told[-10:]
                self._changed.wait(rest_s)

    def addresses(self) -> set[str]:
        return {one["address"] for one in self.told if one.get("kind") == "Sighting"}

    def logs(self) -> list[str]:
        return [one["log"] for one in self.told if "log" in one]

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


class Stage:
    """Two hosts, and the nodes that run on them."""

    def __init__(self, hosts: TwoHosts) -> None:
        self.hosts = hosts
        self.nodes: list[Node] = []

    def start(self, way: str, *, left: str, right: str) -> tuple[Node, Node]:
        pair = (
            Node(self.hosts, self.hosts.left, "left", way, left),
            Node(self.hosts, self.hosts.right, "right", way, right),
        )
        self.nodes += pair
        for node in pair:
            node.until(lambda told: any("started" in one for one in told))
        return pair


@pytest.fixture
def stage() -> Iterator[Stage]:
    require_namespaces()
    with two_hosts() as hosts:
        made = Stage(hosts)
        try:
            yield made
        finally:
            for node in made.nodes:
                node.end()


def test_by_multicast_on_ipv4_alone(stage: Stage) -> None:
    stage.hosts.without_v6()
    stage.hosts.with_v4()
    stage.hosts.plug_in()
    left, right = stage.start("multicast", left="0.0.0.0:7", right="0.0.0.0:7")
    left.until(lambda _: left.addresses() == {"10.99.0.2:7"})
    right.until(lambda _: right.addresses() == {"10.99.0.1:7"})


def test_by_multicast_on_ipv6_alone(stage: Stage) -> None:
    stage.hosts.plug_in()
    left, right = stage.start("multicast", left="[::]:7", right="[::]:7")
    for node in (left, right):
        node.until(lambda _, node=node: bool(node.addresses()))
        (address,) = node.addresses()
        assert address.startswith("[fe80::")
        assert address.endswith("%cable]:7")


@pytest.mark.parametrize("way", ["multicast", "mdns"])
def test_a_cable_that_is_plugged_in_later_is_noticed(stage: Stage, way: str) -> None:
    stage.hosts.without_v6()
    left, right = stage.start(way, left="0.0.0.0:7", right="0.0.0.0:7")
    stage.hosts.with_v4()
    stage.hosts.plug_in()
    left.until(lambda _: "10.99.0.2:7" in left.addresses())
    right.until(lambda _: "10.99.0.1:7" in right.addresses())


def test_by_mdns(stage: Stage) -> None:
    stage.hosts.with_v4()
    stage.hosts.plug_in()
    left, right = stage.start("mdns", left="[::]:7", right="0.0.0.0:7")
    left.until(lambda _: "10.99.0.2:7" in left.addresses())
    right.until(lambda _: "10.99.0.1:7" in right.addresses())


@pytest.mark.parametrize("way", ["multicast", "mdns"])
def test_a_node_of_loopback_is_not_heard_outside(stage: Stage, way: str) -> None:
    stage.hosts.with_v4()
    stage.hosts.plug_in()
    left, right = stage.start(way, left="127.0.0.1:7", right="0.0.0.0:7")
    third = Node(stage.hosts, stage.hosts.left, "third", way, "0.0.0.0:8")
    stage.nodes.append(third)
    right.until(lambda _: "10.99.0.1:8" in right.addresses())
    if way == "multicast":
        third.until(lambda told: any(one.get("node_id") == "left" for one in told))
        left.until(lambda told: any(one.get("node_id") == "right" for one in told))
    assert not any(one.get("node_id") == "left" or ":7" in one.get("address", "") for one in right.told)


@pytest.mark.parametrize("way", ["multicast", "mdns"])
def test_a_host_without_any_network_says_so_once(stage: Stage, way: str) -> None:
    for host in stage.hosts.hosts:
        stage.hosts.run(host, "ip", "address", "flush", "dev", "lo")
        stage.hosts.run(host, "ip", "link", "set", "lo", "down")
    left, right = stage.start(way, left="0.0.0.0:7", right="0.0.0.0:7")
    left.until(lambda _: bool(left.logs()))
    stage.hosts.without_v6()
    stage.hosts.with_v4()
    stage.hosts.plug_in()
    left.until(lambda _: "10.99.0.2:7" in left.addresses())
    right.until(lambda _: "10.99.0.1:7" in right.addresses())
    assert len(left.logs()) == 1, left.logs()
