"""`GET /state` of 1,000 nodes of 8 GPUs, through the application in this process and through a real socket."""

import asyncio
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cluster import large
from benchmarks.cluster.measuring import CannotMeasureError, Sheet
from benchmarks.cluster.state_server import Served
from benchmarks.results import Result

CHANGES = {
    "nothing new": 0,
    "news of 12 nodes": 12,  # What comes within 25 ms when each of 1,000 publishes every 2 s.
    "news of all nodes": large.NODES,
}


def run(*, quick: bool) -> list[Result]:
    """Each after nothing, little and all of the telemetry has changed."""
    sheet = Sheet()
    rounds = 5 if quick else 25
    with asyncio.Runner() as runner:
        served = Served(Path())
        first_ms, size_bytes = _timed(lambda: runner.run(_get(served)))
        sheet.add("/state: size", size_bytes / 1e6, "MB")
        sheet.add("/state: in process, the first time", first_ms, "ms")
        for name, nodes in CHANGES.items():
            times = _rounds(rounds, nodes, served.publish, lambda: runner.run(_get(served)))
            sheet.add(f"/state: in process, {name}", statistics.median(times), "ms", at_most=25)
    with _server() as (publish, get):
        get()
        for name, nodes in CHANGES.items():
            times = _rounds(rounds, nodes, publish, get)
            sheet.add(f"/state: through a socket, {name}", statistics.median(times), "ms", at_most=25)
    return sheet.results


def _rounds(rounds: int, nodes: int, publish: Callable[[int], None], get: Callable[[], int]) -> list[float]:
    times: list[float] = []
    for _ in range(rounds):
        if nodes:
            publish(nodes)
        times.append(_timed(get)[0])
    return times


def _timed(get: Callable[[], int]) -> tuple[float, int]:
    """Return milliseconds, and what was gotten."""
    started_s = time.perf_counter()
    size_bytes = get()
    return (time.perf_counter() - started_s) * 1000, size_bytes


async def _get(served: Served) -> int:
    """Ask the application as a server does; return the size of the body."""
    received: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        received.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/state",
        "raw_path": b"/state",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await served.app(scope, receive, send)
    assert received[0]["status"] == 200, received
    return sum(len(message.get("body", b"")) for message in received[1:])


@contextmanager
def _server() -> Generator[tuple[Callable[[int], None], Callable[[], int]]]:
    """Start the server; yield how to publish there, and how to ask it on one connection that stays."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cluster.state_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def publish(nodes: int) -> None:
        stdin.write(f"{nodes}\n")
        stdin.flush()
        stdout.readline()

    try:
        line = stdout.readline()
        if not line:
            raise CannotMeasureError("the server of the state did not start")
        connection = http.client.HTTPConnection("127.0.0.1", json.loads(line)["port"], timeout=30)

        def get() -> int:
            connection.request("GET", "/state")
            answer = connection.getresponse()
            size_bytes = len(answer.read())
            assert answer.status == 200
            return size_bytes

        yield publish, get
        connection.close()
    finally:
        stdin.close()
        process.wait(30)
        stdout.close()
