"""Makes what the core wants durable: one sync for everything that came up while the last one ran."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from loguru import logger

from exo.cluster.errors import LogWriteError
from exo.cluster.kernel import Kernel
from exo.cluster.log.store import NodeStore

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a function that waits for the disk: `anyio.to_thread.run_sync`, or in place in a simulation."""


class Writer:
    """The only one who writes to the store."""

    def __init__(self, kernel: Kernel, store: NodeStore, run_blocking: RunBlocking) -> None:
        self._kernel = kernel
        self._store = store
        self._run_blocking = run_blocking
        self._lock = anyio.Lock()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            LogWriteError: The disk failed. Nothing is admitted or acknowledged any more.
        """
        has_to_tidy = False
        while True:
            async with self._lock:
                writes = self._kernel.disk_work.take()
                if writes:
                    core = self._kernel.situation.core
                    await self._guarded(self._store.apply_writes, writes)
                    if self._kernel.situation.core is core:  # Else this node has left its cluster meanwhile.
                        self._kernel.written(writes[-1].number)
                    snapshot = self._kernel.disk_work.take_snapshot()
                    if snapshot is not None:
                        await self._guarded(self._store.save_local_snapshot, snapshot)
            if writes:
                has_to_tidy = True
            elif has_to_tidy:
                async with self._lock:
                    has_to_tidy = bool(await self._run_blocking(self._store.tidy))
            else:
                await self._kernel.disk_work.added.wait()

    async def reset(self) -> None:
        """Forget everything on disk, once what is being written is done. The kernel is part of no cluster.

        Raises:
            LogWriteError: The disk failed.
        """
        async with self._lock:
            await self._guarded(self._store.reset)

    async def _guarded(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            await self._run_blocking(function, *arguments)
        except OSError as error:
            self._kernel.stop("its log failed")
            logger.error("cannot write the log: {}", error)
            raise LogWriteError(
                f"cannot write the log: {error.strerror or error}; nothing that was acknowledged is lost: "
                "make room or mend the disk, then start again"
            ) from error
