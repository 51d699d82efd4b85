"""A process that does nothing but take part in a cluster: what the core itself costs, without engines and API.

    python -m benchmarks.cluster.coordinator_process HOME LISTEN [PEER ...]

Lines in: JSON objects with the command in `do`; see `Commands`. Lines out: JSON objects with one key, what they are
about. All times are the machine's monotonic clock, which its processes share.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import msgspec
from anyio.abc import TaskGroup

from benchmarks.cluster.assembly import Place, make_coordinator
from exo.cluster.coordinator import Coordinator
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.events import DeviceLost, LogEntry
from exo.shared.types.ids import DeviceId

TAG = "benchmark "
"""How the reason of a decision begins that was made up here."""


def tell(**what: object) -> None:
    """Say one thing to the process that started this one."""
    print(json.dumps(what), flush=True)


class Commands:
    """Each public method is a command; its arguments are the other fields of the line."""

    def __init__(self, coordinator: Coordinator, tasks: TaskGroup) -> None:
        self._coordinator = coordinator
        self._tasks = tasks
        self._run = uuid4().hex[:8]
        self._made = 0
        self._is_watching = False
        self._submitted: dict[str, float] = {}
        self._applied: dict[str, float] = {}

    def report(self) -> None:
        """Say what this node knows."""
        state, leadership = self._coordinator.state, self._coordinator.leadership
        tell(
            report={
                "node_id": self._coordinator.node_id,
                "index": state.index,
                "term": leadership.term,
                "master": leadership.master_node_id,
                "cluster_id": state.cluster_id,
                "connected": sorted(key for key, node in state.nodes.items() if node.is_connected),
                "voters": sorted(state.voters.members),
            }
        )

    def commit(self) -> None:
        """Have one decision committed, and say when it was."""

        async def commit() -> None:
            index = await self._propose([self._decision()])
            term = self._coordinator.leadership.term
            tell(committed={"at_s": time.monotonic(), "index": index, "term": term})

        self._tasks.start_soon(commit)

    def record(self) -> None:
        """Note from now on when each made-up decision is folded in here."""
        feed = self._coordinator.feed()

        async def record() -> None:
            async for item in feed:
                if isinstance(item, LogEntry) and isinstance(item.event, DeviceLost):
                    self._applied[item.event.reason] = time.monotonic()
            tell(failed="the recording fell behind")

        self._tasks.start_soon(record)
        tell(recording=True)

    def submit(self, rate: float, seconds: float) -> None:
        """Propose decisions one by one at a steady rate, whether or not earlier ones are committed."""

        async def submit() -> None:
            started_s = time.monotonic()
            async with anyio.create_task_group() as proposals:
                for number in range(int(rate * seconds)):
                    await anyio.sleep(max(0.0, started_s + number / rate - time.monotonic()))
                    decision = self._decision()
                    self._submitted[decision.reason] = time.monotonic()
                    proposals.start_soon(self._propose, [decision])
            tell(submitted=len(self._submitted))

        self._tasks.start_soon(submit)

    def times(self, file: str) -> None:
        """Write down what was submitted here and what was applied here, and when."""
        Path(file).write_bytes(msgspec.msgpack.encode((self._submitted, self._applied)))
        tell(times=len(self._applied))

    def flood(self, events: int, batch: int, in_flight: int) -> None:
        """Propose as much as goes, so many batches at a time, and say how long that took."""

        async def flood() -> None:
            left = events

            async def propose_all() -> None:
                nonlocal left
                while left > 0:
                    size = min(batch, left)
                    left -= size
                    await self._propose([self._decision() for _ in range(size)])

            started_s = time.monotonic()
            async with anyio.create_task_group() as workers:
                for _ in range(in_flight):
                    workers.start_soon(propose_all)
            tell(flooded={"started_s": started_s, "at_s": time.monotonic()})

        self._tasks.start_soon(flood)

    def wait_index(self, index: int, cluster_id: str) -> None:
        """Say when this node has everything up to an index of a cluster."""

        async def wait() -> None:
            async for state in self._coordinator.changes():
                if state.index >= index and state.cluster_id == cluster_id:
                    tell(reached={"at_s": time.monotonic(), "index": state.index})
                    return

        self._tasks.start_soon(wait)

    def watch(self) -> None:
        """Say from now on who is connected and who leads, whenever that changes; told again, it goes on."""
        if self._is_watching:
            return
        self._is_watching = True

        async def watch() -> None:
            before = None
            async for state in self._coordinator.changes():
                connected = sorted(key for key, node in state.nodes.items() if node.is_connected)
                now = (connected, self._coordinator.leadership.master_node_id)
                if now != before:
                    before = now
                    tell(seen={"at_s": time.monotonic(), "connected": connected, "master": now[1]})

        self._tasks.start_soon(watch)

    def _decision(self) -> DeviceLost:
        """A decision that changes nothing and can be told from all others."""
        self._made += 1
        return DeviceLost(
            node_id=self._coordinator.node_id,
            device_id=DeviceId("none"),
            reason=f"{TAG}{self._run} {self._made}",
        )

    async def _propose(self, decisions: list[DeviceLost]) -> int:
        while True:
            try:
                return await self._coordinator.propose(decisions, cause_id="benchmark")
            except NoMasterError:
                await anyio.sleep(0.01)


async def main(place: Place) -> None:
    """Take part until stdin ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    started_s = time.monotonic()
    try:
        coordinator = await make_coordinator(place)
        async with anyio.create_task_group() as tasks:
            await tasks.start(coordinator.run)
            tell(started={"node_id": coordinator.node_id, "at_s": started_s})
            commands = Commands(coordinator, tasks)
            while line := (await lines.readline()).strip():
                command: dict[str, Any] = json.loads(line)
                getattr(commands, command.pop("do"))(**command)
            tasks.cancel_scope.cancel()
    except* ExoError as group:
        error = group.exceptions[0]
        tell(failed=str(error))


if __name__ == "__main__":
    own = Place.parse(sys.argv[1:])
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(own))
    else:
        uvloop.run(main(own))
