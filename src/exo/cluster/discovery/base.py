"""The seam of finding other nodes. What it finds is a hint: the connection's handshake decides."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from exo.cluster.facts import ClusterFacts, PeerSeen, Sighting

FactsSource = Callable[[], ClusterFacts]
"""Returns this node's facts as they are now."""

Report = Callable[[Sighting | PeerSeen], None]
"""Takes somebody to try (Sighting), or something noticed that cannot be used and why (PeerSeen); never waits."""


class Discovery(ABC):
    """One way to notice other nodes and to be noticed."""

    @abstractmethod
    async def run(self, facts: FactsSource, report: Report) -> None:
        """Announce this node and report others until cancelled.

        Never raises for want of a network: where this way is closed, it says so once and waits for ever.
        """

    @property
    def counts(self) -> Mapping[str, int]:
        """What was heard since the start, by what became of it; nothing where nothing is heard unasked."""
        return {}

    def nudge(self) -> None:
        """The facts changed in a way that others want to know soon. Never waits; may do nothing."""
        return
