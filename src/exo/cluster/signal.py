"""Waking whoever waits, without a queue: the woken look at the present state themselves."""

import asyncio


class Signal:
    """Look first, then wait: between the two nothing else runs, so no `fire` is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake everybody who waits now."""
        fired, self._event = self._event, asyncio.Event()
        fired.set()

    async def wait(self) -> None:
        """Return after the next `fire`."""
        await self._event.wait()
