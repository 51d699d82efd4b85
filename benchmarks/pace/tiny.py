"""The small model, whose tokens are software and no memory: what predictions of it are worth, before and after."""

from benchmarks.pace.cluster import NODE_COUNT, name_of, say, three_nodes, told
from benchmarks.results import NotMeasured, Result
from benchmarks.throttle import throttles

TINY = "exo-tiny"
_TOKENS = 240
LEARNT = (((0,), (6,)), ((0, 1), (2, 4)), ((0, 1, 2), (1, 2, 3)))
UNSEEN = (((1,), (6,)), ((0, 1), (3, 3)), ((1, 2), (4, 2)), ((0, 1, 2), (2, 2, 2)))


def run(*, quick: bool) -> list[Result | NotMeasured]:
    """Measure on three nodes of this machine."""
    # Nothing is slowed down here; the groups only keep other work of this machine out of the way.
    with throttles(NODE_COUNT + 1) as (*groups, own), three_nodes(groups, own=own) as bench:
        bench.until_idle()
        before = [bench.predict(TINY, *split) for split in UNSEEN]
        for nodes, layers in LEARNT:
            measured = bench.measure(TINY, nodes, layers, shares=None, tokens=_TOKENS)
            say(f"{TINY}: learnt from {name_of(nodes, layers)}: {measured:.0f} tokens/s")
        bench.until_idle()
        predicted = [bench.predict(TINY, *split) for split in UNSEEN]
        results: list[Result | NotMeasured] = []
        for split, first, after in zip(UNSEEN, before, predicted, strict=True):
            measured = bench.measure(TINY, *split, shares=None, tokens=_TOKENS)
            name = f"{TINY}, {name_of(*split)}"
            results.append(told(f"{name}, before", first, measured, bar=None))
            results.append(told(name, after, measured, bar=None))
        return results
