"""Ends an answer where a stop string begins, without ever sending a part of that string."""

from collections.abc import Sequence


class StopText:
    """Text goes in piece by piece; what cannot belong to a stop string any more comes out.

    Args:
        stops: Strings that end the answer; they are no part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is certain to be part of the answer, and whether the answer ends with it."""
        if not self._stops:
            return text, False
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            answer, self._held = self._held[: min(places)], ""
            return answer, True
        kept = self._possible_beginning()
        answer, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return answer, False

    def flush(self) -> str:
        """Return what was held back, because nothing follows any more."""
        answer, self._held = self._held, ""
        return answer

    def _possible_beginning(self) -> int:
        """Return how long the longest end of the held text is that may be the beginning of a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for size in range(longest, 0, -1):
            end = self._held[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
