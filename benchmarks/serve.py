"""Serving through the whole service against bare mlx-lm: same model, same prompt, same run, one stream."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.calibration import calibrate
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result
from benchmarks.stream_client import stream_chat

PROMPT = "Count to 12."
IDLE_S = 10.0
TINY = "exo-tiny"
LARGE = "random-80m"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, and the share of bare mlx-lm's speed that it must keep."""

    model: str
    tokens: int
    rounds: int
    speed_bar: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One stream: tokens per second after the first, the 99th percentile of the gaps, the time to the first."""

    tokens_per_s: float
    gap_p99_ms: float
    first_token_ms: float

    @staticmethod
    def of(times_s: list[float]) -> "Timing":
        gaps = sorted(later - earlier for earlier, later in pairwise(times_s))
        return Timing(
            tokens_per_s=(len(times_s) - 1) / (times_s[-1] - times_s[0]),
            gap_p99_ms=gaps[int(0.99 * (len(gaps) - 1))] * 1000,
            first_token_ms=times_s[0] * 1000,
        )


def run(*, quick: bool) -> list[Result]:
    """Measure both models and the idle node."""
    cases = [
        Case(model=TINY, tokens=256, rounds=3 if quick else 15, speed_bar=0.8),
        Case(model=LARGE, tokens=64 if quick else 256, rounds=1 if quick else 9, speed_bar=0.95),
    ]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        home = Path(folder) / "home"
        models = home / "models"
        _say("writing a random model of about 80 million parameters")
        _write_large(models / LARGE)
        node = NodeProcess(home, "--quiet").start()
        try:
            results += _idle(node, IDLE_S / 5 if quick else IDLE_S)
            for case in cases:
                results += _case(node, case, models)
        finally:
            node.terminate()
    return results


def _case(node: NodeProcess, case: Case, models: Path) -> list[Result]:
    _say(f"{case.model}: {case.rounds} rounds of {case.tokens} tokens, the node and bare mlx-lm in turn")
    directory = _bundled() if case.model == TINY else models / case.model
    status, instance = node.call("POST", "/instance", {"model_id": case.model})
    assert status == 201, instance
    node.get(f"/instance/{instance['instance_id']}/wait?timeout_s=120", timeout_s=130)
    served: list[Timing] = []
    bare: list[Timing] = []
    with _bare_engine(directory) as ask:
        # Once each before anything counts: compiled kernels, warm caches, open connections.
        stream_chat(node.url, model=case.model, prompt=PROMPT, tokens=16)
        ask(PROMPT, 16)
        for number in range(case.rounds):
            # In turn, and either first every other time, so that neither always runs on the warmer machine.
            reference = ask(PROMPT, case.tokens) if number % 2 else None
            stream = stream_chat(node.url, model=case.model, prompt=PROMPT, tokens=case.tokens)
            reference = reference or ask(PROMPT, case.tokens)
            assert len(stream.times_s) == case.tokens, (
                f"{len(stream.times_s)} chunks for {case.tokens} tokens"
            )
            assert stream.text == reference["text"], "the node and mlx-lm gave different texts"
            served.append(Timing.of(stream.times_s))
            bare.append(Timing.of(reference["times_s"]))
    node.call("DELETE", f"/instance/{instance['instance_id']}")
    return [
        _paired(
            f"{case.model}: speed", "tokens/s", served, bare, "tokens_per_s", case.speed_bar, at_least=True
        ),
        _paired(f"{case.model}: p99 gap", "ms", served, bare, "gap_p99_ms", 3.0, at_least=False),
        Result(
            name=f"{case.model}: first token later than bare by",
            value=statistics.median(
                one.first_token_ms - other.first_token_ms for one, other in zip(served, bare, strict=True)
            ),
            unit="ms",
            bar=30,
            at_least=False,
            calibration=calibrate(),
        ),
    ]


def _paired(
    name: str, unit: str, served: list[Timing], bare: list[Timing], field: str, bar: float, *, at_least: bool
) -> Result:
    """Medians over the rounds, and of the ratios round by round."""
    pairs = zip(served, bare, strict=True)
    return Result(
        paired_ratio=statistics.median(getattr(one, field) / getattr(other, field) for one, other in pairs),
        name=name,
        value=statistics.median(getattr(one, field) for one in served),
        unit=unit,
        baseline=statistics.median(getattr(one, field) for one in bare),
        bar=bar,
        at_least=at_least,
    )


def _idle(node: NodeProcess, seconds: float) -> list[Result]:
    """The node with nothing to do and no engine: all its processes together."""
    assert node.process is not None
    root = psutil.Process(node.process.pid)
    time.sleep(1.0)
    calibration = calibrate()

    def cpu_s() -> float:
        family = [root, *root.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)

    before_s, started_s = cpu_s(), time.perf_counter()
    time.sleep(seconds)
    used = (cpu_s() - before_s) / (time.perf_counter() - started_s) * 100
    memory = sum(one.memory_info().rss for one in (root, *root.children(recursive=True))) / 1e6
    absolute: dict[str, Any] = {"at_least": False, "calibration": calibration}
    return [
        Result(name="idle: share of a core", value=used, unit="%", bar=2, **absolute),
        Result(name="idle: memory", value=memory, unit="MB", bar=150, **absolute),
        Result(name="start to /readyz", value=node.start_s, unit="s", bar=3, **absolute),
    ]


@contextmanager
def _bare_engine(directory: Path) -> Generator[Any]:
    """mlx-lm alone, in the environment that a stage process has."""
    from exo.worker.runner.environment import stage_environment

    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_engine", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=stage_environment(os.environ, engine="mlx", device="cpu:0"),
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(prompt: str, tokens: int) -> dict[str, Any]:
        stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    try:
        json.loads(stdout.readline())
        yield ask
    finally:
        stdin.close()
        process.wait(30)
        stdout.close()


def _write_large(directory: Path) -> None:
    """Write the larger model in a process of its own, so that its memory is gone afterwards."""
    config = {
        "hidden_size": 768,
        "num_hidden_layers": 11,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
    }
    code = (
        "import json, sys; from pathlib import Path; from tests.support.models import write_random_model; "
        "write_random_model(Path(sys.argv[1]), dtype='float32', config=json.loads(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(directory), json.dumps(config)], check=True)


def _bundled() -> Path:
    from exo.worker.models.store import BUNDLED_DIR

    return BUNDLED_DIR / TINY


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
