"""Three real processes on a real etcd: masters stopped and killed, etcd killed; nothing lost, nothing twice."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exo.cluster.etcd.address import parse_etcd_url
from exo.cluster.etcd.client import EtcdClient
from exo.cluster.etcd.records import Keys
from exo.cluster.etcd.store import EtcdStore
from exo.cluster.secret import load_host_secret
from exo.shared.types.events import DeviceLost, LogEntry, TermOpened
from support.etcd_server import EtcdServer, running_etcd

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[2]


class Node:
    """One process, and everything that it has said."""

    def __init__(self, name: str, home: Path, url: str) -> None:
        self.name = name
        self.committed: dict[str, int] = {}
        self.said: list[dict[str, Any]] = []
        self._errors = home / f"{name}.err"
        self._arguments = [
            sys.executable,
            str(TESTS / "support" / "etcd_process.py"),
            name,
            str(home / "own" / "secret"),
            url,
            "1",
        ]

    async def start(self) -> None:
        self.said.clear()
        with self._errors.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        self._reading = asyncio.ensure_future(self._read(self.process))
        await self.until(lambda: bool(self.find("node_id")), "it takes part")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.endswith(b"\n"):  # Else it was cut short by a kill.
                said = json.loads(line)
                if "committed" in said:
                    self.committed[said["committed"]] = said["index"]
                else:
                    self.said.append(said)

    def find(self, key: str) -> list[dict[str, Any]]:
        return [said for said in self.said if key in said]

    @property
    def is_leading(self) -> bool:
        """As it said last."""
        told = self.find("leading")
        return bool(told) and told[-1]["leading"]

    async def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def ask(self, line: str, key: str) -> dict[str, Any]:
        count = len(self.find(key))
        await self.tell(line)
        await self.until(lambda: len(self.find(key)) > count, f"{key} is said")
        return self.find(key)[-1]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition. How long it may take is for safety only: other things run on this machine."""
        try:
            async with asyncio.timeout(20):
                while not condition():  # noqa: ASYNC110 - of other processes there are no events
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pytest.fail(f"{self.name}: not in time: {what}: {self._errors.read_text()[-2000:]}")

    async def kill(self) -> None:
        """`kill -9`, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading
        if self.process.stdin is not None:
            self.process.stdin.close()
            with contextlib.suppress(ConnectionError):
                await self.process.stdin.wait_closed()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[tuple[EtcdServer, list[Node]]]:
    with running_etcd(tmp_path / "etcd") as server:
        nodes = [Node(name, tmp_path, server.url) for name in ("one", "two", "three")]
        try:
            load_host_secret(tmp_path / "own" / "secret")
            await asyncio.gather(*(node.start() for node in nodes))
            yield server, nodes
        finally:
            await asyncio.gather(*(node.kill() for node in nodes))


async def one_that_leads(nodes: list[Node]) -> Node:
    await nodes[0].until(lambda: any(node.is_leading for node in nodes), "one of them leads")
    return next(node for node in nodes if node.is_leading)


async def until_all_commit(nodes: list[Node]) -> None:
    for node in nodes:
        count = len(node.committed)
        await node.until(lambda node=node, count=count: len(node.committed) > count + 8, "it commits")


async def until_one(nodes: list[Node]) -> None:
    async with asyncio.timeout(20):
        while True:
            reports = [await node.ask("report", "digest") for node in nodes]
            names = sorted(node.name for node in nodes)
            if (
                len({(report["index"], report["digest"], report["master"]) for report in reports}) == 1
                and reports[0]["master"] is not None
                and all(report["connected"] == names for report in reports)
            ):
                return
            await asyncio.sleep(0.05)


async def whole_log(url: str) -> list[LogEntry]:
    client = EtcdClient(parse_etcd_url(url), timeout_s=5.0)
    store, entries = EtcdStore(client, Keys("exo", "test")), list[LogEntry]()
    try:
        while True:
            tail = await store.read_after(len(entries))
            entries += tail.entries
            if tail.is_complete:
                return entries
    finally:
        await client.close()


async def test_through_kills_and_stops_nothing_is_lost_and_nothing_is_there_twice(
    site: tuple[EtcdServer, list[Node]],
) -> None:
    server, nodes = site
    for node in nodes:
        await node.tell("work")
    await until_all_commit(nodes)

    stopped = await one_that_leads(nodes)
    others = [node for node in nodes if node is not stopped]
    os.kill(stopped.process.pid, signal.SIGSTOP)
    await one_that_leads(others)
    await until_all_commit(others)
    os.kill(stopped.process.pid, signal.SIGCONT)
    await stopped.until(lambda: not stopped.is_leading, "it knows that it leads no longer")
    await until_all_commit(nodes)

    killed = await one_that_leads(nodes)
    others = [node for node in nodes if node is not killed]
    await killed.kill()
    killed.said.clear()
    await one_that_leads(others)
    await until_all_commit(others)
    await killed.start()
    await killed.tell("work")
    await until_all_commit(nodes)

    server.kill()
    for node in nodes:
        await node.until(lambda node=node: not node.is_leading, "nobody leads without etcd")
    server.start()
    await until_all_commit(nodes)

    for node in nodes:
        await node.ask("rest", "resting")
    await until_one(nodes)
    entries = await whole_log(server.url)
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    terms = [entry.term for entry in entries]
    assert terms == sorted(terms)
    opened = Counter(entry.term for entry in entries if isinstance(entry.event, TermOpened))
    assert set(opened.values()) == {1} and len(opened) >= 4
    places = {entry.event.reason: entry.index for entry in entries if isinstance(entry.event, DeviceLost)}
    assert len(places) == sum(isinstance(entry.event, DeviceLost) for entry in entries), "none is there twice"
    for node in nodes:
        assert node.committed
        for tag, index in node.committed.items():
            assert places[tag] == index, "what was acknowledged is where it was said to be"
