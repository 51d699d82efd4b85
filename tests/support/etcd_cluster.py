"""Coordinators on a real etcd for tests in real time: over the network in memory, so that links can be cut."""

import asyncio
from typing import Any, cast
from uuid import uuid4

import msgspec

from exo.cluster.etcd.address import EtcdAddress
from exo.cluster.etcd.coordinator import EtcdCoordinator
from exo.cluster.etcd.options import EtcdOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.base import Heartbeat
from exo.shared.types.nodes import HostPort
from support.coordinators import MemoryCluster
from support.etcd_server import EtcdServer
from support.states import identity

QUICK_ETCD = EtcdOptions(
    lease_s=1,
    pulse_s=0.3,
    touch_max_s=0.7,
    request_timeout_s=0.5,
    retry_s=0.05,
    retry_max_s=0.2,
    campaign_spread_s=0.05,
    start_patience_s=10.0,
    rejoin_grace_s=0.5,
    resign_pause_s=0.5,
    master_wait_s=0.5,
    proposal_timeout_s=1.0,
)


class EtcdCluster(MemoryCluster):
    """Nodes of one prefix of its own; the etcd may be shared."""

    def __init__(self, server: EtcdServer, options: EtcdOptions = QUICK_ETCD) -> None:
        super().__init__()
        self.network.heartbeat = Heartbeat(ping_interval_s=0.1, silence_max_s=0.3)
        self.server = server
        self.etcd_options = options
        self.prefix = uuid4().hex

    @property
    def etcd_address(self) -> EtcdAddress:
        return EtcdAddress(endpoints=(self.server.address,), prefix=self.prefix)

    async def start(self, name: str, **changes: Any) -> EmbeddedCoordinator:
        """Start a node and wait until it takes part."""
        self._boots[name] = self._boots.get(name, 0) + 1
        transport = self.transport(name)
        listener = await transport.listen(HostPort(name, self._ports.get(name, 0)))
        self._ports[name] = listener.address.port
        own = identity(name, boot_id=f"{name}-{self._boots[name]}")
        arguments: dict[str, Any] = {
            "identity": msgspec.structs.replace(own, cluster_address=listener.address),
            "namespace": "test",
            "address": self.etcd_address,
            "transport": transport,
            "listener": listener,
            "options": self.etcd_options,
            "is_checking_invariants": True,
            **changes,
        }
        coordinator = EtcdCoordinator(**arguments)
        task = asyncio.ensure_future(coordinator.run())
        joined = asyncio.ensure_future(coordinator.wait_for(lambda state: state.index or None, timeout_s=20))
        await asyncio.wait([task, joined], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            joined.cancel()
            await asyncio.gather(joined, return_exceptions=True)
            task.result()
        self._tasks[name] = task
        # What a Cluster does with its nodes, any Coordinator can do.
        running = cast("EmbeddedCoordinator", coordinator)
        self.running[name] = running
        return running

    def node(self, name: str) -> EtcdCoordinator:
        return cast("EtcdCoordinator", self.running[name])
