"""Running coordinators for tests in real time: over memory or TCP, each with a log that outlives it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.base import Discovery
from exo.cluster.discovery.memory import MemoryAir, MemoryDiscovery
from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.log.store import NodeStore, memory_store, open_store
from exo.cluster.options import CoordinatorOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.base import Transport
from exo.cluster.transport.memory import MemoryNetwork
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.types.nodes import HostPort
from support.states import identity

QUICK = CoordinatorOptions(
    settle_s=0.0, redial_max_s=0.2, rejoin_grace_s=1.0, proposal_timeout_s=1.0, orphan_patience_s=30.0
)


class Cluster(ABC):
    """Nodes by name; the same name comes back with the same disk and address, in a new boot."""

    def __init__(self, options: CoordinatorOptions = QUICK) -> None:
        self.options = options
        self.running: dict[str, EmbeddedCoordinator] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._boots: dict[str, int] = {}
        self._ports: dict[str, int] = {}

    @abstractmethod
    def transport(self, name: str) -> Transport:
        """Return a node's way to the others."""

    @abstractmethod
    def store(self, name: str) -> NodeStore:
        """Return a node's store, with what it holds."""

    @abstractmethod
    def address(self, name: str) -> HostPort:
        """Return where the node shall listen; port 0 at first."""

    @abstractmethod
    def discoveries(self, name: str) -> list[Discovery]:
        """Return how the node finds the others that run."""

    async def start(self, name: str, **changes: object) -> EmbeddedCoordinator:
        """Start a node and wait until it takes part."""
        self._boots[name] = self._boots.get(name, 0) + 1
        transport = self.transport(name)
        wanted = self.address(name)
        listener = await transport.listen(HostPort(wanted.host, self._ports.get(name, wanted.port)))
        self._ports[name] = listener.address.port
        own = identity(name, boot_id=f"{name}-{self._boots[name]}")
        arguments = {
            "identity": msgspec.structs.replace(own, cluster_address=listener.address),
            "namespace": "test",
            "store": self.store(name),
            "transport": transport,
            "listener": listener,
            "discoveries": self.discoveries(name),
            "options": self.options,
            "is_checking_invariants": True,
            **changes,
        }
        coordinator = EmbeddedCoordinator(**arguments)  # type: ignore[arg-type]
        task = asyncio.ensure_future(coordinator.run())
        self._tasks[name] = task
        joined = asyncio.ensure_future(coordinator.wait_for(lambda state: state.index or None, timeout_s=20))
        await asyncio.wait([task, joined], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            joined.cancel()
            await asyncio.gather(joined, return_exceptions=True)
            del self._tasks[name]
            task.result()
        self.running[name] = coordinator
        return coordinator

    async def failure_of(self, name: str) -> BaseException | None:
        """Wait for a node to end by itself, and return why."""
        task = self._tasks.pop(name)
        del self.running[name]
        await asyncio.wait([task], timeout=5)
        return task.exception()

    async def stop(self, name: str) -> None:
        """End a node's process."""
        task = self._tasks.pop(name, None)
        self.running.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def stop_all(self) -> None:
        for name in list(self._tasks):
            await self.stop(name)

    async def start_cluster(self, *names: str) -> list[EmbeddedCoordinator]:
        """Start nodes and wait until they are one cluster. The first that is returned is its master."""
        for name in names:
            await self.start(name)
        await self.until_one()
        return sorted(self.running.values(), key=lambda node: not node.leadership.is_self)

    async def until_one(self) -> None:
        def is_one() -> bool:
            nodes = list(self.running.values())
            states = [node.state for node in nodes]
            return (
                len({(state.cluster_id, state.index) for state in states}) == 1
                and {key for key, node in states[0].nodes.items() if node.is_connected} == set(self.running)
                and len({node.leadership.master_node_id for node in nodes} - {None}) == 1
                and all(node.leadership.master_node_id is not None for node in nodes)
            )

        await self.until(is_one)

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
        """Wait for a condition on the coordinators' states, looking again after every change of any."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                watching = [asyncio.ensure_future(_next_change(node)) for node in self.running.values()]
                # What is true of a state can also become true through time alone.
                await asyncio.wait(watching, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
                for one in watching:
                    one.cancel()
                await asyncio.gather(*watching, return_exceptions=True)


async def _next_change(node: Coordinator) -> None:
    changes = node.changes()
    await anext(changes)
    await anext(changes)


class MemoryCluster(Cluster):
    def __init__(self, options: CoordinatorOptions = QUICK) -> None:
        super().__init__(options)
        self.network = MemoryNetwork(seed=1, delay_s=(0.0001, 0.001))
        self.air = MemoryAir(self.network, interval_s=0.2)
        self.stores: dict[str, NodeStore] = {}

    def transport(self, name: str) -> Transport:
        return self.network.transport(name)

    def store(self, name: str) -> NodeStore:
        return self.stores.setdefault(name, memory_store())

    def address(self, name: str) -> HostPort:
        return HostPort(name, 0)

    def discoveries(self, name: str) -> list[Discovery]:
        return [MemoryDiscovery(self.air, name)]


class TcpCluster(Cluster):
    def __init__(self, home: Path, options: CoordinatorOptions = QUICK) -> None:
        super().__init__(options)
        self.home = home

    def transport(self, name: str) -> Transport:
        return TcpTransport(b"s" * 32)

    def store(self, name: str) -> NodeStore:
        return open_store(self.home / name / "log")

    def address(self, name: str) -> HostPort:
        return HostPort("127.0.0.1", 0)

    def discoveries(self, name: str) -> list[Discovery]:
        peers = [HostPort("127.0.0.1", port) for other, port in self._ports.items() if other != name]
        return [StaticDiscovery(peers, pause_s=(0.1, 0.3))]


@asynccontextmanager
async def closing(cluster: Cluster) -> AsyncIterator[Cluster]:
    try:
        yield cluster
    finally:
        await cluster.stop_all()
