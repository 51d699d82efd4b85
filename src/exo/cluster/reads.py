"""Those who wait to hear that this node still leads, before they read what is decided."""

import asyncio
import itertools

from exo.shared.errors import NoMasterError


class Reads:
    """A future for each read that the core was asked to confirm."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._futures: dict[int, asyncio.Future[int]] = {}

    def add(self) -> tuple[int, asyncio.Future[int]]:
        """Return the number to ask the core with, and what will hold the index to read at, or a NoMasterError."""
        number = next(self._numbers)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._futures[number] = future
        return number, future

    def confirmed(self, number: int, index: int) -> None:
        future = self._futures.pop(number, None)
        if future is not None and not future.done():
            future.set_result(index)

    def refused(self, number: int, reason: str) -> None:
        future = self._futures.pop(number, None)
        if future is not None:
            _fail(future, reason)

    def refuse_all(self, reason: str) -> None:
        futures, self._futures = self._futures, {}
        for future in futures.values():
            _fail(future, reason)


def _fail(future: asyncio.Future[int], message: str) -> None:
    if not future.done():
        future.set_exception(NoMasterError(message))
        future.exception()  # Seen: the caller may have given up.
