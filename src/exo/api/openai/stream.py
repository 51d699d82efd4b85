"""The streamed answer: sends what waits in one go, notices at once when the client leaves."""

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exo.api.disconnect import CLIENT_GONE_STATUS, until_disconnected
from exo.api.errors import ApiError, openai_error_body
from exo.api.generation import RunningGeneration
from exo.api.openai.chunks import DONE, ChunkEncoder
from exo.api.request_log import RequestRecord


class TokenStreamResponse(Response):
    """Server-sent events, one per token, written without a model or a task per token.

    Args:
        running: The generation; ended here, whatever happens.
        encoder: Writes the events.
        has_usage: Tell the usage in a last event of its own.
        record: Closed when the stream ends.
        closing: Set when the server stops: the stream then ends with an error.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        running: RunningGeneration,
        encoder: ChunkEncoder,
        *,
        has_usage: bool,
        record: RequestRecord,
        closing: anyio.Event,
    ) -> None:
        # The base class would make a body, and a length from it.
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._running = running
        self._encoder = encoder
        self._has_usage = has_usage
        self._record = record
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = CLIENT_GONE_STATUS
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._cancel_when_gone, receive, group.cancel_scope)
                group.start_soon(self._end_when_closing)
                status = await self._send(send)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._running.cancel()
            self._record.close(status, self._running)

    async def _send(self, send: Send) -> int:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        running, encode = self._running, self._encoder.encode
        status = self.status_code
        try:
            while batch := await running.next_batch():
                if running.is_complete:
                    events = [encode(chunk) for chunk in batch[:-1]]
                    events.append(encode(batch[-1], running.timings()))
                    if self._has_usage:
                        events.append(self._encoder.usage(running.usage()))
                    events.append(DONE)
                    body = b"".join(events)
                elif len(batch) == 1:
                    body = encode(batch[0])
                else:
                    body = b"".join([encode(chunk) for chunk in batch])
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except ApiError as error:
            status = error.status
            body = b"event: error\ndata: " + openai_error_body(error) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return status

    async def _cancel_when_gone(self, receive: Receive, scope: anyio.CancelScope) -> None:
        await until_disconnected(receive)
        scope.cancel()

    async def _end_when_closing(self) -> None:
        await self._closing.wait()
        await self._running.close()
