"""What telemetry takes from inference: one node's speed with it and without, in turn.

Devices are read five times as often as a node does it, so that what it takes is seen through a machine's noise.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path

from benchmarks.calibration import calibrate
from benchmarks.cluster.measuring import CannotMeasureError, Sheet
from benchmarks.cluster.processes import until
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result
from benchmarks.stream_client import stream_chat
from benchmarks.telemetry import stub_driver
from benchmarks.telemetry.switched_node import INTERVAL_S, SWITCH

MODEL = "exo-tiny"
PROMPT = "Count to 12."
TOKENS = 64
ROUND_S = 2.0
"""Five collections."""
TIMES_AS_MUCH = 4.0
"""What is done in a second, against a node that reads every 2 s. Less than the five times as many readings: what
hardly changes is asked for no more often."""
_NORMAL_95 = 1.96


def run(*, quick: bool) -> list[Result]:
    """Streams of a small model on the processor, of a node with 16 devices that answer slowly."""
    stub_driver.needed()
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        switch = Path(folder) / "off"
        node = SwitchedNode(
            Path(folder) / "node",
            "--quiet",
            "--no-discovery",
            f"--telemetry-interval={INTERVAL_S}",
            environment={"EXO_GPU_BACKEND": "cuda", SWITCH: str(switch)},
        )
        with node:
            status, instance = node.call("POST", "/instance", {"model_id": MODEL})
            if status != 201:
                raise CannotMeasureError(f"{MODEL} could not be placed: {instance}")
            node.get(f"/instance/{instance['instance_id']}/wait?timeout_s=120", timeout_s=130)
            until(lambda: _watched(node) == stub_driver.DEVICES, "the devices of the stub are not told")
            _speed(node, 2 * ROUND_S)  # Compiled kernels, warm caches, open connections.
            with_s, without_s = _rounds(node, switch, 4 if quick else 80)
    return judged(with_s, without_s)


def judged(on: Sequence[float], off: Sequence[float]) -> list[Result]:
    """Return the figures of pairs of speeds, with the devices read and without. Pure but for the calibration.

    The bar is on the end of the interval: what is not known to take less than one percent does not hold it.
    """
    ratios = [one / other for one, other in zip(on, off, strict=True)]
    speed = Result(
        name=f"{MODEL} with telemetry of {stub_driver.DEVICES} devices every {INTERVAL_S:g} s: speed",
        value=statistics.median(on),
        unit="tokens/s",
        baseline=statistics.median(off),
        paired_ratio=statistics.median(ratios),
        calibration=calibrate(),
    )
    taken, low, high = interval([taken_percent(ratio) for ratio in ratios])
    sheet = Sheet()
    name = "taken from inference by telemetry every 2 s"
    sheet.add(f"{name}: estimate", taken, "%")
    sheet.add(f"{name}: 95 % interval of {len(ratios)} pairs, from", low, "%")
    sheet.add(f"{name}: 95 % interval, to", high, "%", at_most=1)
    return [speed, *sheet.results]


def taken_percent(ratio: float) -> float:
    """Return what a node loses that reads its devices every 2 s, of a ratio measured with more readings."""
    return (1 - ratio) * 100 / TIMES_AS_MUCH


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the Hodges-Lehmann estimate of the middle, and its 95 % interval. Pure.

    Median and order statistics of the means of all pairs; M. Hollander, D. Wolfe and E. Chicken, "Nonparametric
    Statistical Methods", 3rd edition, 2013, section 3.3, with the normal approximation of Wilcoxon's signed rank
    statistic. Single wild rounds hardly move it. Of fewer than six values it is all of them.
    """
    count = len(values)
    means = sorted((one + other) / 2 for one, other in combinations_with_replacement(values, 2))
    spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    left_out = max(0, math.floor(count * (count + 1) / 4 - _NORMAL_95 * spread))
    return statistics.median(means), means[left_out], means[-1 - left_out]


class SwitchedNode(NodeProcess):
    """A node whose telemetry can be turned off while it runs."""

    module = "benchmarks.telemetry.switched_node"


def _rounds(node: NodeProcess, switch: Path, count: int) -> tuple[list[float], list[float]]:
    on: list[float] = []
    off: list[float] = []
    for number in range(count):
        # Either first every other time, so that neither always runs on the warmer machine.
        for is_on in (True, False) if number % 2 else (False, True):
            if is_on:
                switch.unlink(missing_ok=True)
            else:
                switch.touch()
            (on if is_on else off).append(_speed(node, ROUND_S))
    return on, off


def _speed(node: NodeProcess, seconds: float) -> float:
    """Stream chats one after the other for so long; return tokens per second of the time that streams took."""
    tokens, took_s = 0, 0.0
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        times_s = stream_chat(node.url, model=MODEL, prompt=PROMPT, tokens=TOKENS).times_s
        if len(times_s) != TOKENS:
            raise CannotMeasureError(f"a stream had {len(times_s)} tokens, not {TOKENS}")
        tokens, took_s = tokens + TOKENS, took_s + times_s[-1]
    return tokens / took_s


def _watched(node: NodeProcess) -> int:
    return sum("/cuda" in device_id for device_id in node.get("/state")["gpu_device_state"])
