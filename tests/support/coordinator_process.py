"""A process that does nothing but take part in a cluster: told what to do on stdin, tells what happens on stdout.

    python coordinator_process.py HOME SECRET_FILE DISCOVERY_PORT

Lines in: `work` (propose without end), `rest` (finish what is under way), `report`. Lines out: JSON objects.
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from uuid import uuid4

import anyio
import msgspec

from exo.cluster.discovery.multicast import MulticastDiscovery
from exo.cluster.log.store import open_store
from exo.cluster.node_id import load_node_id
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.errors import NoMasterError
from exo.shared.types.nodes import HostPort
from support.simulated_cluster import tagged
from support.states import identity

WORKERS = 4


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def work(coordinator: EmbeddedCoordinator, is_resting: asyncio.Event, worker: int) -> None:
    run = uuid4().hex[:8]
    number = 0
    while not is_resting.is_set():
        number += 1
        tag = f"{run}-{worker}-{number}"
        try:
            index = await coordinator.propose([tagged(coordinator.node_id, tag)], cause_id="work")
        except NoMasterError:
            continue
        tell(committed=tag, index=index, cluster_id=coordinator.state.cluster_id)
        await anyio.sleep(0.002)


def report(coordinator: EmbeddedCoordinator) -> None:
    state = coordinator.state
    tell(
        index=state.index,
        cluster_id=state.cluster_id,
        master=coordinator.leadership.master_node_id,
        term=coordinator.leadership.term,
        connected=sorted(key for key, node in state.nodes.items() if node.is_connected),
        digest=hashlib.sha256(msgspec.msgpack.encode(state.decided(), order="sorted")).hexdigest(),
    )


async def obey(coordinator: EmbeddedCoordinator) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    is_resting = asyncio.Event()
    workers: list[asyncio.Task[None]] = []
    while line := (await reader.readline()).decode().strip():
        if line == "work":
            is_resting.clear()
            workers = [asyncio.ensure_future(work(coordinator, is_resting, n)) for n in range(WORKERS)]
        elif line == "rest":
            is_resting.set()
            await asyncio.gather(*workers)
            tell(resting=True)
        else:
            report(coordinator)


async def main(home: Path, secret_file: Path, port: int) -> None:
    secret = load_host_secret(secret_file)
    transport = TcpTransport(secret)
    listener = await transport.listen(HostPort("127.0.0.1", 0))
    own = identity(load_node_id(home), boot_id=uuid4().hex)
    coordinator = EmbeddedCoordinator(
        identity=msgspec.structs.replace(own, cluster_address=listener.address),
        namespace="test",
        store=open_store(home / "log"),
        transport=transport,
        listener=listener,
        discoveries=[MulticastDiscovery(lambda: (secret,), port=port)],
        is_checking_invariants=True,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(coordinator.run)
        tell(node_id=coordinator.node_id)
        await obey(coordinator)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    own_home = Path(sys.argv[1])
    own_home.mkdir(parents=True, exist_ok=True)
    anyio.run(main, own_home, Path(sys.argv[2]), int(sys.argv[3]))
