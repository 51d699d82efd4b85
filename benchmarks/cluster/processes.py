"""Clusters of bare coordinators in real processes: started, told what to do, stopped, killed."""

import json
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cluster.assembly import Place, admit
from benchmarks.cluster.measuring import CannotMeasureError
from exo.shared.types.nodes import HostPort

ANSWER_S = 20.0
"""How long anything may take here; only what does not work takes so long."""


class CoordinatorProcess:
    """One process of `coordinator_process`, and what it says.

    Args:
        place: Its disk and addresses.
        prefix: Words before its command line, such as those that enter a network namespace.
    """

    def __init__(self, place: Place, prefix: Sequence[str] = ()) -> None:
        self.place = place
        self.name = place.home.name
        self.node_id = ""
        self.started_s = 0.0
        """When it began to put itself together, with Python and its modules already there."""
        self._prefix = prefix
        self._errors = place.home.parent / f"{self.name}.err"
        admit(place.home)

    def launch(self) -> None:
        """Start it without waiting."""
        self._said: defaultdict[str, queue.Queue[Any]] = defaultdict(queue.Queue)
        command = [sys.executable, "-m", "benchmarks.cluster.coordinator_process", *self.place.arguments()]
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*self._prefix, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        threading.Thread(target=self._read, args=(self.process, self._said), daemon=True).start()

    def wait_started(self) -> None:
        """Return when it is a member of its own cluster or of another."""
        started = self.answer("started")
        self.node_id, self.started_s = started["node_id"], started["at_s"]

    def start(self) -> None:
        """Start it and wait for that."""
        self.launch()
        self.wait_started()

    def tell(self, do: str, **arguments: object) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self, key: str, timeout_s: float = ANSWER_S) -> Any:
        """Return the next thing that it says under this key.

        Raises:
            CannotMeasureError: It says nothing of the kind.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                return self._said[key].get(timeout=0.2)
            except queue.Empty:
                code = self.process.poll()
                failed = self._said["failed"]
                if not failed.empty():
                    raise CannotMeasureError(f"the node {self.name}: {failed.get()}") from None
                if code is not None or time.monotonic() > until_s:
                    story = f"ended with {code}" if code is not None else f"gave no {key} in {timeout_s:g} s"
                    last = self._errors.read_text(errors="replace").strip()[-500:]
                    raise CannotMeasureError(f"the node {self.name} {story}: {last}") from None

    def ask(self, do: str, key: str, timeout_s: float = ANSWER_S, **arguments: object) -> Any:
        """Give a command and return the answer."""
        self.tell(do, **arguments)
        return self.answer(key, timeout_s)

    def report(self) -> dict[str, Any]:
        """Return what it knows."""
        return self.ask("report", "report")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, whatever state it is in."""
        self.process.kill()
        self.process.wait(10)
        self._close()

    def stop(self) -> None:
        """Let it end by itself; kill it where it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self._close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def _close(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    @staticmethod
    def _read(process: "subprocess.Popen[str]", said: "defaultdict[str, queue.Queue[Any]]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith("\n"):  # Else it was cut short by a kill.
                    for key, value in json.loads(line).items():
                        said[key].put(value)


Nodes = list[CoordinatorProcess]


@contextmanager
def cluster(count: int) -> Generator[Nodes]:
    """Yield the processes of a cluster that is formed; they end with the block.

    Raises:
        CannotMeasureError: They do not become one cluster.
    """
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        addresses = free_addresses(count)
        nodes = [
            CoordinatorProcess(
                Place(
                    home=Path(folder) / f"node-{number}",
                    listen=address,
                    peers=tuple(other for other in addresses if other != address),
                )
            )
            for number, address in enumerate(addresses)
        ]
        with running(nodes):
            yield nodes


@contextmanager
def running(nodes: Nodes) -> Generator[None]:
    """Start processes, wait until they are one cluster, and end them with the block."""
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_started()
        wait_whole(nodes)
        yield
    finally:
        for node in nodes:
            node.stop()


def newcomer(nodes: Nodes, name: str) -> CoordinatorProcess:
    """Return a node that is not started yet, with an empty disk, and knows the others' addresses."""
    place = nodes[0].place
    return CoordinatorProcess(
        Place(
            home=place.home.parent / name,
            listen=free_addresses(1)[0],
            peers=tuple(node.place.listen for node in nodes),
        )
    )


def free_addresses(count: int) -> list[HostPort]:
    """Return addresses on loopback that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [HostPort(*probe.getsockname()[:2]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_whole(nodes: Nodes) -> None:
    """Return when all of them know of each other as connected, under one master, at one index."""
    wanted = sorted(node.node_id for node in nodes)

    def is_whole() -> bool:
        reports = [node.report() for node in nodes]
        first = reports[0]
        same = all(
            (report["cluster_id"], report["master"], report["index"])
            == (first["cluster_id"], first["master"], first["index"])
            for report in reports
        )
        # Where nothing is said of voters there is one log, the master's.
        has_voters = not first["voters"] or len(first["voters"]) >= min(3, len(nodes))
        return same and has_voters and first["master"] is not None and first["connected"] == wanted

    until(is_whole, f"{len(nodes)} nodes do not become one cluster")


def until(condition: Callable[[], bool], what: str, timeout_s: float = ANSWER_S) -> None:
    """Wait for a condition.

    Raises:
        CannotMeasureError: It does not come; the message is `what`.
    """
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            raise CannotMeasureError(f"{what} within {timeout_s:g} s")
        time.sleep(0.02)


def master_of(nodes: Nodes) -> tuple[CoordinatorProcess, Nodes]:
    """Return the master and the others."""
    master = nodes[0].report()["master"]
    found = next((node for node in nodes if node.node_id == master), None)
    if found is None:
        raise CannotMeasureError("there is no master")
    return found, [node for node in nodes if node is not found]
