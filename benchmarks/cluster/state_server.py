"""The real API over a state of 1,000 nodes of 8 GPUs, in a process of its own.

Lines in: a number of nodes, whose next telemetry is folded in then. Lines out: `{"port": ...}` at the start, then one
for each line.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI

from benchmarks.cluster import large
from benchmarks.cluster.still_coordinator import StillCoordinator
from exo.api.app import create_app
from exo.api.context import StartInfo
from exo.api.server import ApiServer
from exo.settings import Settings
from exo.shared.apply import apply_frames


class Nobody:
    """Generates nothing."""

    async def start(self, first_stage: Any, request: Any) -> Any:
        """Not asked for here."""
        raise NotImplementedError


class Served:
    """An application of the large cluster, whose telemetry goes on when it is told to."""

    def __init__(self, home: Path) -> None:
        self.coordinator = StillCoordinator(large.node_id(0), large.measured())
        self._seq = 0
        self.app: FastAPI = create_app(
            coordinator=self.coordinator,
            generation_client=Nobody(),
            settings=Settings(home=home),
            started=StartInfo(node_id=large.node_id(0), exo_version="0", started_at=large.AT),
        )

    def publish(self, nodes: int) -> None:
        """Fold the next telemetry of so many nodes."""
        self._seq += 1
        self.coordinator.held, _ = apply_frames(
            self.coordinator.held, list(large.frames(self._seq, nodes=nodes))
        )


async def main() -> None:
    """Serve until stdin ends."""
    served = Served(Path())
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = ApiServer(served.app, served.app.state.context)
    started = anyio.Event()
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, bound, started.set)
        await started.wait()
        print(json.dumps({"port": bound.getsockname()[1]}), flush=True)
        while line := (await lines.readline()).strip():
            served.publish(int(line))
            print(json.dumps({"published": int(line)}), flush=True)
        server.stop()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
