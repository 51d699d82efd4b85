"""The 1,000 observers in one process: each has a connection of its own and publishes; some note how late they hear.

In truth each is on a machine of its own. Here they share one core, which could not even read for all of them in time,
and the lag would be the measuring process's. So one in twenty, spread over the order of the connections, is an observer
as it is in a node, and of the others what arrives is left with the kernel until there is much of it, and thrown away.

    python -m benchmarks.cluster.observer_crowd HOME ADDRESS COUNT

Says when all are connected, and how late decisions were when the node hangs up.
"""

import asyncio
import json
import resource
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import anyio

from benchmarks.cluster import large
from benchmarks.cluster.assembly import make_transport
from benchmarks.cluster.measuring import percentile
from exo.cluster.errors import ConnectionLostError, DialError
from exo.cluster.transport.base import Connection, Transport
from exo.cluster.transport.tcp_connection import TcpConnection
from exo.cluster.wire import Entries, Publish, decode_from_listener, encode
from exo.shared.garbage import settle_garbage_collector
from exo.shared.types.events import TelemetryFrame
from exo.shared.types.nodes import HostPort

PUBLISH_S = 2.0
WARM_S = 1.0
DIALS_AT_ONCE = 16
DIALS_EACH = 5
LISTENING_EVERY = 20
UNREAD_BYTES = 1 << 14
KEEP_S = 0.25


class Drain(asyncio.BufferedProtocol):
    """Stands between a socket and its connection: takes what comes without looking at it."""

    _buffer = bytearray(1 << 18)

    def __init__(self, connection: TcpConnection) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection._pulse.heard()  # pyright: ignore[reportPrivateUsage]

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    @classmethod
    def put_before(cls, connection: TcpConnection) -> None:
        """From now on the connection only sends."""
        transport = connection._transport  # pyright: ignore[reportPrivateUsage]
        assert transport is not None
        transport.set_protocol(cls(connection))
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, UNREAD_BYTES)

    @staticmethod
    async def keep(connections: Sequence[Connection]) -> None:
        """What is with the kernel was heard, too: nobody is to be taken for lost."""
        while True:
            for connection in connections:
                cast("TcpConnection", connection)._pulse.heard()  # pyright: ignore[reportPrivateUsage]
            await anyio.sleep(KEEP_S)


class Crowd:
    """All observers."""

    def __init__(self) -> None:
        self.lags_ms = array("d")
        self._first_s: float | None = None
        self._last = (b"", 0.0)

    async def observe(self, connection: Connection) -> None:
        """Hear everything until the node hangs up. A message counts with the oldest decision in it."""
        try:
            while True:
                data = await connection.receive()
                now_s = time.monotonic()
                made_s = self._made_s(data)
                self._first_s = self._first_s or made_s
                if made_s - self._first_s > WARM_S:
                    self.lags_ms.append((now_s - made_s) * 1000)
        except ConnectionLostError:
            return

    def _made_s(self, data: bytes) -> float:
        """All get the same bytes: in truth each on a machine of its own, so here they are decoded once."""
        if data != self._last[0]:
            message = decode_from_listener(data)
            assert isinstance(message, Entries)
            self._last = (data, float(message.entries[0].cause_id))
        return self._last[1]

    async def publish(self, connection: Connection, frame: TelemetryFrame, delay_s: float) -> None:
        """Publish a node's devices every 2 s."""
        seq = 0
        await anyio.sleep(delay_s)
        try:
            while True:
                seq += 1
                message = Publish(
                    frame=TelemetryFrame(
                        node_id=frame.node_id, boot_id=frame.boot_id, seq=seq, events=frame.events
                    )
                )
                await connection.send(encode(message))
                await anyio.sleep(PUBLISH_S)
        except ConnectionLostError:
            return


async def main(home: Path, address: HostPort, count: int) -> None:
    """Connect all, then observe until the end."""
    transport, crowd = make_transport(home), Crowd()
    connections: list[Connection] = []
    limit = anyio.CapacityLimiter(DIALS_AT_ONCE)
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(_dial, transport, address, limit, connections)
    settle_garbage_collector()  # In truth each is a process of its own, without a thousand connections.
    print(json.dumps({"connected": len(connections)}), flush=True)
    frames = large.frames(1, nodes=count)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    async with anyio.create_task_group() as keeping:
        silent = [one for number, one in enumerate(connections) if number % LISTENING_EVERY]
        keeping.start_soon(Drain.keep, silent)
        async with anyio.create_task_group() as tasks:
            for number, (connection, frame) in enumerate(zip(connections, frames, strict=True)):
                if number % LISTENING_EVERY == 0:
                    tasks.start_soon(crowd.observe, connection)
                else:
                    Drain.put_before(cast("TcpConnection", connection))
                tasks.start_soon(crowd.publish, connection, frame, PUBLISH_S * number / count)
        keeping.cancel_scope.cancel()
    share = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
    lags = crowd.lags_ms
    lag = {"p50_ms": percentile(lags, 50), "p99_ms": percentile(lags, 99)}
    print(json.dumps({"heard": {**lag, "messages": len(lags), "cpu_percent": share * 100}}), flush=True)


async def _dial(
    transport: Transport, address: HostPort, limit: anyio.CapacityLimiter, connections: list[Connection]
) -> None:
    async with limit:
        for rest in reversed(range(DIALS_EACH)):
            try:
                connections.append(await transport.dial(address, timeout_s=30))
                return
            except DialError:  # The node takes only so many strangers at a time.
                if not rest:
                    raise


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    own = (Path(sys.argv[1]), HostPort.parse(sys.argv[2]), int(sys.argv[3]))
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(*own))
    else:
        uvloop.run(main(*own))
