"""Three real processes over TCP and multicast on loopback: one cluster, through kill -9, SIGSTOP and restarts."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exo.cluster.log.segments import SegmentLog
from exo.shared.types.events import DeviceLost, TermOpened

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


class Process:
    """One coordinator's process, and everything that it has said."""

    def __init__(self, home: Path, secret_file: Path, port: int) -> None:
        self.home = home
        self.committed: dict[str, dict[str, Any]] = {}
        self._arguments = [
            sys.executable,
            str(TESTS / "support" / "coordinator_process.py"),
            str(home),
            str(secret_file),
            str(port),
        ]
        self.start()

    def start(self) -> None:
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        with (self.home.parent / f"{self.home.name}.err").open("ab") as errors:
            self.process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        threading.Thread(target=self._read, args=(self.process, self._answers), daemon=True).start()
        self.node_id: str = self.answer("node_id")["node_id"]

    def _read(self, process: subprocess.Popen[str], answers: "queue.Queue[dict[str, Any]]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if not line.endswith("\n"):
                    break  # Cut short by a kill.
                said = json.loads(line)
                if "committed" in said:
                    self.committed[said["committed"]] = said
                else:
                    answers.put(said)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self, key: str) -> dict[str, Any]:
        while True:
            try:
                said = self._answers.get(timeout=15)
            except queue.Empty:
                errors = (self.home.parent / f"{self.home.name}.err").read_text()
                pytest.fail(
                    f"{self.home.name} gave no {key} (exit code {self.process.poll()}): {errors[-2000:]}"
                )
            if key in said:
                return said

    def report(self) -> dict[str, Any]:
        self.tell("report")
        return self.answer("digest")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, whatever state it is in."""
        self.process.kill()
        self.process.wait(10)
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Process]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started: list[Process] = []
    threads = [
        threading.Thread(
            target=lambda name=name: started.append(
                Process(tmp_path / name, tmp_path / "own" / "secret", port)
            )
        )
        for name in ("one", "two", "three")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield started
    for process in started:
        process.kill()


def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait for a condition. How long it may take is for safety only: other things run on this machine."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "not in time"
        time.sleep(0.02)


def are_one(processes: list[Process]) -> bool:
    reports = [process.report() for process in processes]
    wanted = sorted(process.node_id for process in processes)
    return (
        len({(report["cluster_id"], report["index"], report["digest"]) for report in reports}) == 1
        and len({report["master"] for report in reports}) == 1
        and all(report["connected"] == wanted and report["master"] for report in reports)
    )


def have_committed(processes: list[Process], wanted: dict[str, int]) -> bool:
    return all(len(process.committed) > wanted[process.node_id] for process in processes)


def master_of(processes: list[Process]) -> tuple[Process, list[Process]]:
    master = processes[0].report()["master"]
    return next(p for p in processes if p.node_id == master), [p for p in processes if p.node_id != master]


def test_one_cluster_through_the_death_of_its_master(processes: list[Process]) -> None:
    assert len(processes) == 3
    until(lambda: are_one(processes))
    master, followers = master_of(processes)
    for process in processes:
        process.tell("work")
    until(lambda: all(len(process.committed) > 50 for process in processes))
    for round_number in range(3):
        master.kill()
        acknowledged = {tag: said for process in processes for tag, said in process.committed.items()}
        until(lambda: all(process.report()["master"] is None for process in followers))
        master.start()
        until(lambda: all(process.report()["master"] == master.node_id for process in followers))
        wanted = {process.node_id: len(process.committed) + 20 for process in followers}
        until(partial(have_committed, followers, wanted))
        assert master.report()["term"] == round_number + 2
        assert acknowledged
    for process in followers:
        process.tell("rest")
        process.answer("resting")
    until(lambda: are_one(processes))
    cluster_id = master.report()["cluster_id"]
    for process in processes:
        process.kill()

    log = SegmentLog(master.home / "log")
    entries = list(log.read())
    log.close()
    times = Counter(entry.event.reason for entry in entries if isinstance(entry.event, DeviceLost))
    acknowledged = {
        tag: said
        for process in processes
        for tag, said in process.committed.items()
        if said["cluster_id"] == cluster_id
    }
    assert len(acknowledged) > 300
    assert [tag for tag in acknowledged if times[tag] != 1] == []
    assert [tag for tag, count in times.items() if count != 1] == []
    by_tag = {entry.event.reason: entry.index for entry in entries if isinstance(entry.event, DeviceLost)}
    assert all(by_tag[tag] <= said["index"] for tag, said in acknowledged.items())
    assert [entry.term for entry in entries if isinstance(entry.event, TermOpened)] == [1, 2, 3, 4]


def test_a_follower_is_killed_and_comes_back(processes: list[Process]) -> None:
    until(lambda: are_one(processes))
    master, (first, second) = master_of(processes)
    first.kill()
    until(lambda: first.node_id not in master.report()["connected"])
    assert second.node_id in master.report()["connected"]
    first.start()
    until(lambda: are_one(processes))


def test_a_stopped_process_is_noticed_and_welcome_again(processes: list[Process]) -> None:
    until(lambda: are_one(processes))
    master, (first, second) = master_of(processes)
    first.signal(signal.SIGSTOP)
    until(lambda: first.node_id not in master.report()["connected"])
    first.signal(signal.SIGCONT)
    until(lambda: are_one(processes))

    master.signal(signal.SIGSTOP)
    until(lambda: all(process.report()["master"] is None for process in (first, second)))
    master.signal(signal.SIGCONT)
    until(lambda: are_one(processes))
    assert master.report()["master"] == master.node_id
