"""How long one collection of 16 devices takes over the real CUDA driver, with slow calls and one device that hangs."""

import statistics

from benchmarks.cluster.measuring import CannotMeasureError, Sheet, percentile
from benchmarks.results import Result
from benchmarks.telemetry import stub_driver, watching


def run(*, quick: bool) -> list[Result]:
    """From the moment when the device begins to hang; the library is the stub of the tests."""
    sheet = Sheet()
    count = 25 if quick else 250
    said = watching.ask("collections", count, timeout_s=60 + count)
    if not said["reason"]:
        raise CannotMeasureError("the device that hangs was not told to be in trouble: the stub did not hang")
    times_ms = [one * 1000 for one in said["times_s"]]
    name = f"collection of {stub_driver.DEVICES} devices, one hangs"
    sheet.add(f"{name}: p50", statistics.median(times_ms), "ms")
    sheet.add(f"{name}: p99", percentile(times_ms, 99), "ms", at_most=100)
    sheet.add(f"{name}: longest", max(times_ms), "ms")
    sheet.add(f"{name}: the others told with it", said["told_percent"], "%")
    return sheet.results
