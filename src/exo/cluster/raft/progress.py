"""What a leader knows of one follower's log, and how much it sends it unasked. Pure."""

from collections import deque
from typing import Literal

Mode = Literal["probe", "stream", "snapshot"]


class Progress:
    """How far a follower is.

    `probe`: where the logs agree is unknown; one message at a time asks. `stream`: entries are sent as they come, as
    many as `inflight_max` messages ahead of the answers. `snapshot`: it lacks what is no longer here; nothing is sent
    until it has the snapshot.
    """

    def __init__(self, next_index: int, *, inflight_max: int) -> None:
        self.mode: Mode = "probe"
        self.match_index = 0
        """Its disk is known to have everything up to here."""
        self.next_index = next_index
        self.is_active = False
        """It was heard of since the last look."""
        self.is_lost = False
        """Its connection has ended, and it was not heard of since."""
        self.is_level = True
        """Unless it says that it began with nothing and has not caught up yet: it would give no vote."""
        self.is_answer_due = False
        """A probe is on its way."""
        self._inflight_max = inflight_max
        self._inflight: deque[int] = deque()
        """The last index of each message on its way."""

    @property
    def is_held(self) -> bool:
        """Nothing more should be sent before an answer comes."""
        if self.mode == "probe":
            return self.is_answer_due
        return self.mode == "snapshot" or len(self._inflight) >= self._inflight_max

    def sent(self, last_index: int, *, has_entries: bool) -> None:
        """A message that ends at `last_index` was sent."""
        if self.mode == "probe":
            self.is_answer_due = True
        elif has_entries:
            self.next_index = last_index + 1
            self._inflight.append(last_index)

    def accepted(self, index: int) -> bool:
        """Its disk has everything up to `index`. Say whether that is news."""
        while self._inflight and self._inflight[0] <= index:
            self._inflight.popleft()
        is_news = index > self.match_index
        self.match_index = max(self.match_index, index)
        self.next_index = max(self.next_index, index + 1)
        if self.mode == "probe" or (self.mode == "snapshot" and is_news):
            self.mode = "stream"
            self.next_index = self.match_index + 1
        self.is_answer_due = False
        return is_news

    def refused(self, index: int, retry_index: int) -> bool:
        """It differs at `index`; the logs may agree at `retry_index`. Say whether that is news and no old answer."""
        if self.mode == "snapshot" or index <= self.match_index:
            return False
        if self.mode == "probe" and index != self.next_index - 1:
            return False
        self._become_probe(max(self.match_index, min(retry_index, index - 1)) + 1)
        return True

    def lost(self) -> None:
        """The connection ended: what was on its way may never arrive."""
        self.is_lost = True
        self.ask_again()

    def ask_again(self) -> None:
        """What was sent may be lost: begin where its disk is known to be."""
        self._become_probe(self.match_index + 1)

    def is_here(self, *, is_level: bool) -> None:
        """It said something."""
        self.is_active, self.is_lost, self.is_level = True, False, is_level

    def heard(self) -> None:
        """It answered a heartbeat: a probe that was lost may be sent again, and one message more as well."""
        self.is_answer_due = False
        if len(self._inflight) >= self._inflight_max:
            self._inflight.popleft()

    def snapshot_sent(self) -> None:
        self.mode = "snapshot"
        self._inflight.clear()

    def _become_probe(self, next_index: int) -> None:
        self.mode = "probe"
        self.next_index = next_index
        self.is_answer_due = False
        self._inflight.clear()
