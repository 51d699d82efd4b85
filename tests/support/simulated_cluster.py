"""Whole clusters of real coordinators on a simulated network, simulated disks and virtual time, from one seed."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
from anyio.abc import TaskStatus

from exo.cluster.board import ImpossibleStateError
from exo.cluster.boots import NUMBERS_PER_BOOT
from exo.cluster.discovery.memory import MemoryAir, MemoryDiscovery
from exo.cluster.log.memory import MemoryLog, MemorySnapshotStore, MemoryVoteStore
from exo.cluster.log.store import NodeStore
from exo.cluster.options import CoordinatorOptions
from exo.cluster.raft.messages import Snapshot
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.memory import MemoryNetwork
from exo.shared.types.commands import Command, Deleted, Reply
from exo.shared.types.events import Decision, DeviceLost, LogEntry
from exo.shared.types.ids import ClusterId, DeviceId, InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from support.states import identity

PORT = 7


class _Started(TaskStatus[None]):
    """Says when a coordinator takes part."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def started(self, value: None = None) -> None:
        self.event.set()


class SmallStore(NodeStore):
    """A store in memory that keeps little of the log in front of a snapshot."""

    def __init__(self) -> None:
        super().__init__(MemoryLog(), MemorySnapshotStore(), MemoryVoteStore())

    def save_local_snapshot(self, snapshot: Snapshot, *, margin_entries: int = 4) -> None:
        super().save_local_snapshot(snapshot, margin_entries=margin_entries)


