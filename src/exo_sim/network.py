"""Links between nodes: messages are delayed, lost, sent twice and overtaken, and links are cut, also one way only."""

from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

import msgspec

from exo.shared.types.ids import NodeId
from exo_sim.timeline import Timeline


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """What the network does to messages."""

    delay_us: tuple[int, int] = (100, 1_000)
    loss: float = 0.0
    """Share of the messages that never arrive."""
    duplication: float = 0.0
    """Share of those that arrive twice."""
    is_in_order: bool = True
    """What is sent first over a link arrives first."""


CALM = Weather()


class Network:
    """Args:
    timeline: Virtual time.
    random: Decides over delays and losses.
    """

    def __init__(self, timeline: Timeline, random: Random) -> None:
        self._timeline = timeline
        self._random = random
        self.weather = CALM
        self._cuts: set[tuple[NodeId, NodeId]] = set()
        self._arrivals: dict[tuple[NodeId, NodeId], int] = {}
        self.counts: Counter[str] = Counter()

    def send(
        self,
        source: NodeId,
        to: NodeId,
        deliver: Callable[[NodeId, object], None],
        message: object,
        *,
        extra_us: int = 0,
    ) -> None:
        """Deliver a message later, perhaps; `deliver` is called with the source and the message."""
        weather, random = self.weather, self._random
        self.counts["sent"] += 1
        copies = 1
        if weather.loss and random.random() < weather.loss:
            self.counts["lost"] += 1
            return
        if weather.duplication and random.random() < weather.duplication:
            self.counts["duplicated"] += 1
            copies = 2
        link = (source, to)
        for _ in range(copies):
            low, high = weather.delay_us
            arrival_us = self._timeline.now_us + low + int(random.random() * (high - low)) + extra_us
            previous_us = self._arrivals.get(link, 0)
            if arrival_us < previous_us:
                if weather.is_in_order:
                    arrival_us = previous_us
                else:
                    self.counts["overtook"] += 1
            self._arrivals[link] = max(arrival_us, previous_us)
            self._timeline.after(arrival_us - self._timeline.now_us, self._arrive, link, deliver, message)

    def _arrive(
        self, link: tuple[NodeId, NodeId], deliver: Callable[[NodeId, object], None], message: object
    ) -> None:
        if link in self._cuts:
            self.counts["cut off"] += 1
        else:
            deliver(link[0], message)

    # --- cuts ---------------------------------------------------------------------------------------------------

    def cut(self, sources: Iterable[NodeId], targets: Iterable[NodeId], *, is_one_way: bool = False) -> None:
        """Let nothing through from any of the sources to any of the targets, nor back."""
        targets = tuple(targets)
        for source in sources:
            for target in targets:
                if source != target:
                    self._cuts.add((source, target))
                    if not is_one_way:
                        self._cuts.add((target, source))

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        return (source, target) in self._cuts

    @property
    def has_cuts(self) -> bool:
        return bool(self._cuts)

    def heal(self) -> None:
        self._cuts.clear()
