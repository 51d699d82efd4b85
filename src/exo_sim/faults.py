"""What goes wrong: each kind of fault, drawn from the seed, counted when it has really happened, and undone later."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from exo.shared.types.ids import NodeId
from exo_sim.cluster import Cluster
from exo_sim.disk import FAST_US
from exo_sim.machine import Machine
from exo_sim.network import CALM
from exo_sim.timeline import US_PER_S

Fault = Callable[[], bool]
"""Returns whether it could happen."""

AFTER_VOTE = "crashes right after its vote"
DISK_FULL = "stops: no room on its disk"


class Faults:
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
        self._cluster = cluster
        self._random = random
        self._memberships = memberships
        self.counts: Counter[str] = Counter()
        self._active = 0
        self._is_over = False
        self._round = 0
        cluster.on_stop = self._has_stopped
        self._kinds: dict[str, Fault] = {
            "loss": lambda: self._storm("loss", loss=random.uniform(0.05, 0.4)),
            "duplication": lambda: self._storm("duplication", duplication=random.uniform(0.1, 0.5)),
            "reordering": lambda: self._storm("reordering", is_in_order=False, delay_us=(100, 60_000)),
            "delay": lambda: self._storm("delay", delay_us=(10_000, random.randint(30_000, 300_000))),
            "partition": lambda: self._partition(is_one_way=False),
            "one-way partition": lambda: self._partition(is_one_way=True),
            "crash": self._crash_any,
            "crash of the leader": self._crash_leader,
            "crash after a vote": self._crash_after_vote,
            "disk full": self._disk_full,
            "slow disk": self._slow_disk,
            "clock stall": self._stall,
            "frozen process": self._freeze,
            "wrong clock": self._wrong_clock,
            "bit rot": self._rot,
            "membership change": self._change_members,
            "hand-over": self._hand_over,
            "forced history": self._force,
        }
        self._names = list(weights)
        self._weights = list(weights.values())

    def begin(self) -> None:
        """Let things go wrong from here on, until `end`."""
        self._next()

    def end(self) -> None:
        """Repair everything that is not undone yet."""
        self._is_over = True
        cluster = self._cluster
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
        if self._is_over:
            return
        name = self._random.choices(self._names, self._weights)[0]
        if self._kinds[name]() and name not in ("crash after a vote", "disk full"):
            self.counts[name] += 1
        self._cluster.timeline.after(int(self._random.expovariate(1.1) * US_PER_S), self._next)

    # --- help ---------------------------------------------------------------------------------------------------

    def _for_a_while(self, shortest_s: float, longest_s: float, undo: Callable[[], None]) -> None:
        """Undo a fault later, unless everything was repaired before that."""
        self._cluster.watch_failover(False)
        self._active += 1

        def end() -> None:
            self._active -= 1
            if not self._is_over:
                undo()

        self._cluster.timeline.after(int(self._random.uniform(shortest_s, longest_s) * US_PER_S), end)

    def _any_running(self) -> Machine | None:
        running = self._cluster.running
        return self._random.choice(running) if running else None

    def _tell(self, who: str, what: str) -> None:
        self._cluster.tell(who, what)

    def _restart_later(self, machine: Machine, shortest_s: float = 0.2, longest_s: float = 4.0) -> None:
        def restart() -> None:
            if not machine.is_running:
                self.counts["restart"] += 1
                machine.disk.is_full = False
                machine.start()

        self._for_a_while(shortest_s, longest_s, restart)

    def _has_stopped(self, machine: Machine, why: str) -> None:
        if why.startswith(AFTER_VOTE):
            self.counts["crash after a vote"] += 1
            self._restart_later(machine)
        elif why == DISK_FULL:
            self.counts["disk full"] += 1
            self._restart_later(machine)

    # --- network ------------------------------------------------------------------------------------------------

    def _storm(self, kind: str, **weather: object) -> bool:
        network = self._cluster.network
        network.weather = msgspec.structs.replace(network.weather, **weather)
        self._tell("", f"the network: {kind} from here on")

        def calm() -> None:
            network.weather = msgspec.structs.replace(
                network.weather, **{name: getattr(CALM, name) for name in weather}
            )
            self._tell("", f"the network: no more {kind}")

        self._for_a_while(0.5, 5.0, calm)
        return True

    def _partition(self, *, is_one_way: bool) -> bool:
        machines = list(self._cluster.machines)
        if len(machines) < 2:
            return False
        leader = self._cluster.leader
        if leader is not None and self._random.random() < 0.5:
            here = [leader.node_id]
        else:
            here = [
                one.node_id
                for one in self._random.sample(machines, self._random.randint(1, len(machines) - 1))
            ]
        there = [one.node_id for one in machines if one.node_id not in here]
        if is_one_way and self._random.random() < 0.5:
            here, there = there, here
        self._cluster.cut(here, there, is_one_way=is_one_way)
        self._round += 1
        mine = self._round
        self._tell(
            "", f"{' '.join(here)} {'cannot send to' if is_one_way else 'cut off from'} {' '.join(there)}"
        )

        def heal() -> None:
            if self._round == mine:
                self._cluster.network.heal()
                self._tell("", "all links are whole again")

        self._for_a_while(0.5, 6.0, heal)
        return True

    # --- crashes ------------------------------------------------------------------------------------------------

    def _crash(self, machine: Machine | None) -> bool:
        if machine is None:
            return False
        is_only_fault = self._active == 0 and not self._cluster.network.has_cuts
        voters = len(machine.up.voters.voters) if machine.is_running else 0
        is_failover = is_only_fault and machine.leads and machine.up.is_term_committed and voters > 2
        machine.stop("crashes")
        self._restart_later(machine)
        self._cluster.watch_failover(is_failover)
        return True

    def _crash_any(self) -> bool:
        return self._crash(self._any_running())

    def _crash_leader(self) -> bool:
        return self._crash(self._cluster.leader)

    def _crash_after_vote(self) -> bool:
        """Voters are to crash the next time they vote, and are made to vote."""
        for machine in self._cluster.running:
            machine.is_to_crash_after_vote = self._random.random() < 0.7
        leader = self._cluster.leader
        if leader is not None:
            self._crash(leader)
        return True

    # --- disks --------------------------------------------------------------------------------------------------

    def _disk_full(self) -> bool:
        machine = self._any_running()
        if machine is None:
            return False
        machine.disk.is_full = True
        self._cluster.watch_failover(False)
        return True

    def _slow_disk(self) -> bool:
        machine = self._any_running()
        if machine is None:
            return False
        machine.disk.sync_us = (20_000, self._random.randint(50_000, 600_000))
        self._tell(machine.node_id, "its disk is slow from here on")

        def fast() -> None:
            machine.disk.sync_us = FAST_US

        self._for_a_while(0.5, 5.0, fast)
        return True

    def _rot(self) -> bool:
        """The log of one node is lost; never of so many that nobody could have what was committed."""
        cluster = self._cluster
        candidates = [one for one in cluster.machines if self._may_rot(one)]
        if not candidates:
            return False
        machine = self._random.choice(candidates)
        machine.stop("crashes")
        machine.rot()
        self._restart_later(machine)
        return True

    def _may_rot(self, machine: Machine) -> bool:
        cluster = self._cluster
        if machine.incarnation != max(cluster.ledger.histories) or machine.disk.is_impaired:
            return False
        if not machine.disk.synced.last_index:
            return False
        leader = cluster.leader
        if leader is None or leader.incarnation != machine.incarnation or not leader.up.is_term_committed:
            return False
        voters = leader.up.voters
        if voters != cluster.ledger.newest.voters or not voters.members <= cluster.members:
            return False
        if machine.node_id in voters.replicas:
            return len(cluster.members) == 2  # Else it may be about to become one of two voters.
        gone = {one.node_id for one in cluster.machines if one.disk.is_impaired} | {machine.node_id}
        return machine.node_id in voters.voters and 2 * len(gone & set(voters.voters)) < len(voters.voters)

    # --- clocks -------------------------------------------------------------------------------------------------

    def _stall(self) -> bool:
        machine = self._any_running()
        if machine is None:
            return False
        machine.is_stalled = True
        self._tell(machine.node_id, "its clock stalls")

        def go_on() -> None:
            machine.is_stalled = False

        self._for_a_while(0.3, 4.0, go_on)
        return True

    def _freeze(self) -> bool:
        machine = self._any_running()
        if machine is None:
            return False
        machine.freeze()
        self._tell(machine.node_id, "its process is frozen")
        self._for_a_while(0.3, 4.0, machine.thaw)
        return True

    def _wrong_clock(self) -> bool:
        machine = self._any_running()
        if machine is None:
            return False
        machine.clock_rate = self._random.choice((0.5, 0.8, 1.25, 2.0))
        self._tell(machine.node_id, f"its ticks take {machine.clock_rate:g} times as long")

        def right() -> None:
            machine.clock_rate = 1.0

        self._for_a_while(1.0, 8.0, right)
        return True

    # --- people -------------------------------------------------------------------------------------------------

    def _change_members(self) -> bool:
        others = [members for members in self._memberships if members != self._cluster.members]
        # People do not take nodes away while one has to be healed: too few might be left who know everything.
        if not others or any(machine.disk.is_impaired for machine in self._cluster.machines):
            return False
        self._cluster.members = self._random.choice(others)
        for machine in self._cluster.machines:
            if machine.node_id in self._cluster.members and not machine.is_running and machine.boot == 0:
                machine.start()
        self._tell("", f"the members are to be {' '.join(sorted(self._cluster.members))}")
        self._cluster.watch_failover(False)
        return True

    def _hand_over(self) -> bool:
        leader = self._cluster.leader
        if leader is None or leader.is_frozen:
            return False
        others = [one for one in leader.up.voters.voters if one != leader.node_id]
        to = self._random.choice([None, *others])
        self._tell(leader.node_id, f"is to hand over to {to or 'anybody'}")
        leader.hand_over(to)
        self._cluster.watch_failover(False)
        return bool(others)

    def _force(self) -> bool:
        """An operator loses patience: everybody else is down or cut off, and this node is to go on alone."""
        cluster, random = self._cluster, self._random
        newest = max(cluster.ledger.histories)
        candidates = [
            one
            for one in cluster.running
            if one.incarnation == newest
            and not one.leads
            and not one.is_frozen
            and one.up.has_vote
            and one.node_id in cluster.members & one.up.voters.members
            and len(one.up.voters.members) > 1
            and one.disk.incarnation == newest
        ]
        if not candidates:
            return False
        survivor = random.choice(candidates)
        others = [one for one in cluster.machines if one is not survivor]
        if random.random() < 0.7:
            for one in others:
                if one.is_running:
                    one.stop("crashes")
                    self._restart_later(one, 1.0, 6.0)
        else:
            cluster.cut([survivor.node_id], [one.node_id for one in others])
            self._round += 1
            mine = self._round

            def heal() -> None:
                if self._round == mine:
                    cluster.network.heal()

            self._for_a_while(1.0, 6.0, heal)
        forgotten = tuple(sorted(survivor.up.voters.members - {survivor.node_id}))
        self._tell(survivor.node_id, f"is told to go on without {' '.join(forgotten)}")
        survivor.force(forgotten)
        cluster.watch_failover(False)
        return True
