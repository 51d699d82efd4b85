"""A device's speed as measured, on one whose speed is known: what every call costs anyhow must not count."""

import time

import pytest

from exo.gpu.backend import GPUBackend
from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import DeviceLostError
from exo.gpu.measurement import measure_bandwidth, measure_compute
from exo.gpu.reading import MemoryInfo
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import Backend
from exo.shared.types.ids import NodeId
from support.inline_backend import InlineBackend
from support.scripted_driver import ScriptedDriver, found

NODE = NodeId("n")
GIB = 2**30


class Timed(ScriptedDriver):
    """A device in a time of its own: each call takes a moment, and then as long as its work takes."""

    def __init__(self, name: Backend = "cuda", *, free_bytes: int = 64 * GIB) -> None:
        super().__init__(found())
        self.name = name
        self.free_bytes = free_bytes
        self.now_s = 0.0
        self.call_s = 0.003
        self.bytes_per_s = 5e11
        self.flops_per_s = 2e13
        self.is_slow_first = True
        self.held_up_calls: set[int] = set()
        self.held_up_sides: set[int] = set()
        self.call_count = 0

    def clock(self) -> float:
        return self.now_s

    def memory_info(self, index: int) -> MemoryInfo:
        return MemoryInfo(total_bytes=self.free_bytes + GIB, used_bytes=GIB)

    def allocate(self, index: int, size_bytes: int) -> bytearray:
        self._reach(index)
        made = bytearray(16)
        self.buffers.append(made)
        return made

    def write(self, buffer: bytearray, data: memoryview, offset_bytes: int) -> None:
        return

    def copy(self, source: bytearray, destination: bytearray, size_bytes: int) -> None:
        self._take(2 * size_bytes / self.bytes_per_s)

    def multiply(
        self, left: bytearray, right: bytearray, shape: MatrixShape, precision: Precision
    ) -> bytearray:
        size_bytes = shape.inner * shape.columns * (4 if precision == "float32" else 2)
        work = 2 * shape.rows * shape.inner * shape.columns
        if shape.rows in self.held_up_sides:
            self.now_s += 0.018
        self._take(max(size_bytes / self.bytes_per_s, work / self.flops_per_s))
        made = bytearray(16)
        self.buffers.append(made)
        return made

    def _take(self, work_s: float) -> None:
        self.call_count += 1
        self.now_s += self.call_s + work_s + (0.5 if self.call_count in self.held_up_calls else 0.0)
        if self.is_slow_first:
            self.now_s += 5.0
            self.is_slow_first = False


def on(driver: Timed) -> InlineBackend:
    return InlineBackend(driver, NODE)


class TestBandwidth:
    @pytest.mark.parametrize("name", ["cpu", "cuda"])
    @pytest.mark.parametrize("gb_per_s", [5, 50, 400])
    async def test_is_that_of_the_device(self, name: Backend, gb_per_s: float) -> None:
        driver = Timed(name)
        driver.bytes_per_s = gb_per_s * 1e9
        backend = on(driver)
        found_bytes_per_s = await measure_bandwidth(backend, backend.devices[0], clock=driver.clock)
        assert found_bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=1e-3)
        assert driver.buffers == []

    async def test_takes_a_part_of_what_is_free(self) -> None:
        driver = Timed("cpu", free_bytes=100 * 2**20)
        backend = on(driver)
        assert await measure_bandwidth(backend, backend.devices[0], clock=driver.clock) is None
        assert driver.buffers == []

    async def test_what_is_too_fast_for_the_clock_is_not_made_up(self) -> None:
        driver = Timed()
        driver.bytes_per_s = 1e16
        backend = on(driver)
        assert await measure_bandwidth(backend, backend.devices[0], clock=driver.clock) is None

    async def test_a_lost_device_leaves_nothing_behind(self) -> None:
        driver = Timed()
        backend = on(driver)
        driver.lost.add(0)
        with pytest.raises(DeviceLostError):
            await measure_bandwidth(backend, backend.devices[0], clock=driver.clock)
        assert driver.buffers == []


class TestCompute:
    @pytest.mark.parametrize("tera", [0.0005, 0.05, 1, 20, 100])
    async def test_is_that_of_the_device(self, tera: float) -> None:
        driver = Timed()
        driver.flops_per_s = tera * 1e12
        driver.bytes_per_s = 1e15
        backend = on(driver)
        rate = await measure_compute(backend, backend.devices[0].device_id, "float16", clock=driver.clock)
        # A slow one is measured by the first product alone, with what its call costs.
        assert rate == pytest.approx(tera * 1e12, rel=0.01)
        assert driver.buffers == []


class TestHeldUp:
    """Something else takes the processor for a while, as often happens."""

    @pytest.mark.parametrize("held_up_calls", [{1, 2, 3}, {2, 5, 8}, {1, 4, 6, 7, 9}])
    async def test_single_delays_do_not_count(self, held_up_calls: set[int]) -> None:
        driver = Timed("cpu")
        driver.bytes_per_s = 2e10
        driver.held_up_calls = held_up_calls
        backend = on(driver)
        rate = await measure_bandwidth(backend, backend.devices[0], clock=driver.clock)
        assert rate == pytest.approx(2e10, rel=0.01)

    async def test_a_small_piece_that_was_always_held_up_makes_nothing_seem_faster(self) -> None:
        driver = Timed()
        driver.bytes_per_s, driver.flops_per_s = 1e15, 1e11
        driver.held_up_sides = {512}
        backend = on(driver)
        rate = await measure_compute(backend, backend.devices[0].device_id, "float16", clock=driver.clock)
        assert rate == pytest.approx(1e11, rel=0.15)


async def test_this_machines_processor() -> None:
    driver = CPUDriver()
    backend: GPUBackend = ThreadedBackend(driver, NODE)
    await backend.initialize()
    try:
        (device,) = await backend.list_devices()
        bandwidth = await measure_bandwidth(backend, device, clock=time.perf_counter)
        flops = await measure_compute(backend, device.device_id, "float32", clock=time.perf_counter)
    finally:
        await backend.shutdown()
    # A busy machine gives what it gives; no processor is outside of this.
    if bandwidth is not None:
        assert 1e8 < bandwidth < 1e13
    assert flops is not None and 1e8 < flops < 1e15
