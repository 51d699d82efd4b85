"""Makes decisions durable: one frame and one sync for everything that was proposed while the last sync ran."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
from loguru import logger

from exo.cluster.errors import LogWriteError
from exo.cluster.kernel import Kernel
from exo.cluster.log.base import EventLog
from exo.shared.types.events import LogEntry

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a function that waits for the disk: `anyio.to_thread.run_sync`, or in place in a simulation."""


class Writer:
    """The only one who writes to the log."""

    def __init__(self, kernel: Kernel, log: EventLog, run_blocking: RunBlocking) -> None:
        self._kernel = kernel
        self._log = log
        self._run_blocking = run_blocking
        self._lock = anyio.Lock()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            LogWriteError: The log failed. Nothing is admitted or acknowledged any more.
        """
        while True:
            async with self._lock:
                entries = self._kernel.take_unwritten()
                if entries:
                    await self._guarded(self._write, entries)
            if entries:
                self._kernel.became_durable(entries[-1].index)
            else:
                await self._kernel.log_work.wait()

    async def reset(self) -> None:
        """Forget the log, durably, once what is being written is done. The kernel leads no longer.

        Raises:
            LogWriteError: The log failed.
        """
        async with self._lock:
            await self._guarded(self._log.reset)

    def _write(self, entries: Sequence[LogEntry]) -> None:
        self._log.append(entries)
        self._log.sync()

    async def _guarded(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            await self._run_blocking(function, *arguments)
        except OSError as error:
            self._kernel.stop_leading("its log failed")
            logger.error("cannot write the log: {}", error)
            raise LogWriteError(
                f"cannot write the log: {error.strerror or error}; nothing that was acknowledged is lost: "
                "make room or mend the disk, then start again"
            ) from error
