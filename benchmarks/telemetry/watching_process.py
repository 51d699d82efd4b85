"""A process that does nothing but watch devices: the real collector over the real CUDA driver and the stub library.

    python -m benchmarks.telemetry.watching_process collections COUNT
    python -m benchmarks.telemetry.watching_process cost SECONDS

One JSON object on stdout.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from loguru import logger

from benchmarks.telemetry import stub_driver
from benchmarks.telemetry.watching import INTERVAL_S
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.factory import GPUBackendFactory
from exo.gpu.health_watch import HealthWatch
from exo.gpu.limits import CallLimits
from exo.gpu.thermal.settings import ThermalSettings
from exo.shared.types.events import DeviceGPUStateUpdated, Telemetry
from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.heat_watch import HeatWatch
from exo.worker.telemetry import GPUTelemetryCollector, GPUTelemetryConfig

if TYPE_CHECKING:
    from tests.support.nvml_stub import NvmlStub

NODE_ID = NodeId("b" * 16)
PAUSE_S = 0.1
"""Between two collections where their time counts: a node waits 2 s."""


class Watched:
    """A collector, put together as a node does it, and what it told."""

    def __init__(self, discovery: GPUDiscoveryService) -> None:
        self.told: list[Telemetry] = []
        self.inventory = discovery.inventory
        health = HealthWatch()
        health.set_devices([(one.backend, one.device) for one in self.inventory.used])
        self.collector = GPUTelemetryCollector(
            node_id=NODE_ID,
            devices=lambda: self.inventory.used,
            health=health,
            publish=self.publish,
            config=GPUTelemetryConfig(interval_s=INTERVAL_S),
            clock=time.monotonic,
            now=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"),
            heat=HeatWatch(ThermalSettings.from_environment({}, INTERVAL_S), clock=time.monotonic),
        )

    def publish(self, events: Sequence[Telemetry]) -> None:
        """Keep what was told."""
        self.told += events

    @property
    def gpu_ids(self) -> set[DeviceId]:
        """Those that are watched."""
        return {one.device_id for one in self.inventory.devices if one.backend == "cuda"}

    @property
    def hanging(self) -> DeviceId:
        """The device that is to hang."""
        alias = f"cuda:{stub_driver.HANGING}"
        return next(one.device_id for one in self.inventory.devices if one.local_alias == alias)


@asynccontextmanager
async def watching() -> AsyncIterator[Watched]:
    """Find the stub's devices."""
    chosen = {"EXO_GPU_BACKEND": "cuda"}
    factory = GPUBackendFactory.for_this_platform(NODE_ID, environment=chosen)
    async with GPUDiscoveryService(factory, first_look_s=20.0) as discovery:
        found = Watched(discovery)
        if len(found.gpu_ids) != stub_driver.DEVICES:
            raise RuntimeError(
                f"{len(found.gpu_ids)} devices of {stub_driver.DEVICES} were found: {found.inventory.missing}"
            )
        yield found


async def collections(stub: "NvmlStub", count: int) -> dict[str, Any]:
    """Time so many collections while one device hangs, from the moment when it begins to."""
    async with watching() as watched:
        stub_driver.slow_down(stub)
        for _ in range(3):  # What is asked for rarely is new to every device.
            await watched.collector.collect()
            await anyio.sleep(PAUSE_S)
        stub_driver.hang(stub)
        answering = watched.gpu_ids - {watched.hanging}
        times_s: list[float] = []
        told = 0
        reason: str | None = None
        # Its health tells only when the call's own deadline has passed, however few collections were asked for.
        until_s = time.monotonic() + CallLimits().read_s + 5
        while len(times_s) < count or (reason is None and time.monotonic() < until_s):
            stub_driver.change(stub, len(times_s))
            started_s = time.perf_counter()
            events = await watched.collector.collect()
            times_s.append(time.perf_counter() - started_s)
            states = [event.state for event in events if isinstance(event, DeviceGPUStateUpdated)]
            silent = [one for one in states if one.device_id == watched.hanging]
            told += sum(one.device_id in answering for one in states)
            reason = next((one.health_reason for one in silent if one.health_reason), reason)
            await anyio.sleep(PAUSE_S)
        stub_driver.let_go(stub)
    return {
        "times_s": times_s,
        "told_percent": told / len(times_s) / len(answering) * 100,
        "reason": reason,
    }


async def cost(stub: "NvmlStub", seconds: float) -> dict[str, Any]:
    """Watch at a node's interval; say what this process used of a core, and how much of that was the stub itself."""
    async with watching() as watched:
        stub_driver.slow_down(stub)
        calls, used_s, past_s = 0, 0.0, 1.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watched.collector.start_monitoring)
            await anyio.sleep(INTERVAL_S * 2)  # All are read, code is warm.
            calls, started_s, used_s = stub_driver.calls(stub), time.perf_counter(), time.process_time()
            await anyio.sleep(seconds)
            used_s = time.process_time() - used_s
            past_s = time.perf_counter() - started_s
            calls = stub_driver.calls(stub) - calls
            tasks.cancel_scope.cancel()
        stub_s = calls * stub_driver.call_cpu_s(stub)
    return {
        "percent": used_s / past_s * 100,
        "stub_percent": stub_s / past_s * 100,
        "calls_per_s": calls / past_s,
    }


def main(what: str, amount: str) -> dict[str, Any]:
    """Do one of the two."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        stub = stub_driver.start(Path(folder))
        if what == "collections":
            return asyncio.run(collections(stub, int(amount)))
        return asyncio.run(cost(stub, float(amount)))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
    os._exit(0)  # A thread may still be in a call of the stub.
