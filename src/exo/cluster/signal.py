"""Waking whoever waits, without a queue: the woken look at the present state themselves."""

import asyncio


class Signal:
    """Look first, then wait: between the two nothing else runs, so no `fire` is missed."""

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None
        """Only there while somebody waits: a thousand signals are often fired for nobody."""

    def fire(self) -> None:
        """Wake everybody who waits now."""
        fired, self._event = self._event, None
        if fired is not None:
            fired.set()

    async def wait(self) -> None:
        """Return after the next `fire`."""
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()
