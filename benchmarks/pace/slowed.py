"""Unequal stages of a model that is bound by memory: learnt from two splits, predicted and measured on others.

Each node's stages have a share of a core of their own (a quota of a control group, renewed every 5 ms), so that they
read memory that much slower; hops are TCP on loopback, between processes. No prediction has seen its split: all are
asked for before the first of them is measured.

What is learnt is how fast this machine was then. So that its becoming faster or slower afterwards is not taken for an
error, one of the splits that were learnt from stays loaded under another name, and is timed before and after each.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pace.cluster import Bench, Predicted, Split, Yardstick, name_of, say, three_nodes, told
from benchmarks.results import NotMeasured, Result
from benchmarks.throttle import throttles

LARGE = "random-400m"
YARDSTICK = "random-400m-yardstick"
"""The same files under another name."""
LAYERS = 24
SHARES = (0.6, 0.4, 0.25)
"""Of a core, for the stages of each node."""
ERROR_MAX_PERCENT = 15.0
FASTER_MIN = 1.05
_TOKENS = 36
_LOOK_TOKENS = 24

LEARNT = (((0, 1, 2), (8, 8, 8)), ((0, 1, 2), (14, 6, 4)))
"""(nodes, layers of each): what is served first, so that there is something to learn from."""
UNSEEN = (
    ((0, 1, 2), (4, 8, 12)),
    ((0, 1, 2), (17, 4, 3)),
    ((0, 1, 2), (10, 10, 4)),
    ((0, 1, 2), (3, 11, 10)),
    ((0, 1), (12, 12)),
    ((0, 1), (5, 19)),
    ((0, 2), (20, 4)),
    ((1, 2), (15, 9)),
)


def run(*, quick: bool) -> list[Result | NotMeasured]:
    """Measure on three nodes of this machine; it takes some minutes."""
    say("writing a random model of about 400 MB")
    with (
        throttles(len(SHARES) + 1) as (*groups, own),
        three_nodes(groups, own=own, write_models=_write_models) as bench,
    ):
        return _measured(bench, quick=quick)


def _measured(bench: Bench, *, quick: bool) -> list[Result | NotMeasured]:
    bench.until_idle()
    before = bench.predict(LARGE, *UNSEEN[0])
    with bench.served(YARDSTICK, *LEARNT[0]) as first:
        yardstick = Yardstick(bench, first, YARDSTICK, shares=SHARES, tokens=_LOOK_TOKENS)
        say(f"learnt from {name_of(*LEARNT[0])}: {yardstick.set():.2f} tokens/s")
        measured = bench.measure(LARGE, *LEARNT[1], shares=SHARES, tokens=_TOKENS)
        say(f"learnt from {name_of(*LEARNT[1])}: {measured:.2f} tokens/s")
        say(f"learnt from {name_of(*LEARNT[0])}: {yardstick.set():.2f} tokens/s")
        bench.until_idle()
        return _held(bench, yardstick, before, UNSEEN[:2] if quick else UNSEEN)


def _held(
    bench: Bench, yardstick: Yardstick, before: Predicted, unseen: Sequence[Split]
) -> list[Result | NotMeasured]:
    """Predict everything, then measure it."""
    predicted = [bench.predict(LARGE, *split) for split in unseen]
    chosen = bench.predict(LARGE, (0, 1, 2), min_nodes=3)
    # Before anything else is learnt, so that it is still the plan.
    solver = bench.measure(LARGE, (0, 1, 2), shares=SHARES, tokens=_TOKENS, min_nodes=3, yardstick=yardstick)
    memory = bench.measure(
        LARGE, (0, 1, 2), (LAYERS // 3,) * 3, shares=SHARES, tokens=_TOKENS, yardstick=yardstick
    )
    results: list[Result | NotMeasured] = []
    for number, (split, one) in enumerate(zip(unseen, predicted, strict=True)):
        measured = bench.measure(LARGE, *split, shares=SHARES, tokens=_TOKENS, yardstick=yardstick)
        if number == 0:
            results.append(told("before anything was measured", before, measured, bar=None))
        results.append(told(name_of(*split), one, measured, bar=ERROR_MAX_PERCENT))
    results.append(
        told(f"solver's plan, {name_of(chosen.nodes, chosen.layers)}", chosen, solver, bar=ERROR_MAX_PERCENT)
    )
    results.append(
        Result(
            name=f"solver's plan on 3 nodes, {name_of(chosen.nodes, chosen.layers)}, against the memory-weighted one",
            value=solver,
            unit="tokens/s",
            baseline=memory,
            bar=FASTER_MIN,
        )
    )
    return results


def _write_models(models: Path) -> None:
    _write_large(models / LARGE)
    (models / YARDSTICK).mkdir()
    for file in (models / LARGE).iterdir():
        (models / YARDSTICK / file.name).hardlink_to(file)


def _write_large(directory: Path) -> None:
    """Write the model in a process of its own, so that its memory is gone afterwards."""
    config = {
        "hidden_size": 640,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 1728,
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    code = (
        "import json, sys; from pathlib import Path; from tests.support.models import write_random_model; "
        "write_random_model(Path(sys.argv[1]), dtype='float32', config=json.loads(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(directory), json.dumps(config)], check=True)
