"""Half a minute in the life of a cluster, full of faults; afterwards everything that was promised has to hold."""

import asyncio
from collections import Counter

from exo.cluster.believing import FACTS
from exo.cluster.replica import EmbeddedCoordinator
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Deleted, DeleteInstance
from exo.shared.types.devices import MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.events import (
    DeviceLost,
    InstanceCreated,
    InstanceRestarted,
    LogEntry,
    NodeProfileUpdated,
    TermOpened,
)
from exo.shared.types.ids import ClusterId, CommandId, InstanceId, NodeId
from exo.shared.types.instances import Instance, StagePlan
from support.simulated_cluster import Simulation, tagged
from support.states import card, running


def instance() -> Instance:
    """Something to lose."""
    model = card("toy")
    stage = StagePlan(
        rank=0, node_id=NodeId("a"), device_ids=(), start_layer=0, end_layer=model.layer_count, memory_bytes=1
    )
    return running(model, stage, phase="pending")


class FaultyStory:
    """Half a minute of faults and of work, then peace: was everything kept that was promised?"""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.simulation = Simulation(seed, "abcd")
        self.random = self.simulation.random
        self.faults: Counter[str] = Counter()
        self.acknowledged: dict[str, int] = {}
        """Index by tag, of what was acknowledged in the cluster that stays."""
        self._main: ClusterId | None = None
        self._number = 0
        self._work: dict[asyncio.Task[None], EmbeddedCoordinator] = {}

    async def tell(self) -> None:
        try:
            await self._tell()
        finally:
            for task in self._work:
                if task.done() and not task.cancelled():
                    task.exception()  # Seen: the first failure has ended the story.

    async def _tell(self) -> None:
        simulation = self.simulation
        await simulation.start_all()
        await simulation.until(simulation.is_one, timeout_s=10)
        # With an instance the cluster has something to lose, so it never yields: what it acknowledges has to stay.
        await simulation.master.up.propose([InstanceCreated(instance=instance())], cause_id="test")
        self._main = simulation.master.up.state.cluster_id
        simulation.network.break_chance = 0.002
        ends_s = asyncio.get_running_loop().time() + 30
        while asyncio.get_running_loop().time() < ends_s:
            self._begin_work()
            await self._inject_fault()
            await asyncio.sleep(self.random.uniform(0.01, 1.2))
            simulation.check()
        simulation.network.break_chance = 0.0
        simulation.network.heal()
        await simulation.start_all()
        await simulation.until(
            lambda: simulation.is_one() and simulation.master.up.state.cluster_id == self._main, timeout_s=30
        )
        running = [node.up for node in simulation.running]
        for task, coordinator in self._work.items():
            if coordinator not in running:
                task.cancel()  # Its process was killed, and nobody waits any more.
        await simulation.until(lambda: all(task.done() for task in self._work), timeout_s=5)
        for task in self._work:
            if not task.cancelled():
                task.result()
        await simulation.until(simulation.is_one, timeout_s=5)
        self._check_history()
        await _check_telemetry(simulation)
        await simulation.stop_all()
        self.faults.update(simulation.network.faults)
        print(f"seed {self.seed}: {dict(self.faults)}, {len(self.acknowledged)} acknowledged")
        assert sum(self.faults[kind] for kind in ("kill", "cut", "broken")) >= 5
        assert self.acknowledged

    def _begin_work(self) -> None:
        for _ in range(self.random.randint(0, 4)):
            node = self.random.choice(list(self.simulation.nodes.values()))
            if node.is_running:
                self._number += 1
                kind = self.random.choice([self._propose, self._propose, self._send, self._decide])
                task = asyncio.ensure_future(kind(node.up, f"{node.host}-{self._number}"))
                self._work[task] = node.up

    async def _inject_fault(self) -> None:
        network, nodes = self.simulation.network, list(self.simulation.nodes.values())
        hosts = list(self.simulation.nodes)
        match self.random.choice(["none", "kill", "start", "start", "cut", "isolate", "heal", "break"]):
            case "kill":
                self.faults["kill"] += 1
                await self.random.choice(nodes).kill()
            case "start":
                stopped = [node for node in nodes if not node.is_running]
                if stopped:
                    await self.random.choice(stopped).start()
            case "cut":
                network.cut(*self.random.sample(hosts, 2))
            case "isolate":
                network.isolate(self.random.choice(hosts), hosts)
            case "heal":
                network.heal()
            case "break":
                network.break_connections(*self.random.sample(hosts, 2))
            case _:
                pass

    async def _propose(self, coordinator: EmbeddedCoordinator, tag: str) -> None:
        """A node tells a fact about itself."""
        try:
            index = await coordinator.propose([tagged(coordinator.node_id, tag)], cause_id="fact")
        except NoMasterError:
            return
        if coordinator.state.cluster_id == self._main:
            self.acknowledged[tag] = index

    async def _send(self, coordinator: EmbeddedCoordinator, tag: str) -> None:
        """Somebody wants something of the master."""
        command = DeleteInstance(command_id=CommandId(tag), instance_id=InstanceId(tag))
        cluster_id = coordinator.state.cluster_id
        try:
            reply = await coordinator.send(command, timeout_s=5)
        except NoMasterError:
            return
        assert isinstance(reply, Deleted)
        assert coordinator.state.index >= reply.index
        # A cluster that had nothing to lose may have answered, and have dissolved before the answer was read here.
        if cluster_id == coordinator.state.cluster_id == self._main:
            self.acknowledged[tag] = reply.index

    async def _decide(self, coordinator: EmbeddedCoordinator, tag: str) -> None:
        """A master decides on what it sees, and may be replaced before that is committed."""
        leadership = coordinator.leadership
        if leadership.is_self:
            decision = InstanceRestarted(instance_id=InstanceId("none"), generation=1, reason=tag)
            cause_id = f"decided {coordinator.state.cluster_id} {leadership.term}"
            try:
                await coordinator.propose([decision], cause_id=cause_id)
            except NoMasterError:
                self.faults["decision fenced off"] += 1

    def _check_history(self) -> None:
        simulation = self.simulation
        entries = list(simulation.master.store.log.read())
        assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
        times = Counter(_tag(entry) for entry in entries)
        assert [tag for tag in self.acknowledged if times[tag] != 1] == [], "lost, or there twice"
        assert [tag for tag, count in times.items() if tag and count > 1] == [], "there twice"
        facts = [entry for entry in entries if isinstance(entry.event, FACTS)]
        assert max(Counter((entry.origin, entry.seq) for entry in facts).values()) == 1
        assert max(Counter(entry.event_id for entry in entries).values()) == 1
        terms = [entry.term for entry in entries if isinstance(entry.event, TermOpened)]
        assert terms == sorted(set(terms)), "each term is opened once"
        by_tag = {_tag(entry): entry.index for entry in entries}
        for tag, index in self.acknowledged.items():
            assert by_tag[tag] <= index
        assert self._main is not None
        by_index = {entry.index: entry for entry in entries}
        for index, entry in simulation.committed[self._main, 1].items():
            assert by_index[index] == entry, "what anybody ever saw committed is still there"
        for (cluster_id, _), committed in simulation.committed.items():
            for entry in committed.values():
                if entry.cause_id.startswith("decided "):
                    assert entry.cause_id == f"decided {cluster_id} {entry.term}"


def _tag(entry: LogEntry) -> str:
    return entry.event.reason if isinstance(entry.event, DeviceLost) else ""


async def _check_telemetry(simulation: Simulation) -> None:
    for number, node in enumerate(simulation.running):
        profile = NodePerformanceProfile(
            memory=MemoryProfile(ram_total=number, ram_available=0, swap_total=0, swap_available=0),
            system=SystemProfile(),
        )
        node.up.publish([NodeProfileUpdated(node_id=node.up.node_id, profile=profile)])

    def is_everywhere() -> bool:
        lives = [node.up.state.live for node in simulation.running]
        return len(lives[0]) == len(lives) and all(live == lives[0] for live in lives)

    await simulation.until(is_everywhere, timeout_s=2)
