"""What all faults have in common: where they happen, by which chance, how often they did, and how they are undone."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from exo.shared.types.ids import NodeId
from exo_sim.cluster import Cluster
from exo_sim.machine import Machine
from exo_sim.timeline import US_PER_S


class Trouble:
    """Args:
    cluster: What goes wrong.
    random: Which fault, when and where.
    memberships: What the members may be, for changes of them.
    """

    def __init__(self, cluster: Cluster, random: Random, memberships: Sequence[frozenset[NodeId]]) -> None:
        self.cluster = cluster
        self.random = random
        self.memberships = memberships
        self.counts: Counter[str] = Counter()
        self.active_count = 0
        """Faults that are not undone yet."""
        self.is_over = False
        self.cut_number = 0
        """Of the newest cut; only that one heals the links."""

    def for_a_while(self, shortest_s: float, longest_s: float, undo: Callable[[], None]) -> None:
        """Undo a fault later, unless everything was repaired before that."""
        self.cluster.watch_failover(False)
        self.active_count += 1

        def end() -> None:
            self.active_count -= 1
            if not self.is_over:
                undo()

        self.cluster.timeline.after(int(self.random.uniform(shortest_s, longest_s) * US_PER_S), end)

    def any_running(self) -> Machine | None:
        running = self.cluster.running
        return self.random.choice(running) if running else None

    def tell(self, who: str, what: str) -> None:
        self.cluster.tell(who, what)

    def restart_later(self, machine: Machine, shortest_s: float = 0.2, longest_s: float = 4.0) -> None:
        def restart() -> None:
            if not machine.is_running:
                self.counts["restart"] += 1
                machine.disk.is_full = False
                machine.start()

        self.for_a_while(shortest_s, longest_s, restart)
