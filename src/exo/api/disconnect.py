"""Work for a client that may go away: as soon as it does, the work is cancelled."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.types import Receive

from exo.api.errors import ApiError

T = TypeVar("T")

CLIENT_GONE_STATUS = 499
"""What a request is counted as whose client left: nginx's number, since HTTP has none."""


class ClientGoneError(Exception):
    """Raised when the client closed its connection before it had an answer."""


def shutting_down() -> ApiError:
    """Return what a request is told that cannot end before the node does."""
    return ApiError(503, "shutting_down", "this node is shutting down; try again, or ask another node")


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


async def while_connected(receive: Receive, closing: anyio.Event, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; cancel it when the client goes away or the server stops.

    The request's body must have been read.

    Raises:
        ClientGoneError: The client went away first.
        ApiError: The server stops.
    """
    results: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def run() -> None:
            try:
                results.append(await work())
            except Exception as error:
                # Raised again outside of the group, which would wrap it.
                failures.append(error)
            group.cancel_scope.cancel()

        async def notice_closing() -> None:
            await closing.wait()
            failures.append(shutting_down())
            group.cancel_scope.cancel()

        group.start_soon(run)
        group.start_soon(notice_closing)
        await until_disconnected(receive)
        group.cancel_scope.cancel()
    if results:
        return results[0]
    if failures:
        raise failures[0]
    raise ClientGoneError
