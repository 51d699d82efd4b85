"""Nodes with keys, certificates and a master's desk, on several hosts that are loopback addresses of this one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec

from exo.api.access_enrolment import EnrolmentDesk
from exo.api.access_join import PendingJoin, write_pending_join
from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.log.store import NodeStore, memory_store
from exo.cluster.options import CoordinatorOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.base import Heartbeat
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.trust.certificates import to_der
from exo.cluster.trust.enrolment_server import EnrolmentLimits
from exo.cluster.trust.token import create_token, token_id, token_verifier
from exo.master.admission import Admission
from exo.node_trust import NodeAuthority, NodeTrust
from exo.shared.types.access import TokenId
from exo.shared.types.commands import ApproveNode, Command, CreateToken, Done, RemoveNode, Reply
from exo.shared.types.ids import CommandId, NodeId
from exo.shared.types.nodes import HostPort
from support.states import identity

OPTIONS = CoordinatorOptions(
    settle_s=0.0,
    redial_max_s=0.2,
    rejoin_grace_s=0.5,
    homeless_s=0.3,
    leave_s=1.0,
    vote_delay_s=0.1,
    proposal_timeout_s=3.0,
)
HEARTBEAT = Heartbeat(ping_interval_s=0.1, silence_max_s=0.6)


class TrustedNode:
    """One node; its home and its log outlive its process."""

    def __init__(self, home: Path, name: str, host: str, peers: list[HostPort]) -> None:
        self.home = home / name
        self.home.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.host = host
        self.peers = peers
        """Named by its user."""
        self.store: NodeStore = memory_store()
        self.port = 0
        self.boots = 0
        self.later = timedelta()
        """How far its clock is ahead."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_killed = False

    async def start(self) -> None:
        self.boots += 1
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._task = asyncio.ensure_future(self._run(started))
        await asyncio.wait([self._task, started], return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()

    async def stop(self, *, is_killed: bool = False) -> None:
        """End it; killed, it says goodbye to nobody."""
        self._is_killed = is_killed
        if self._task is not None:
            task, self._task = self._task, None
            self._stopping.set()
            await task

    async def _run(self, started: "asyncio.Future[None]") -> None:
        # The hosts have users of their own, and so secrets of their own.
        secret = self.host.encode().ljust(32, b"s")
        self.transport = TcpTransport(
            secret,
            heartbeat=HEARTBEAT,
            is_local=lambda host: host == self.host,
            limits=EnrolmentLimits(pause_s=0.0),
        )
        self.trust = NodeTrust(
            self.home,
            NodeId(self.name),
            self.transport,
            cluster_host=self.host,
            advertise_host=None,
            now=self.now,
        )
        async with (
            await self.transport.listen(HostPort(self.host, self.port)) as listener,
            anyio.create_task_group() as tasks,
        ):
            self.port = listener.address.port
            own = identity(self.name, boot_id=f"{self.name}-{self.boots}", host_id=self.host)
            self.coordinator = EmbeddedCoordinator(
                identity=msgspec.structs.replace(own, cluster_address=listener.address),
                namespace="test",
                store=self.store,
                transport=self.transport,
                listener=listener,
                discoveries=[StaticDiscovery(self.peers, pause_s=(0.1, 0.3)), self.trust.introduced],
                options=OPTIONS,
                is_checking_invariants=True,
            )
            authority = NodeAuthority(
                self.trust.store, self.coordinator, self.trust.share_with(self.coordinator), now=self.now
            )
            admission = Admission(self.coordinator, anyio.Lock(), authority, lambda: self.now().timestamp())
            self.coordinator.set_command_handler(admission.handle)  # type: ignore[arg-type]
            await tasks.start(self.coordinator.run)
            tasks.start_soon(self.trust.run, self.coordinator, listener, "test", self.name)
            desk = SimpleNamespace(send=self._send_for)
            context: Any = SimpleNamespace(coordinator=self.coordinator, desk=desk)
            self.transport.set_enrol(EnrolmentDesk(context))
            started.set_result(None)
            await self._stopping.wait()
            if not self._is_killed:
                await self.coordinator.leave()
            tasks.cancel_scope.cancel()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    async def _send_for(self, command: Command, *, timeout_s: float, caller: object) -> Reply:
        return await self.coordinator.send(command, timeout_s=timeout_s)

    # --- what people do -----------------------------------------------------------------------------------------

    @property
    def address(self) -> HostPort:
        return HostPort(self.host, self.port)

    @property
    def nodes(self) -> set[str]:
        """The connected members that this node knows."""
        return {key for key, node in self.coordinator.state.nodes.items() if node.is_connected}

    @property
    def is_master(self) -> bool:
        return self.coordinator.leadership.is_self

    async def send(self, command: Command) -> Reply:
        return await self.coordinator.send(command, timeout_s=5)

    async def make_token(self, *, uses: int = 1) -> str:
        """As `exo token create` does."""
        secret = create_token(b"").secret
        verifier = token_verifier(secret)
        command = CreateToken(
            command_id=CommandId("create"),
            token_id=TokenId(token_id(verifier)),
            verifier=verifier.hex(),
            lifetime_s=3600,
            uses=uses,
            created_by="test",
        )
        reply = await self.send(command)
        assert isinstance(reply, Done), reply
        pem = self.coordinator.state.access.authority_pem
        assert pem is not None
        return create_token(to_der(pem), random_bytes=lambda count: secret[:count]).reveal()

    def join(self, token: str | None, address: HostPort | None = None) -> None:
        """As `exo join` does."""
        text = None if address is None else str(address)
        write_pending_join(self.home, PendingJoin(token=token, address=text))
        self.trust.join_wanted()

    async def approve(self, node_id: str) -> Reply:
        return await self.send(
            ApproveNode(
                command_id=CommandId("approve"), node_id=NodeId(node_id), fingerprint=None, approved_by="t"
            )
        )

    async def remove(self, node_id: str) -> Reply:
        return await self.send(
            RemoveNode(command_id=CommandId("remove"), node_id=NodeId(node_id), reason="sold")
        )


class TrustedNodes:
    """Nodes by name."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.nodes: dict[str, TrustedNode] = {}

    async def start(
        self, name: str, *, host: str = "127.0.0.1", peers: list[TrustedNode] | None = None
    ) -> TrustedNode:
        node = self.nodes.get(name)
        if node is None:
            addresses = [peer.address for peer in peers or ()]
            node = self.nodes[name] = TrustedNode(self._home, name, host, addresses)
        await node.start()
        return node

    async def stop_all(self) -> None:
        for node in self.nodes.values():
            await node.stop()


@asynccontextmanager
async def trusted_nodes(home: Path) -> AsyncIterator[TrustedNodes]:
    nodes = TrustedNodes(home)
    try:
        yield nodes
    finally:
        await nodes.stop_all()


async def until(condition: Callable[[], bool], *nodes: TrustedNode, timeout_s: float = 15.0) -> None:
    """Wait for a condition, looking again after every change that these nodes see, and now and then."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            watching = [asyncio.ensure_future(_next_change(node)) for node in nodes]
            await asyncio.wait(
                [*watching, asyncio.ensure_future(asyncio.sleep(0.05))], return_when=asyncio.FIRST_COMPLETED
            )
            for one in watching:
                one.cancel()
            await asyncio.gather(*watching, return_exceptions=True)


async def _next_change(node: TrustedNode) -> None:
    changes = node.coordinator.changes()
    await anext(changes)
    await anext(changes)
