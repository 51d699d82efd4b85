"""One request as the API node sees it: tokens as they come, an error, or its cancellation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import msgspec

from exo.dataplane.connection import FrameConnection
from exo.dataplane.errors import GenerationFailedError
from exo.dataplane.flow import CONSUMED_EVERY_CHUNKS
from exo.dataplane.frames import (
    Accepted,
    Cancel,
    Consumed,
    Failed,
    Generate,
    Rejected,
    ReplyTo,
    TokenChunk,
)
from exo.shared.types.generation import ChatMessage, Sampling
from exo.shared.types.ids import InstanceId, NodeId, RequestId


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate. Exactly one of `messages`, `prompt` and `prompt_token_ids` is set."""

    request_id: RequestId
    """Unique; the caller makes it."""
    instance_id: InstanceId
    generation: int
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    """None: as many as the context has room for."""
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    """Go on past the model's end-of-text token (benchmarks)."""
    sampling: Sampling = Sampling()
    node_ids: tuple[NodeId, ...] = ()
    """Where its stages run, by rank: who has to be there, and may answer, on connections to other hosts. Without
    them the request can only be asked of this host."""

    def to_frame(self, reply_to: ReplyTo) -> Generate:
        """Return the frame that asks a first stage for it."""
        return Generate(
            request_id=self.request_id,
            instance_id=self.instance_id,
            generation=self.generation,
            messages=self.messages,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            max_tokens=self.max_tokens,
            stop=self.stop,
            ignore_end=self.ignore_end,
            sampling=self.sampling,
            reply_to=reply_to,
        )


class Generation(AsyncIterator[TokenChunk]):
    """A request that was accepted: iterate over its chunks, or take all that wait at once with `next_batch`.

    Leave it early with `cancel()`, or use it in `async with`, which does so by itself.
    """

    def __init__(
        self, request: GenerationRequest, connection: FrameConnection, forget: Callable[[RequestId], None]
    ) -> None:
        self.request_id = request.request_id
        self._node_ids = frozenset(request.node_ids)
        self.prompt_tokens = 0
        """How many tokens the prompt has."""
        self.answer: asyncio.Future[Accepted | Rejected] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._last_stage: FrameConnection | None = None
        self._forget = forget
        self._waiting: list[TokenChunk] = []
        self._singles: list[TokenChunk] = []
        """Chunks of the last batch that `__anext__` has yet to hand out, in reverse."""
        self._reader: asyncio.Future[None] | None = None
        self._received = 0
        self._taken = 0
        self._taken_as_told = 0
        self._is_over = False
        self.error: GenerationFailedError | None = None

    async def next_batch(self) -> list[TokenChunk]:
        """Return all chunks that have come since the last call, waiting for one if need be; empty at the end.

        Raises:
            GenerationFailedError: The request ended with an error; chunks that came before it are returned first.
        """
        while not self._waiting:
            if self.error is not None:
                raise self.error
            if self._is_over:
                return []
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        batch, self._waiting = self._waiting, []
        self._taken += len(batch)
        if not self._is_over and self._taken - self._taken_as_told >= CONSUMED_EVERY_CHUNKS:
            self._taken_as_told = self._taken
            self._connection.send(Consumed(request_id=self.request_id, count=self._taken))
        return batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        if not self._singles:
            self._singles = await self.next_batch()
            if not self._singles:
                raise StopAsyncIteration
            self._singles.reverse()
        return self._singles.pop()

    async def cancel(self) -> None:
        """Have the stages stop and forget the request; without effect when it is over already."""
        if not self._is_over:
            self._connection.send(Cancel(request_id=self.request_id))
            self._end()

    async def aclose(self) -> None:
        """End it: the same as `cancel`."""
        await self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cancel()

    # What follows is called by the client that owns the connections.

    def is_heard_from(self, connection: FrameConnection) -> bool:
        """Say whether who is on that connection may speak for the stages. On plain ones it is this host's user."""
        return connection.node_id is None or connection.node_id in self._node_ids

    def chunk_received(self, chunk: TokenChunk, connection: FrameConnection) -> None:
        """Take the next chunk in."""
        if self._is_over:
            return
        if chunk.index != self._received:
            self.failed(
                "protocol", f"token {chunk.index} came in place of token {self._received}", is_retriable=True
            )
            return
        self._received += 1
        self._last_stage = connection
        self._waiting.append(chunk)
        if chunk.finish_reason is not None:
            self._end()
        elif self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def failed_frame_received(self, frame: Failed) -> None:
        """Take the stages' word that it failed."""
        self.failed(frame.code, frame.message, is_retriable=frame.is_retriable)

    def connection_lost(self, connection: FrameConnection, reason: str) -> None:
        """Take notice that a connection is gone."""
        if connection is self._connection:
            self.failed("stage_lost", f"the model's first stage was lost: {reason}", is_retriable=True)
        elif connection is self._last_stage:
            self.failed("stage_lost", f"the model's last stage was lost: {reason}", is_retriable=True)

    def failed(self, code: str, message: str, *, is_retriable: bool) -> None:
        """End it with an error, unless it is over."""
        if not self._is_over:
            self.error = GenerationFailedError(code, message, is_retriable)
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._forget(self.request_id)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if not self.answer.done():
            self.answer.cancel()
