"""Drives coordinators in processes of their own: starts, stops and kills them, asks them, and reads what they left."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from exo.cluster.log.segments import SegmentLog
from exo.shared.types.events import LogEntry, NodeDisconnected, TermOpened
from support.coordinator_process import NOBODY, Place
from support.workload import tag_of as fact_tag_of

TESTS = Path(__file__).parents[1]
ANSWER_S = 20.0
WAIT_S = 30.0
"""For safety only: other things run on this machine."""
FAILOVER_MAX_S = 2.0
"""How long a cluster may be without a master: the promise of `exo`'s benchmarks, 99 times of 100."""


class CoordinatorProcess:
    """One coordinator's process, and everything that it has said in all of its boots.

    Args:
        place: Where it lives.
        within: The beginning of a command line that runs the rest elsewhere.
    """

    def __init__(self, place: Place, within: Sequence[str] = ()) -> None:
        self.place = place
        self.home = Path(place.home)
        self.committed: dict[str, dict[str, Any]] = {}
        """What was acknowledged to it, by tag."""
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.leaders: list[dict[str, Any]] = []
        """Who led, as it saw it."""
        self.node_id = ""
        self._command = [
            *within,
            sys.executable,
            str(TESTS / "support" / "coordinator_process.py"),
            msgspec.json.encode(place).decode(),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def errors_file(self) -> Path:
        """Where its stderr goes: not on its own disk, which may be full."""
        return Path(self.place.secret_file).parent / f"{self.home.name}.err"

    def errors(self) -> str:
        return self.errors_file.read_text(errors="replace") if self.errors_file.exists() else ""

    def launch(self) -> None:
        """Start it without waiting."""
        self.errors_file.parent.mkdir(parents=True, exist_ok=True)
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        with self.errors_file.open("ab") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent / 'src'}"},
            )
        self._reader = threading.Thread(target=self._read, args=(self._process, self._answers), daemon=True)
        self._reader.start()

    def wait_started(self) -> None:
        """Wait until it takes part."""
        self.node_id = self.answer("node_id")["node_id"]

    def start(self) -> None:
        self.launch()
        self.wait_started()

    def _read(self, process: subprocess.Popen[str], answers: "queue.Queue[dict[str, Any]]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if not line.endswith("\n"):
                    break  # Cut short by a kill.
                said = json.loads(line)
                if "committed" in said:
                    self.committed[said["committed"]] = said
                elif "outcome" in said:
                    self.outcomes[said["outcome"]] = said
                elif "leads" in said:
                    self.leaders.append(said)
                else:
                    answers.put(said)

    def tell(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure(f"could not be told {line!r}") from None

    def answer(self, key: str) -> dict[str, Any]:
        """Return the next thing that it says about something."""
        ends_s = time.monotonic() + ANSWER_S
        while time.monotonic() < ends_s:
            try:
                said = self._answers.get(timeout=0.2)
            except queue.Empty:
                if not self.is_running and self._answers.empty():
                    break
                continue
            if key in said:
                return said
        raise self._failure(f"gave no {key}")

    def _failure(self, what: str) -> AssertionError:
        assert self._process is not None
        code = self._process.poll()
        return AssertionError(f"{self.home.name} {what} (exit code {code}): {self.errors()[-3000:]}")

    def report(self) -> dict[str, Any]:
        self.tell("report")
        return self.answer("digest")

    def outcome(self, tag: str) -> dict[str, Any]:
        """Wait for what came of `propose`, `decide` or `confirm`."""
        until(lambda: tag in self.outcomes, f"{self.home.name} tells what came of {tag}")
        return self.outcomes[tag]

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait_ended(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        assert self._process is not None
        until(lambda: not self.is_running, f"{self.home.name} ends")
        self.kill()
        return self._process.returncode

    def kill(self) -> None:
        """`kill -9`, whatever state it is in."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(10)
        if self._reader is not None:
            self._reader.join(10)
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass

    def led_after(self, at_s: float, master: str | None) -> dict[str, Any] | None:
        """Return when it first saw a certain master, or none, after a moment."""
        return next((one for one in self.leaders if one["at_s"] >= at_s and one["leads"] == master), None)

    def acknowledged_between(self, from_s: float, until_s: float) -> list[str]:
        return [tag for tag, said in self.committed.items() if from_s < said["at_s"] < until_s]


@contextmanager
def running(processes: Sequence[CoordinatorProcess]) -> Iterator[list[CoordinatorProcess]]:
    """Start processes and make one cluster of them, in which all vote if they are three. In the end they are killed.

    What they printed is printed again: it is shown for a test that failed.
    """
    try:
        for process in processes:
            process.launch()
        for process in processes:
            process.wait_started()
        wait_for_one(processes)
        yield list(processes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            print(f"--- {process.home.name} ({process.node_id})\n{process.errors()[-8000:]}")


def until(condition: Callable[[], object], what: str, *, timeout_s: float = WAIT_S) -> float:
    """Wait for a condition; return the moment at which it was seen."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic()


def are_one(processes: Sequence[CoordinatorProcess]) -> bool:
    """All are members, know one master, have the same state at the same index, and have it on disk."""
    reports = [process.report() for process in processes]
    wanted = sorted(process.node_id for process in processes)
    return (
        len({(one["cluster_id"], one["index"], one["digest"]) for one in reports}) == 1
        and len({one["master"] for one in reports} - {None}) == 1
        and all(one["connected"] == wanted and one["voters"] == wanted and one["master"] for one in reports)
        and all(one["stored"] == one["index"] for one in reports)
    )


def wait_for_one(processes: Sequence[CoordinatorProcess]) -> None:
    """Wait until nodes at rest are one cluster."""
    try:
        until(lambda: are_one(processes), "one cluster")
    except AssertionError as error:
        raise AssertionError(f"{error}: {[process.report() for process in processes]}") from None


def master_of(
    processes: Sequence[CoordinatorProcess],
) -> tuple[CoordinatorProcess, list[CoordinatorProcess]]:
    """Return the master and the others."""
    until(lambda: processes[0].report()["master"], "there is a master")
    master = processes[0].report()["master"]
    others = [process for process in processes if process.node_id != master]
    return next(process for process in processes if process.node_id == master), others


def wait_for_work(processes: Sequence[CoordinatorProcess], count: int) -> None:
    """Wait until so much more was acknowledged to each."""
    wanted = {process.node_id: len(process.committed) + count for process in processes}
    until(
        lambda: all(len(process.committed) >= wanted[process.node_id] for process in processes),
        f"{count} more decisions of each are acknowledged",
    )


def wait_for_election(
    processes: Sequence[CoordinatorProcess], before: CoordinatorProcess, since_s: float
) -> dict[str, Any]:
    """Wait until nodes know another master than before; return when the first of them led, and in which term."""

    def elected() -> dict[str, Any] | None:
        return next(
            (
                one
                for process in processes
                for one in process.leaders
                if one["at_s"] >= since_s and one["is_self"]
            ),
            None,
        )

    until(elected, "another node leads")
    until(
        lambda: (
            len({one.report()["master"] for one in processes} - {None, before.node_id}) == 1
            and all(one.report()["master"] for one in processes)
        ),
        "all of them follow another master",
    )
    found = elected()
    assert found is not None
    return found


def rest(processes: Sequence[CoordinatorProcess]) -> None:
    """Let everything that is under way come to an end."""
    for process in processes:
        process.tell("rest")
    for process in processes:
        process.answer("resting")


def tag_of(entry: LogEntry) -> str | None:
    """What tells a decision that a test had made from all others."""
    if isinstance(entry.event, NodeDisconnected) and entry.event.node_id == NOBODY:
        return entry.event.reason
    return fact_tag_of(entry)


def log_of(process: CoordinatorProcess) -> list[LogEntry]:
    """Read the log of a process that has ended."""
    log = SegmentLog(process.home / "log")
    try:
        return list(log.read())
    finally:
        log.close()


def end_and_check(processes: Sequence[CoordinatorProcess]) -> dict[str, LogEntry]:
    """Hold what was acknowledged against what is on the disks of nodes that were one cluster at rest.

    Returns what was decided, by tag.
    """
    for process in processes:
        process.signal(signal.SIGSTOP)  # So that nobody sees another one die.
    for process in processes:
        process.kill()
    first, *others = [log_of(process) for process in processes]
    assert [entry.index for entry in first] == list(range(1, len(first) + 1))
    for log in others:
        differing = [pair for pair in zip_longest(first, log) if pair[0] != pair[1]]
        assert not differing, f"the logs differ in {len(differing)} entries, first in {differing[0]}"
    terms = [entry.term for entry in first]
    assert terms == sorted(terms)
    opened = Counter(entry.term for entry in first if isinstance(entry.event, TermOpened))
    assert set(opened.values()) == {1}, f"a term was opened twice: {opened}"
    by_tag = {tag: entry for entry in first if (tag := tag_of(entry)) is not None}
    times = Counter(tag for entry in first if (tag := tag_of(entry)) is not None)
    assert [tag for tag, count in times.items() if count > 1] == [], "there twice"
    for process in processes:
        tried = {tag: one for tag, one in process.outcomes.items() if "index" in one and "confirm" not in tag}
        for tag, said in (process.committed | tried).items():
            assert tag in by_tag, f"acknowledged to {process.home.name} and lost: {said}"
            assert by_tag[tag].index <= said["index"], f"later than {process.home.name} was told: {said}"
    return by_tag
