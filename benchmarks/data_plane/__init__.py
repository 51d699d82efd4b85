"""What it costs that hidden values travel in mutual TLS between hosts: the same frames in plain and in TLS, in turn.

Two processes on this machine, with the sockets that stages have. What is sent stands for a model with hidden values of
8 KiB a position (4,096 numbers of 16 bits): one position a token, and 512 at a time while a prompt is read.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.cluster.measuring import CannotMeasureError
from benchmarks.data_plane.ends import End, Way, admit_both
from benchmarks.results import Result
from exo.dataplane.frames import Frame
from exo.shared.types.nodes import HostPort

POSITION_BYTES = 8 * 1024
PROMPT_POSITIONS = 512


class Caller:
    """The stage that sends. One link in plain and one in TLS, to the same process."""

    def __init__(self, ends: dict[Way, End], peers: dict[Way, HostPort]) -> None:
        self._ends = ends
        self._links = {way: end.dial(peers[way]) for way, end in ends.items()}
        self._answers = 0
        for end in ends.values():
            end.network.on_frame = self._answered

    def _answered(self, connection: object, frame: Frame, payload: object) -> None:
        self._answers += 1

    def is_secured(self, way: Way) -> bool:
        """Say whether the link is in TLS."""
        return self._links[way].is_secured

    def round_trips_us(self, way: Way, count: int) -> list[float]:
        """Send the hidden values of one position, wait for the token, and so on."""
        end, link, payload = self._ends[way], self._links[way], bytes(POSITION_BYTES)
        times: list[float] = []
        for _ in range(count):
            started_s = time.perf_counter()
            link.send(end.activation(wants_token=True), payload)
            self._await_answer(end)
            times.append((time.perf_counter() - started_s) * 1e6)
        return times

    def prompts_bytes_per_s(self, way: Way, count: int) -> float:
        """Send so many pieces of a prompt, as fast as they are taken, and wait for the token behind the last."""
        end, link, payload = self._ends[way], self._links[way], bytes(POSITION_BYTES * PROMPT_POSITIONS)
        started_s = time.perf_counter()
        for number in range(count):
            link.send(end.activation(wants_token=number == count - 1), payload)
            while link.backlog_bytes > 2 * len(payload):
                end.network.poll(1.0)
        self._await_answer(end)
        return count * len(payload) / (time.perf_counter() - started_s)

    def links_ms(self, way: Way, peer: HostPort, count: int) -> list[float]:
        """Dial, prove who is there, and hang up."""
        end = self._ends[way]
        times: list[float] = []
        for _ in range(count):
            started_s = time.perf_counter()
            link = end.dial(peer)
            while not link.is_open:
                end.network.poll(1.0)
            times.append((time.perf_counter() - started_s) * 1000)
            end.network.lose(link, "measured")
            end.network.poll(0)
        return times

    def _await_answer(self, end: End) -> None:
        answers = self._answers
        while self._answers == answers:
            end.network.poll(1.0)


def run(*, quick: bool) -> list[Result]:
    """Rounds in plain and in TLS take turns, so that whatever else the machine does hits both."""
    rounds = 5 if quick else 25
    with linked() as (caller, peers):
        for way in Way:
            caller.round_trips_us(way, 200)
            caller.prompts_bytes_per_s(way, 10)
        trips = paired(rounds, lambda way: statistics.median(caller.round_trips_us(way, 200)))
        prompts = paired(rounds, lambda way: caller.prompts_bytes_per_s(way, 40) / 1e6)
        links = paired(rounds, lambda way: statistics.median(caller.links_ms(way, peers[way], 10)))
    return [
        compared("hidden values of one position there, a token back, mutual TLS", trips, "us", at_most=3),
        compared("hidden values of prompts, mutual TLS", prompts, "MB/s", at_least=0.2),
        compared("a link dialled until both are sure of each other, mutual TLS", links, "ms"),
    ]


def paired(rounds: int, measure: Callable[[Way], float]) -> dict[Way, list[float]]:
    """Measure both ways in turn; each is first in half of the rounds."""
    times: dict[Way, list[float]] = {way: [] for way in Way}
    for number in range(rounds):
        for way in list(Way) if number % 2 else reversed(Way):
            times[way].append(measure(way))
    return times


def compared(
    name: str,
    values: dict[Way, list[float]],
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Result:
    """Return the figure in TLS beside that in plain, as the median of the rounds' ratios."""
    pairs = zip(values[Way.TLS], values[Way.PLAIN], strict=True)
    return Result(
        name=name,
        value=statistics.median(values[Way.TLS]),
        unit=unit,
        baseline=statistics.median(values[Way.PLAIN]),
        bar=at_most if at_least is None else at_least,
        at_least=at_least is not None,
        paired_ratio=statistics.median(tls / plain for tls, plain in pairs),
    )


@contextmanager
def linked() -> Generator[tuple[Caller, dict[Way, HostPort]]]:
    """Start a process that answers in each way, and link to both."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        here, there = admit_both(Path(directory))
        ends = {way: End(here, way) for way in Way}
        for end in ends.values():
            stack.callback(end.network.close)
        peers = {way: HostPort("127.0.0.1", stack.enter_context(_answering(there, way))) for way in Way}
        yield Caller(ends, peers), peers


@contextmanager
def _answering(home: Path, way: Way) -> Generator[int]:
    """Yield the port of a process that answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.data_plane.answering", str(home), way.value],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise CannotMeasureError("the process at the other end did not start")
        yield int(line)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
