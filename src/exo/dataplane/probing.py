"""Both ends of a measured transfer between two nodes: one sends bytes of no use, the other says how long they took.

The receiver's clock counts, from the first part of a transfer to its last: what a round trip and the first packet take
is no part of the bandwidth.
"""

import math
import os
import time
from asyncio import Future, get_running_loop
from collections.abc import Callable
from typing import NamedTuple

import anyio

from exo.dataplane.codec import Payload
from exo.dataplane.connection import FrameConnection
from exo.dataplane.errors import NodeUnreachableError, ProbeRefusedError, ProtocolError
from exo.dataplane.frames import Frame, Probe, ProbeData, ProbeRefused, ProbeTaken
from exo.shared.types.ids import NodeId

PROBE_BYTES_MAX = 256 * 1024 * 1024
"""Of one transfer; who sends more is refused."""
_PART_BYTES_MAX = 256 * 1024
_PART_BYTES_MIN = 4 * 1024
_PARTS_MIN = 16
"""The first one is not counted."""


class Transfer(NamedTuple):
    """What was measured: so many bytes came within that time."""

    size_bytes: int
    duration_s: float


class _Coming:
    def __init__(self, connection: FrameConnection, probe: Probe) -> None:
        self.connection = connection
        self.probe = probe
        self.received_bytes = 0
        self.first_bytes = 0
        self.began_at_s = 0.0


