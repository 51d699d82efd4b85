"""Nodes that propose without end, and what has to be true of everything that was acknowledged to them."""

import asyncio
from collections import Counter
from collections.abc import Iterable

from exo.shared.errors import NoMasterError
from exo.shared.types.events import DeviceLost, LogEntry
from support.simulated_cluster import History, SimulatedNode, Simulation, history_of, tagged


def tag_of(entry: LogEntry) -> str | None:
    """What tells a decision made by `tagged` from all others."""
    is_tagged = isinstance(entry.event, DeviceLost) and entry.event.device_id.endswith("/none")
    return entry.event.reason if is_tagged else None


class Workload:
    """Every node tells one fact after the other, for as long as it runs, across its restarts."""

    def __init__(self, simulation: Simulation, *, pause_s: tuple[float, float] = (0.002, 0.06)) -> None:
        self.acknowledged: dict[str, tuple[History, int]] = {}
        """By tag: in which history, and at which index at the latest."""
        self._simulation = simulation
        self._pause_s = pause_s
        self._tasks: list[asyncio.Task[None]] = []
        self._is_resting = False
        self._number = 0

    def start(self, *hosts: str) -> None:
        """Begin, at some hosts or at all."""
        nodes = self._simulation.nodes
        self._is_resting = False
        self._tasks += [asyncio.ensure_future(self._work(nodes[host])) for host in hosts or nodes]

    async def rest(self) -> None:
        """Stop. What is under way without a master is given up, and may be committed all the same."""
        self._is_resting = True
        if self._tasks:
            _, waiting = await asyncio.wait(self._tasks, timeout=1)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            if not task.cancelled():
                task.result()

    def count(self, host: str) -> int:
        """How many proposals of a host were acknowledged."""
        return sum(tag.startswith(f"{host}-") for tag in self.acknowledged)

    async def _work(self, node: SimulatedNode) -> None:
        while not self._is_resting:
            await asyncio.sleep(self._simulation.random.uniform(*self._pause_s))
            if not node.is_running:
                continue
            self._number += 1
            up, tag = node.up, f"{node.host}-{self._number}"
            try:
                index = await up.propose([tagged(node.host, tag)], cause_id="work")
            except NoMasterError:
                continue
            assert up.state.index >= index
            self.acknowledged[tag] = (history_of(up), index)

    def check(self, entries: Iterable[LogEntry]) -> None:
        """Everything acknowledged is there once, no later than was said; nothing else is there twice.

        Args:
            entries: The whole log.
        """
        indices: dict[str, list[int]] = {}
        for entry in entries:
            tag = tag_of(entry)
            if tag is not None:
                indices.setdefault(tag, []).append(entry.index)
        lost = [tag for tag in self.acknowledged if tag not in indices]
        assert not lost, f"acknowledged and lost: {lost}"
        twice = [tag for tag, places in indices.items() if len(places) > 1]
        assert not twice, f"there twice: {twice}"
        late = [tag for tag, (_, index) in self.acknowledged.items() if indices[tag][0] > index]
        assert not late, f"later than was said: {late}"


def whole_log(node: SimulatedNode) -> list[LogEntry]:
    """Everything in a node's log, which was not compacted."""
    entries = list(node.store.log.read())
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    repeated = [one for one, count in Counter(entry.event_id for entry in entries).items() if count > 1]
    assert not repeated
    return entries
