"""What telemetry takes from inference: one node's speed with it and without, in turn."""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.calibration import calibrate
from benchmarks.cluster.measuring import CannotMeasureError, Sheet
from benchmarks.cluster.processes import until
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result
from benchmarks.stream_client import stream_chat
from benchmarks.telemetry import stub_driver
from benchmarks.telemetry.switched_node import SWITCH

MODEL = "exo-tiny"
PROMPT = "Count to 12."
TOKENS = 256
ROUND_S = 4.0
"""Two collections at a node's interval."""
LEAST_RATIO = 0.99
WIDEST = 0.02
"""An interval wider than this says nothing of one percent."""


def run(*, quick: bool) -> list[Result]:
    """Streams of a small model on the processor, of a node with 16 devices that answer slowly."""
    stub_driver.needed()
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        switch = Path(folder) / "off"
        node = SwitchedNode(
            Path(folder) / "node",
            "--quiet",
            "--no-discovery",
            environment={"EXO_GPU_BACKEND": "cuda", SWITCH: str(switch)},
        )
        with node:
            status, instance = node.call("POST", "/instance", {"model_id": MODEL})
            if status != 201:
                raise CannotMeasureError(f"{MODEL} could not be placed: {instance}")
            node.get(f"/instance/{instance['instance_id']}/wait?timeout_s=120", timeout_s=130)
            until(lambda: _watched(node) == stub_driver.DEVICES, "the devices of the stub are not told")
            _speed(node, ROUND_S)  # Compiled kernels, warm caches, open connections.
            with_s, without_s = _rounds(node, switch, 4 if quick else 40)
    return judged(with_s, without_s)


def judged(on: Sequence[float], off: Sequence[float]) -> list[Result]:
    """Return the figures of pairs of speeds, with the devices read and without."""
    ratios = [one / other for one, other in zip(on, off, strict=True)]
    low, high = interval(ratios)
    speed = Result(
        name=f"{MODEL} with telemetry of {stub_driver.DEVICES} devices: speed",
        value=statistics.median(on),
        unit="tokens/s",
        baseline=statistics.median(off),
        paired_ratio=statistics.median(ratios),
        bar=LEAST_RATIO,
        calibration=calibrate(),
    )
    sheet = Sheet()
    sheet.add(f"of that ratio, 95 % interval of {len(ratios)} pairs: from", low, "")
    sheet.add("of that ratio, 95 % interval: to", high, "")
    sheet.add("of that ratio, 95 % interval: width", high - low, "", at_most=WIDEST)
    return [speed, *sheet.results]


def interval(ratios: Sequence[float], resamples: int = 4000) -> tuple[float, float]:
    """Return the 95 % interval of the median by the bootstrap: percentiles of the medians of resamples."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]


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