class ProbeDesk:
    """The receiving end, one for a node: it takes one transfer at a time, and none while the node has work.

    Args:
        clock: Seconds, as fine as there is.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._coming: _Coming | None = None
        self.obstacle: Callable[[], str | None] = lambda: None
        """Says why no transfer can be taken now, for people; None: one can be."""

    def frame_received(self, connection: FrameConnection, frame: Frame, payload: Payload) -> None:
        """Take a frame of a connection that is there for measuring.

        Raises:
            ProtocolError: It has no place there.
        """
        if isinstance(frame, Probe):
            self._begin(connection, frame)
        elif isinstance(frame, ProbeData):
            self._take(connection, frame, payload)
        else:
            raise ProtocolError(f"a peer that measures sent {type(frame).__name__}, which has no place here")

    def connection_lost(self, connection: FrameConnection) -> None:
        """Forget what was under way on it."""
        if self._coming is not None and self._coming.connection is connection:
            self._coming = None

    def _begin(self, connection: FrameConnection, probe: Probe) -> None:
        if not 0 <= probe.size_bytes <= PROBE_BYTES_MAX:
            raise ProtocolError(f"a peer wants to send {probe.size_bytes} bytes to measure the way here")
        reason = self.obstacle()
        if self._coming is not None and self._coming.connection is not connection:
            reason = reason or "another node is measuring the way here"
        if reason is not None:
            connection.send(ProbeRefused(number=probe.number, message=reason))
        elif probe.size_bytes == 0:
            connection.send(ProbeTaken(number=probe.number, size_bytes=0, duration_s=0.0))
        else:
            self._coming = _Coming(connection, probe)

    def _take(self, connection: FrameConnection, frame: ProbeData, payload: Payload) -> None:
        coming = self._coming
        if coming is None or coming.connection is not connection or coming.probe.number != frame.number:
            return  # What was sent before its sender heard that it is refused.
        now_s = self._clock()
        if coming.received_bytes == 0:
            coming.began_at_s, coming.first_bytes = now_s, len(payload)
        coming.received_bytes += len(payload)
        if coming.received_bytes > coming.probe.size_bytes:
            raise ProtocolError("a peer sent more than it had said, to measure the way here")
        reason = self.obstacle()
        if reason is not None:
            self._coming = None
            connection.send(ProbeRefused(number=frame.number, message=reason))
        elif coming.received_bytes == coming.probe.size_bytes:
            self._coming = None
            connection.send(
                ProbeTaken(
                    number=frame.number,
                    size_bytes=coming.received_bytes - coming.first_bytes,
                    duration_s=now_s - coming.began_at_s,
                )
            )


class ProbeStream:
    """The sending end; see `GenerationClient.open_probe`. One transfer at a time.

    Args:
        node_id: Who takes it, for messages.
        clock: Seconds, as fine as there is.
    """

    def __init__(self, node_id: NodeId, clock: Callable[[], float] = time.perf_counter) -> None:
        self._node_id = node_id
        self._clock = clock
        self._connection: FrameConnection | None = None
        self._number = 0
        self._answer: Future[ProbeTaken] | None = None
        self._part = memoryview(b"")

    @property
    def own_host(self) -> str:
        """The address of this host that the way begins at."""
        return "" if self._connection is None else self._connection.own_host

    @property
    def peer_host(self) -> str:
        """The address of the other host."""
        return "" if self._connection is None else self._connection.host

    async def ping(self, *, timeout_s: float) -> float:
        """Return what a round trip takes, in seconds.

        Raises:
            ProbeRefusedError: The node has other things to do.
            NodeUnreachableError: It did not answer in time, or was lost.
        """
        begun_s = self._clock()
        await self._ask(0, timeout_s)
        return self._clock() - begun_s

    async def transfer(self, size_bytes: int, *, timeout_s: float) -> Transfer:
        """Send so many bytes, and return how long they took on the way.

        Raises:
            ProbeRefusedError: The node has other things to do, or has had since it began.
            NodeUnreachableError: It did not take all in time, or was lost.
            ValueError: It is nothing, or too much.
        """
        if not 0 < size_bytes <= PROBE_BYTES_MAX:
            raise ValueError(f"cannot measure with {size_bytes} bytes")
        begun_s = self._clock()
        taken = await self._ask(size_bytes, timeout_s)
        elapsed_s = self._clock() - begun_s
        if not (
            0 <= taken.size_bytes < size_bytes and math.isfinite(taken.duration_s) and taken.duration_s >= 0
        ):
            raise NodeUnreachableError(
                f"the node {self._node_id} says that it took something else; try again"
            )
        # The time at the other end is a part of the time at this one, whatever it says.
        return Transfer(taken.size_bytes, min(taken.duration_s, elapsed_s))

    async def _ask(self, size_bytes: int, timeout_s: float) -> ProbeTaken:
        connection = self._connection
        if connection is None or not connection.is_open:
            raise NodeUnreachableError(f"the connection to the node {self._node_id} is gone")
        self._number += 1
        self._answer = answer = get_running_loop().create_future()
        try:
            with anyio.fail_after(timeout_s):
                connection.send(Probe(number=self._number, size_bytes=size_bytes))
                await self._send(connection, size_bytes, answer)
                return await answer
        except TimeoutError:
            raise NodeUnreachableError(
                f"the node {self._node_id} did not take {size_bytes} bytes within {timeout_s:g} s"
            ) from None
        finally:
            self._answer = None

    async def _send(self, connection: FrameConnection, size_bytes: int, answer: "Future[ProbeTaken]") -> None:
        part_bytes = max(_PART_BYTES_MIN, min(_PART_BYTES_MAX, size_bytes // _PARTS_MIN))
        if len(self._part) < part_bytes:
            # Nothing on the way can make less of it.
            self._part = memoryview(os.urandom(part_bytes))
        frame = ProbeData(number=self._number)
        left_bytes = size_bytes
        while left_bytes and not answer.done():
            now_bytes = min(left_bytes, part_bytes)
            connection.send(frame, self._part[:now_bytes])
            left_bytes -= now_bytes
            await connection.drain()

    async def aclose(self) -> None:
        """End it, without waiting for what is still on the way."""
        if self._connection is not None:
            self._connection.abort("measured")

    # What follows is called by the client that owns the connection.

    def opened(self, connection: FrameConnection) -> None:
        """Use this connection."""
        self._connection = connection

    def frame_received(self, connection: FrameConnection, frame: Frame, payload: Payload) -> None:
        """Take an answer.

        Raises:
            ProtocolError: It is none.
        """
        answer = self._answer
        if not isinstance(frame, ProbeTaken | ProbeRefused):
            raise ProtocolError(f"a node sent {type(frame).__name__} to who measures the way there")
        if answer is None or answer.done() or frame.number != self._number:
            return
        if isinstance(frame, ProbeTaken):
            answer.set_result(frame)
        else:
            self._fail(ProbeRefusedError(f"the node {self._node_id} does not measure now: {frame.message}"))

    def connection_lost(self, reason: str) -> None:
        """Take notice that the connection is gone."""
        self._fail(NodeUnreachableError(f"the connection to the node {self._node_id} was lost: {reason}"))

    def _fail(self, error: NodeUnreachableError | ProbeRefusedError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # Retrieved here: who asked may have been cancelled.
