"""A process that does nothing but take part in a cluster: told what to do on stdin, tells what happens on stdout.

    python coordinator_process.py PLACE

PLACE is a Place in JSON. Lines in: see `Obedient.obey`. Lines out: JSON objects. Times are of the machine's monotonic
clock, which its processes share.
"""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import msgspec

from exo.cluster.boots import NUMBERS_PER_BOOT, count_boot
from exo.cluster.discovery.base import Discovery
from exo.cluster.discovery.multicast import MulticastDiscovery
from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.log.store import NodeStore, open_store
from exo.cluster.node_id import load_node_id
from exo.cluster.options import CoordinatorOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.trust.key_store import KeyStore
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.events import Decision, NodeDisconnected
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.simulated_cluster import tagged
from support.states import identity

WORKERS = 4
PAUSE_S = 0.005
"""Between two proposals of a worker."""
NOBODY = NodeId("nobody")
OPTIONS = CoordinatorOptions(vote_delay_s=0.2)
"""A real node's, but for the pause in which a newcomer proves that it stays: tests would wait for it."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process lives and whom it can find."""

    home: str
    secret_file: str
    listen: HostPort = HostPort("127.0.0.1", 0)
    discovery_port: int | None = None
    """Of multicast; None: without."""
    peers: tuple[HostPort, ...] = ()
    keys_home: str | None = None
    """Where the keys are that it shows to other hosts."""
    clock_skew_s: float = 0.0
    """By how much its wall clock is wrong."""


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def fenced(tag: str) -> Decision:
    """A master's decision, void in any other term, that changes no state and can be told from all others."""
    return NodeDisconnected(node_id=NOBODY, reason=tag)


class Obedient:
    """Does what it is told."""

    def __init__(self, coordinator: EmbeddedCoordinator, store: NodeStore) -> None:
        self._coordinator = coordinator
        self._store = store
        self._run = uuid4().hex[:8]
        self._made = 0
        self._is_resting = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def obey(self, line: str) -> None:
        """Carry out a command.

        `work`: propose facts without end, and tell of each that was committed; told again, go on. `rest`: finish what
        is under way. `report`: say what this node knows. `propose TAG`, `decide TAG`: have one fact or one decision of
        a master committed, and tell what came of it. `confirm TAG`: read like one who must not read old news.
        """
        command, _, tag = line.partition(" ")
        match command:
            case "work":
                self._is_resting.clear()
                self._workers = [one for one in self._workers if not one.done()] or [
                    asyncio.ensure_future(self._work(number)) for number in range(WORKERS)
                ]
            case "rest":
                self._begin(self._rest())
            case "report":
                self._report()
            case "propose":
                self._begin(self._try(tag, tagged(self._coordinator.node_id, tag)))
            case "decide":
                self._begin(self._try(tag, fenced(tag)))
            case "confirm":
                self._begin(self._confirm(tag))
            case _:
                raise ValueError(line)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def watch(self) -> None:
        """Tell who leads, whenever that changes here."""
        before = None
        async for _ in self._coordinator.changes():
            now = self._coordinator.leadership
            if now != before:
                before = now
                tell(leads=now.master_node_id, term=now.term, is_self=now.is_self, at_s=time.monotonic())

    async def _work(self, worker: int) -> None:
        while not self._is_resting.is_set():
            self._made += 1
            tag = f"{self._run}-{worker}-{self._made}"
            try:
                index = await self._coordinator.propose(
                    [tagged(self._coordinator.node_id, tag)], cause_id="work"
                )
            except NoMasterError:
                await anyio.sleep(PAUSE_S)  # One that ends refuses at once.
                continue
            tell(committed=tag, index=index, at_s=time.monotonic())
            await anyio.sleep(PAUSE_S)

    async def _rest(self) -> None:
        self._is_resting.set()
        await asyncio.gather(*self._workers)
        tell(resting=True)

    async def _try(self, tag: str, decision: Decision) -> None:
        try:
            index = await self._coordinator.propose([decision], cause_id="try")
        except NoMasterError as error:
            tell(outcome=tag, error=error.message)
        else:
            tell(outcome=tag, index=index)

    async def _confirm(self, tag: str) -> None:
        try:
            index = await self._coordinator.confirm(timeout_s=3)
        except NoMasterError as error:
            tell(outcome=tag, error=error.message)
        else:
            tell(outcome=tag, index=index)

    def _report(self) -> None:
        state, leadership = self._coordinator.state, self._coordinator.leadership
        tell(
            index=state.index,
            stored=self._store.log.last_index,
            cluster_id=state.cluster_id,
            master=leadership.master_node_id,
            term=leadership.term,
            connected=sorted(key for key, node in state.nodes.items() if node.is_connected),
            voters=sorted(state.voters.voters),
            digest=hashlib.sha256(msgspec.msgpack.encode(state.decided(), order="sorted")).hexdigest(),
        )


async def main(place: Place) -> None:
    home = Path(place.home)
    secret = load_host_secret(Path(place.secret_file))
    node_id = load_node_id(home)
    transport = TcpTransport(secret)
    if place.keys_home is not None:
        transport.set_identity(KeyStore(Path(place.keys_home)).load_identity(node_id))
    store = open_store(home / "log")
    listener = await transport.listen(place.listen)
    discoveries: list[Discovery] = [StaticDiscovery(place.peers)]
    if place.discovery_port is not None:
        discoveries.append(MulticastDiscovery(lambda: (secret,), port=place.discovery_port))
    own = identity(node_id, boot_id=uuid4().hex)
    skew = timedelta(seconds=place.clock_skew_s)
    coordinator = EmbeddedCoordinator(
        identity=msgspec.structs.replace(own, cluster_address=listener.address),
        namespace="test",
        store=store,
        transport=transport,
        listener=listener,
        discoveries=discoveries,
        options=msgspec.structs.replace(OPTIONS, numbers_behind=count_boot(home) * NUMBERS_PER_BOOT),
        wall_clock=lambda: (datetime.now(UTC) + skew).isoformat(timespec="milliseconds"),
        is_checking_invariants=True,
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(coordinator.run)
        tell(node_id=coordinator.node_id)
        obedient = Obedient(coordinator, store)
        tasks.start_soon(obedient.watch)
        while line := (await reader.readline()).decode().strip():
            obedient.obey(line)
        tasks.cancel_scope.cancel()


def cause_of(error: BaseException) -> BaseException:
    """Return what went wrong, out of the task groups that it went through."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    own_place = msgspec.json.decode(sys.argv[1], type=Place)
    try:
        Path(own_place.home).mkdir(parents=True, exist_ok=True)
        anyio.run(main, own_place)
    except (ExoError, ExceptionGroup, OSError) as failure:
        cause = cause_of(failure)
        if not isinstance(cause, ExoError | OSError):
            raise
        print(cause, file=sys.stderr)
        sys.exit(cause.exit_code if isinstance(cause, ExoError) else 1)