class SimulatedNode:
    """One host: a disk that outlives its process, and the process while it runs."""

    def __init__(self, simulation: "Simulation", host: str) -> None:
        self.simulation = simulation
        self.host = host
        self.store: NodeStore = SmallStore()
        self.is_voteless = False
        """Its log was lost, and it has not been made a voter anew."""
        self.boots = 0
        self.coordinator: EmbeddedCoordinator | None = None
        self.task: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None

    @property
    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def up(self) -> EmbeddedCoordinator:
        assert self.coordinator is not None
        return self.coordinator

    async def start(self) -> None:
        """Start the process; returns when it takes part."""
        self.boots += 1
        transport = self.simulation.network.transport(self.host)
        listener = await transport.listen(HostPort(self.host, PORT))
        own = identity(self.host, boot_id=f"{self.host}-{self.boots}")
        self.coordinator = EmbeddedCoordinator(
            identity=msgspec.structs.replace(own, cluster_address=listener.address),
            namespace="test",
            store=self.store,
            transport=transport,
            listener=listener,
            discoveries=[MemoryDiscovery(self.simulation.air, self.host)],
            options=msgspec.structs.replace(
                self.simulation.options, numbers_behind=self.boots * NUMBERS_PER_BOOT
            ),
            clock=asyncio.get_running_loop().time,
            wall_clock=lambda: "2026-01-01T00:00:00.000Z",
            new_id=self.simulation.new_id,
            random_number=self.simulation.random.random,
            run_blocking=self.simulation.run_blocking,
            is_voteless=self.is_voteless,
            vote_regained=self._vote_regained,
            is_checking_invariants=True,
        )
        self.coordinator.set_command_handler(self._carry_out)
        started = _Started()
        self.task = asyncio.ensure_future(self._run(self.coordinator, started))
        self.simulation.watch(self)
        waiting = asyncio.ensure_future(started.event.wait())
        await asyncio.wait([self.task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def kill(self) -> None:
        """End the process as `kill -9` and a loss of power do: nobody is told, unsynced entries are gone."""
        if self.task is not None:
            self.simulation.network.stop(self.host)
            self.task.cancel()
            await asyncio.wait([self.task])
            assert isinstance(self.store.log, MemoryLog)
            self.store.log.lose_unsynced()
            self.coordinator = None

    async def stop(self) -> None:
        """End the process as an operator does: it hands over what it does, and says goodbye."""
        await self.up.leave()
        await self.kill()

    async def lose_power(self) -> None:
        """End the process so that the others only notice its silence, and can dial it no more until it is back."""
        self.simulation.network.isolate(self.host, list(self.simulation.nodes))
        await self.kill()

    def lose_log(self) -> None:
        """Its disk was found damaged and was set aside, as `exo` does when it starts: it has no vote."""
        assert not self.is_running
        self.store = SmallStore()
        self.is_voteless = True

    def _vote_regained(self) -> None:
        self.is_voteless = False

    async def _run(self, coordinator: EmbeddedCoordinator, started: "_Started") -> None:
        try:
            await coordinator.run(task_status=started)
        except Exception as error:
            self.failure = _innermost(error)
            raise

    async def _carry_out(self, command: Command) -> Reply:
        """As master: commit the command's id as a decision, and answer with its index."""
        assert self.coordinator is not None
        index = await self.coordinator.propose([tagged(self.host, command.command_id)], cause_id="command")
        return Deleted(instance_id=InstanceId(command.command_id), index=index)


def _innermost(error: Exception) -> Exception:
    """Return what went wrong, out of the task groups that it went through."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def tagged(host: str, tag: str) -> Decision:
    """A decision that changes no state and can be told from all others."""
    return DeviceLost(node_id=NodeId(host), device_id=DeviceId(f"{host}/none"), reason=tag)


History = tuple[ClusterId | None, int]
"""A cluster and its incarnation: an operator may have begun its history anew."""


def history_of(coordinator: EmbeddedCoordinator) -> History:
    return coordinator.state.cluster_id, coordinator.state.incarnation


class Simulation:
    """A seed, a network, and nodes."""

    def __init__(
        self, seed: int, hosts: str, *, options: CoordinatorOptions | None = None, delay_s: float = 0.004
    ) -> None:
        self.random = random.Random(seed)
        self.network = MemoryNetwork(seed=seed, delay_s=(0.0002, delay_s))
        self.air = MemoryAir(self.network)
        self.options = options or CoordinatorOptions(recent_entries=32, entries_per_message=5)
        self.nodes = {host: SimulatedNode(self, host) for host in hosts}
        self.committed: dict[History, dict[int, LogEntry]] = {}
        """What any node ever saw committed, by history and index."""
        self.masters: dict[tuple[History, int], tuple[str, int]] = {}
        """Who led each term of each history, and in which of its boots."""
        self._furthest: dict[tuple[str, int, History], int] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def new_id(self) -> str:
        return f"{self.random.getrandbits(64):016x}"

    async def run_blocking(self, function: Callable[..., Any], *arguments: object) -> Any:
        """A disk that takes its time."""
        await asyncio.sleep(self.random.uniform(0.0001, 0.004))
        result = function(*arguments)
        await asyncio.sleep(self.random.uniform(0.0, 0.001))
        return result

    @property
    def running(self) -> list[SimulatedNode]:
        return [node for node in self.nodes.values() if node.is_running]

    async def start_all(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes.values() if not node.is_running))

    async def stop_all(self) -> None:
        for node in self.nodes.values():
            await node.kill()
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)

    def watch(self, node: SimulatedNode) -> None:
        """Hold every decision that the node folds against what any other folded at the same place."""

        async def follow(coordinator: EmbeddedCoordinator) -> None:
            while True:
                async for item in coordinator.feed():
                    if isinstance(item, LogEntry):
                        history = self.committed.setdefault(history_of(coordinator), {})
                        known = history.setdefault(item.index, item)
                        assert known == item, f"{node.host} has another entry at {item.index}"

        task = asyncio.ensure_future(follow(node.up))
        self._watchers.add(task)

    def check(self) -> None:
        """What has to hold at any moment."""
        for node in self.nodes.values():
            if isinstance(node.failure, ImpossibleStateError):
                raise AssertionError(f"{node.host}: {node.failure}")
            if node.failure is not None:
                raise node.failure
        for watcher in self._watchers:
            if watcher.done() and not watcher.cancelled():
                watcher.result()
        seen: dict[tuple[History, int], tuple[str, State]] = {}
        for node in self.running:
            state, leadership, history = node.up.state, node.up.leadership, history_of(node.up)
            host, known = seen.setdefault((history, state.index), (node.host, state))
            assert known.decided() == state.decided(), (
                f"{host} and {node.host} differ at {history} {state.index}"
            )
            if leadership.is_self:
                term = (history, leadership.term)
                first = self.masters.setdefault(term, (node.host, node.boots))
                assert first == (node.host, node.boots), f"{first} and {node.host} both led {term}"
            furthest = self._furthest.setdefault((node.host, node.boots, history), 0)
            assert state.index >= furthest, f"{node.host} went back from {furthest} to {state.index}"
            self._furthest[node.host, node.boots, history] = state.index

    def is_one(self) -> bool:
        """All nodes run, are connected members of one cluster, and stand at the same index."""
        states = [node.up.state for node in self.running]
        return (
            len(states) == len(self.nodes)
            and len({(state.cluster_id, state.index) for state in states}) == 1
            and set(states[0].nodes) == {NodeId(host) for host in self.nodes}
            and all(
                node.up.state.nodes[NodeId(node.host)].identity.boot_id == f"{node.host}-{node.boots}"
                for node in self.running
            )
            and all(member.is_connected for member in states[0].nodes.values())
            and all(node.up.leadership.master_node_id == states[0].master_node_id for node in self.running)
        )

    async def until(self, condition: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait in virtual time, checking all the way."""
        ends_s = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            self.check()
            assert asyncio.get_running_loop().time() < ends_s, f"it did not become so within {timeout_s:g} s"
            await asyncio.sleep(0.01)
        self.check()

    async def settle(self) -> None:
        """Wait until all nodes are one cluster, and the disks of those that vote have all of it."""

        def is_settled() -> bool:
            if not self.is_one():
                return False
            counting = self.running[0].up.state.voters.members
            logs = [node.store.log for node in self.running if node.host in counting]
            return all(log.last_index == self.running[0].up.state.index for log in logs)

        await self.until(is_settled, timeout_s=3)

    @property
    def master(self) -> SimulatedNode:
        return next(node for node in self.running if node.up.leadership.is_self)
