"""The log alone: decisions made durable one by one and in batches, beside bare writes of the same bytes."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.cluster import large
from benchmarks.cluster.assembly import make_log
from benchmarks.cluster.measuring import Sheet
from benchmarks.results import Result
from exo.shared.types.events import DeviceLost, LogEntry
from exo.shared.types.ids import DeviceId

BATCH = 64


def run(*, quick: bool) -> list[Result]:
    """In turn, each beside its baseline: a disk's mood changes. All are synced."""
    singles = BATCH * (4 if quick else 32)
    rounds = 3 if quick else 9
    entries = large.entries(
        [
            DeviceLost(node_id=large.node_id(1), device_id=DeviceId("none"), reason=f"event {number}")
            for number in range(singles)
        ]
    )
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        for name, unit, batch in (("single", "commits/s", 1), (f"batches of {BATCH}", "events/s", BATCH)):
            ours: list[float] = []
            bare: list[float] = []
            for number in range(rounds):
                directory = Path(folder) / f"{batch}-{number}"
                ours.append(_per_s(partial(_append, entries=entries, batch=batch), directory, singles))
                size_bytes = sum(file.stat().st_size for file in directory.iterdir())
                frames = singles // batch
                write = partial(_write, size_bytes=size_bytes // frames, count=frames)
                bare.append(_per_s(write, directory, singles))
            results.append(
                Result(
                    name=f"log: {name}, synced",
                    value=statistics.median(ours),
                    unit=unit,
                    baseline=statistics.median(bare),
                    paired_ratio=statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
                    bar=0.4 if batch == 1 else 0.25,
                )
            )
        sheet = Sheet()
        sheet.add("log: open and read back", _read_back(Path(folder) / "1-0", singles), "events/s")
    return [*results, *sheet.results]


def _per_s(work: Callable[[Path], None], directory: Path, count: int) -> float:
    directory.mkdir(exist_ok=True)
    started_s = time.perf_counter()
    work(directory)
    return count / (time.perf_counter() - started_s)


def _append(directory: Path, entries: list[LogEntry], batch: int) -> None:
    log = make_log(directory)
    for start in range(0, len(entries), batch):
        log.append(entries[start : start + batch])
        log.sync()
    log.close()


def _write(directory: Path, size_bytes: int, count: int) -> None:
    """The least that durability costs here."""
    data = b"x" * size_bytes
    with (directory / "bare").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(data)
            os.fdatasync(file.fileno())


def _read_back(directory: Path, count: int) -> float:
    (directory / "bare").unlink()
    started_s = time.perf_counter()
    log = make_log(directory)
    read = sum(1 for _ in log.read())
    used_s = time.perf_counter() - started_s
    log.close()
    assert read == count
    return count / used_s
