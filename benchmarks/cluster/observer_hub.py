"""The node that 1,000 observers follow: sends them decisions, takes their telemetry in.

    python -m benchmarks.cluster.observer_hub HOME

Says its address; told for how many seconds and how many decisions a second, it sends, says what that cost, and ends.
"""

import asyncio
import json
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import anyio
import psutil

from benchmarks.cluster import large
from benchmarks.cluster.assembly import make_transport
from exo.cluster.board import Board
from exo.cluster.errors import ConnectionLostError
from exo.cluster.hosting import CROWD_PAUSE_S
from exo.cluster.lane import Lane
from exo.cluster.transport.base import Connection, Listener
from exo.cluster.wire import Publish, decode_from_dialer, encode_entries
from exo.shared.garbage import settle_garbage_collector
from exo.shared.types.events import DeviceLost, LogEntry
from exo.shared.types.ids import DeviceId, EventId
from exo.shared.types.nodes import HostPort


class Hub:
    """One side of all the connections."""

    def __init__(self) -> None:
        self.board = Board(large.node_id(0), feed_backlog=8192, is_checking_invariants=False)
        self.board.state = large.formed()
        self.lane = Lane(self.board, large.node_id(0), large.BOOT_ID)
        self.connections: list[Connection] = []
        self.frames = 0
        self._index = self.board.state.index

    async def accept(self, listener: Listener) -> None:
        """Take everybody in who comes."""
        async with anyio.create_task_group() as tasks:
            while True:
                connection = await listener.accept()
                self.connections.append(connection)
                tasks.start_soon(self._receive, connection)

    async def _receive(self, connection: Connection) -> None:
        try:
            while True:
                message = decode_from_dialer(await connection.receive())
                assert isinstance(message, Publish)
                self.lane.frame_received(message.frame)
                self.frames += 1
        except ConnectionLostError:
            self.connections.remove(connection)

    async def send(self, seconds: float, events_per_s: float) -> None:
        """Send what is due to all, as often as a master would; the cause of a decision says when it was made."""
        started_s = time.monotonic()
        made = 0
        while (now_s := time.monotonic()) - started_s < seconds:
            due = int((now_s - started_s) * events_per_s) + 1
            entries = [self._entry(started_s + number / events_per_s) for number in range(made, due)]
            made = due
            if self.lane.ring.has_gathered:
                self.lane.ring.close_tick(1)
            for data in encode_entries(1, entries) if entries else ():
                for connection in tuple(self.connections):
                    with suppress(ConnectionLostError):  # Then it is no more one of them.
                        await connection.send(data)
            pause_s = CROWD_PAUSE_S * len(self.connections)
            until_s = max(now_s + pause_s, started_s + made / events_per_s)
            await anyio.sleep(max(0.0, until_s - time.monotonic()))

    def _entry(self, made_s: float) -> LogEntry:
        self._index += 1
        event = DeviceLost(node_id=large.node_id(1), device_id=DeviceId("none"), reason="a benchmark")
        return LogEntry(
            index=self._index,
            term=1,
            event_id=EventId(f"{self._index:032x}"),
            cause_id=repr(made_s),
            origin=large.node_id(1),
            seq=self._index,
            at=large.AT,
            event=event,
        )


async def main(home: Path) -> None:
    """Serve, measure, end."""
    hub = Hub()
    async with await make_transport(home).listen(HostPort("127.0.0.1", 0)) as listener:
        print(json.dumps({"address": str(listener.address)}), flush=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.accept, listener)
            line = await anyio.to_thread.run_sync(sys.stdin.readline)
            # Nothing: the other side did not come about.
            seconds, events_per_s = map(float, line.split() or (0, 1))
            await hub.send(1.0, events_per_s)
            hub.frames, cpu_s, wall_s = 0, time.process_time(), time.perf_counter()
            await hub.send(seconds, events_per_s)
            share = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
            memory_mb = psutil.Process().memory_info().rss / 1e6
            used = {"cpu_percent": share * 100, "memory_mb": memory_mb, "frames": hub.frames}
            used["observers"] = len(hub.connections)
            print(json.dumps({"used": used}), flush=True)
            for connection in tuple(hub.connections):
                connection.close("that was all")
            await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settle_garbage_collector()  # As a node does.
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        uvloop.run(main(Path(sys.argv[1])))
