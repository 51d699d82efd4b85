"""Whether this node has work, and who waits for that to change. Used from one event loop."""

import anyio


class Busy:
    """Several may have work at once: each says so under its own name."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._begun = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()

    @property
    def is_busy(self) -> bool:
        """Whether anybody has work."""
        return bool(self._names)

    @property
    def reason(self) -> str | None:
        """Why nothing should be measured now, for people; None: there is no reason."""
        return "it is generating tokens" if self._names else None

    def note(self, name: str, is_busy: bool) -> None:
        """Take in whether somebody has work. Saying it again changes nothing.

        Args:
            name: Who, such as a stage or the API.
            is_busy: Whether there is work.
        """
        was_busy = self.is_busy
        if is_busy:
            self._names.add(name)
        else:
            self._names.discard(name)
        if self.is_busy == was_busy:
            return
        if self.is_busy:
            self._begun.set()
            self._idle = anyio.Event()
        else:
            self._idle.set()
            self._begun = anyio.Event()

    async def until_idle(self) -> None:
        """Return when nobody has work."""
        while self.is_busy:
            await self._idle.wait()

    async def until_busy(self) -> None:
        """Return when somebody has work."""
        while not self.is_busy:
            await self._begun.wait()
