"""What goes wrong: each kind of fault, drawn from the seed, counted when it has really happened, and undone later."""

from collections.abc import Callable, Sequence
from random import Random

from exo.shared.types.ids import NodeId
from exo_sim import machine_faults, network_faults, people_faults
from exo_sim.cluster import Cluster
from exo_sim.disk import FAST_US
from exo_sim.machine import Machine
from exo_sim.network import CALM
from exo_sim.timeline import US_PER_S
from exo_sim.trouble import Trouble

Fault = Callable[[], bool]
"""Returns whether it could happen."""

AFTER_VOTE = "crashes right after its vote"
DISK_FULL = "stops: no room on its disk"


class Faults(Trouble):
    """Args:
    cluster: What goes wrong.
    random: Which fault, when and where.
    weights: How often which kind is tried; kinds that are not named never happen.
    memberships: What the members may be, for changes of them.
    """

    def __init__(
        self,
        cluster: Cluster,
        random: Random,
        weights: dict[str, int],
        memberships: Sequence[frozenset[NodeId]] = (),
    ) -> None:
        super().__init__(cluster, random, memberships)
        cluster.on_stop = self._has_stopped
        self._kinds: dict[str, Fault] = {
            "loss": lambda: network_faults.storm(self, "loss", loss=random.uniform(0.05, 0.4)),
            "duplication": lambda: network_faults.storm(
                self, "duplication", duplication=random.uniform(0.1, 0.5)
            ),
            "reordering": lambda: network_faults.storm(
                self, "reordering", is_in_order=False, delay_us=(100, 60_000)
            ),
            "delay": lambda: network_faults.storm(
                self, "delay", delay_us=(10_000, random.randint(30_000, 300_000))
            ),
            "partition": lambda: network_faults.partition(self, is_one_way=False),
            "one-way partition": lambda: network_faults.partition(self, is_one_way=True),
            "crash": lambda: machine_faults.crash_any(self),
            "crash of the leader": lambda: machine_faults.crash_leader(self),
            "crash after a vote": lambda: machine_faults.crash_after_vote(self),
            "disk full": lambda: machine_faults.disk_full(self),
            "slow disk": lambda: machine_faults.slow_disk(self),
            "clock stall": lambda: machine_faults.stall(self),
            "frozen process": lambda: machine_faults.freeze(self),
            "wrong clock": lambda: machine_faults.wrong_clock(self),
            "bit rot": lambda: machine_faults.rot(self),
            "membership change": lambda: people_faults.change_members(self),
            "hand-over": lambda: people_faults.hand_over(self),
            "forced history": lambda: people_faults.force(self),
        }
        self._names = list(weights)
        self._weights = list(weights.values())

    def begin(self) -> None:
        """Let things go wrong from here on, until `end`."""
        self._next()

    def end(self) -> None:
        """Repair everything that is not undone yet."""
        self.is_over = True
        cluster = self.cluster
        cluster.network.heal()
        cluster.network.weather = CALM
        for machine in cluster.machines:
            machine.is_stalled = False
            machine.is_to_crash_after_vote = False
            machine.clock_rate = 1.0
            machine.disk.is_full = False
            machine.disk.sync_us = FAST_US
            machine.thaw()
            if not machine.is_running:
                machine.start()

    def _next(self) -> None:
        if self.is_over:
            return
        name = self.random.choices(self._names, self._weights)[0]
        if self._kinds[name]() and name not in ("crash after a vote", "disk full"):
            self.counts[name] += 1
        self.cluster.timeline.after(int(self.random.expovariate(1.1) * US_PER_S), self._next)

    def _has_stopped(self, machine: Machine, why: str) -> None:
        if why.startswith(AFTER_VOTE):
            self.counts["crash after a vote"] += 1
            self.restart_later(machine)
        elif why == DISK_FULL:
            self.counts["disk full"] += 1
            self.restart_later(machine)
