"""What this machine can do right now: read beside figures that are absolute."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable


def calibrate() -> dict[str, float]:
    """Return the time of a fixed loop and of one fsync, medians of several, in milliseconds."""
    return {"cpu_loop_ms": _median_ms(_loop), "fsync_ms": _median_ms(_fsync)}


def _median_ms(measured: Callable[[], None]) -> float:
    times: list[float] = []
    for _ in range(5):
        started_s = time.perf_counter()
        measured()
        times.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(times)


def _loop() -> None:
    total = 0
    for number in range(1_000_000):
        total += number
    assert total > 0


def _fsync() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
