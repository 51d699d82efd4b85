"""A process that does nothing but take part in a cluster on etcd: told what to do on stdin, tells what happens.

    python etcd_process.py NODE_ID SECRET_FILE ETCD_URL LEASE_S

Lines in: `work` (propose without end), `rest` (finish what is under way), `report`. Lines out: JSON objects.
"""

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path
from uuid import uuid4

import anyio
import msgspec

from exo.cluster.etcd.address import parse_etcd_url
from exo.cluster.etcd.coordinator import EtcdCoordinator
from exo.cluster.etcd.options import EtcdOptions
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.errors import NoMasterError
from exo.shared.types.events import DeviceLost
from exo.shared.types.ids import DeviceId
from exo.shared.types.nodes import HostPort
from support.states import identity

WORKERS = 4


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def work(coordinator: EtcdCoordinator, is_resting: asyncio.Event, worker: int) -> None:
    run, number = uuid4().hex[:8], 0
    while not is_resting.is_set():
        number += 1
        tag = f"{run}-{worker}-{number}"
        event = DeviceLost(
            node_id=coordinator.node_id, device_id=DeviceId(f"{coordinator.node_id}/none"), reason=tag
        )
        try:
            index = await coordinator.propose([event], cause_id="work")
        except NoMasterError:
            continue
        tell(committed=tag, index=index)
        await anyio.sleep(0.005)


async def watch(coordinator: EtcdCoordinator) -> None:
    """Tell when this node leads and when no longer, by the one clock that all processes here share."""
    was_leading = False
    async for _ in coordinator.changes():
        leadership = coordinator.leadership
        if leadership.is_self != was_leading:
            was_leading = leadership.is_self
            tell(leading=was_leading, term=leadership.term, at_s=time.monotonic())


def report(coordinator: EtcdCoordinator) -> None:
    state, leadership = coordinator.state, coordinator.leadership
    tell(
        index=state.index,
        master=leadership.master_node_id,
        term=leadership.term,
        connected=sorted(key for key, node in state.nodes.items() if node.is_connected),
        digest=hashlib.sha256(msgspec.msgpack.encode(state.decided(), order="sorted")).hexdigest(),
    )


async def obey(coordinator: EtcdCoordinator) -> None:
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


async def main(node_id: str, secret_file: Path, url: str, lease_s: int) -> None:
    transport = TcpTransport(load_host_secret(secret_file))
    listener = await transport.listen(HostPort("127.0.0.1", 0))
    coordinator = EtcdCoordinator(
        identity=msgspec.structs.replace(
            identity(node_id, boot_id=uuid4().hex), cluster_address=listener.address
        ),
        namespace="test",
        address=parse_etcd_url(url),
        transport=transport,
        listener=listener,
        options=EtcdOptions(lease_s=lease_s, pulse_s=0.5, request_timeout_s=0.5, rejoin_grace_s=2.0),
        is_checking_invariants=True,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(coordinator.run)
        tasks.start_soon(watch, coordinator)
        tell(node_id=coordinator.node_id)
        await obey(coordinator)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
