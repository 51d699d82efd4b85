"""Serves the application on a socket that is bound already, and ends when told."""

import contextlib
import socket
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from exo.api.context import ApiContext

_SHUTDOWN_GRACE_S = 3


class ApiServer:
    """One application on one socket. Signals are left to the node, which has more to stop than the server."""

    def __init__(self, app: FastAPI, context: ApiContext) -> None:
        self._context = context
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_SHUTDOWN_GRACE_S,
                server_header=False,
            )
        )

    async def serve(self, bound: socket.socket, on_started: Callable[[], None]) -> None:
        """Answer requests until `stop`; calls `on_started` once it does."""
        self._server.on_started = on_started
        await self._server.serve(sockets=[bound])

    def stop(self) -> None:
        """End answers that never end by themselves, let the others finish; a second call waits for nothing."""
        if self._server.should_exit:
            self._server.force_exit = True
        self._context.closing.set()
        self._server.should_exit = True


class _Server(uvicorn.Server):
    on_started: Callable[[], None]

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_started()
