"""What watching 16 devices at a node's interval costs the processor, in a process that does nothing else."""

from benchmarks.cluster.measuring import Sheet
from benchmarks.results import Result
from benchmarks.telemetry import stub_driver, watching


def run(*, quick: bool) -> list[Result]:
    """Processor time: other programs hardly change it. What the calls cost by themselves is not the collector's."""
    sheet = Sheet()
    seconds = 6.0 if quick else 30.0
    said = watching.ask("cost", seconds, timeout_s=60 + seconds)
    name = f"watching {stub_driver.DEVICES} devices every 2 s"
    sheet.add(f"{name}: the collector", said["percent"] - said["stub_percent"], "% of a core", at_most=1)
    sheet.add(f"{name}: with the calls themselves", said["percent"], "% of a core")
    sheet.add(f"{name}: one collection", said["percent"] / 100 * watching.INTERVAL_S * 1000, "ms of a core")
    sheet.add(f"{name}: calls of the library", said["calls_per_s"], "1/s")
    return sheet.results
