"""`GET /events`: what happens in the cluster, as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Header, Query, Response
from starlette.types import Receive, Scope, Send

from exo.api.context import Context
from exo.api.disconnect import until_disconnected
from exo.api.present_access import without_secrets
from exo.api.routes.answers import problems
from exo.cluster.coordinator import Coordinator
from exo.shared.types.events import LogEntry, TelemetryFrame

router = APIRouter(tags=["cluster"])

KEEP_ALIVE_S = 15.0
INDEX_MAX = 2**63 - 1


@router.get(
    "/events",
    operation_id="stream_events",
    response_class=Response,
    responses=problems(422)
    | {
        200: {
            "description": "`event: decision` with `id:` its index and a `DecisionMessage` as data; "
            "`event: telemetry` with a `TelemetryMessage`; comments keep the connection alive.",
            "content": {
                "text/event-stream": {
                    "schema": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {
                            "anyOf": [
                                {"$ref": "#/components/schemas/DecisionMessage"},
                                {"$ref": "#/components/schemas/TelemetryMessage"},
                            ]
                        },
                    }
                }
            },
        }
    },
)
async def stream_events(
    context: Context,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=INDEX_MAX, description="Go on behind this index; browsers send it by themselves"),
    ] = None,
    after: Annotated[
        int | None,
        Query(
            ge=0, le=INDEX_MAX, description="The same as a parameter; 0 for all decisions that this node has"
        ),
    ] = None,
) -> Response:
    """Decisions in order, and telemetry as it comes, from now on or from behind an index.

    Only the master keeps all decisions. Another node, asked for older ones than it has, begins with its oldest: look at
    the first `id`. If decisions are missing before it, ask the master, or read `/state` and go on from its index.
    Ends when the reader falls too far behind, or the node stops: come back with the last id.
    """
    after_index = last_event_id if last_event_id is not None else after
    return EventStreamResponse(context.coordinator, after_index, context.closing)


class EventStreamResponse(Response):
    """Sends the coordinator's feed until the client leaves, the feed ends or the server stops."""

    media_type = "text/event-stream"

    def __init__(self, coordinator: Coordinator, after_index: int | None, closing: anyio.Event) -> None:
        # The base class would make a body, and a length from it.
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._coordinator = coordinator
        self._after_index = after_index
        self._closing = closing
        self._lock = anyio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Something at once, so that the reader knows that it is connected.
        await self._send(send, b": connected\n\n")
        async with anyio.create_task_group() as group:

            async def end_when_closing() -> None:
                await self._closing.wait()
                group.cancel_scope.cancel()

            async def end_when_gone() -> None:
                await until_disconnected(receive)
                group.cancel_scope.cancel()

            group.start_soon(end_when_closing)
            group.start_soon(end_when_gone)
            group.start_soon(self._keep_alive, send)
            await self._forward(send)
            group.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _forward(self, send: Send) -> None:
        feed: AsyncIterator[LogEntry | TelemetryFrame] = self._coordinator.feed(self._after_index)
        async for item in feed:
            await self._send(send, encode_item(item))

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await anyio.sleep(KEEP_ALIVE_S)
            await self._send(send, b": keep-alive\n\n")

    async def _send(self, send: Send, body: bytes) -> None:
        async with self._lock:
            await send({"type": "http.response.body", "body": body, "more_body": True})


def encode_item(item: LogEntry | TelemetryFrame) -> bytes:
    """Return one item of the feed as a server-sent event."""
    data = msgspec.json.encode(without_secrets(item))
    if isinstance(item, LogEntry):
        return b"event: decision\nid: %d\ndata: %s\n\n" % (item.index, data)
    return b"event: telemetry\ndata: %s\n\n" % data
