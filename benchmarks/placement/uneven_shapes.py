"""Layers as models have them: a few dense ones in front, a cache that is long in every sixth layer only, or both."""

import random
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from benchmarks.placement.random_problems import uneven
from exo.master.placement.ladder.problem import CostProblem

Shape = Callable[[CostProblem, int], CostProblem]
_PERIOD = 6
_FRONT = 3
_SHORT_CACHE, _LONG_CACHE = 0.03, 0.4
"""Of a layer's weights: with a window, and for the whole context."""


def dense_front(problem: CostProblem, seed: int) -> CostProblem:
    """Three dense layers before those with experts: far smaller, and somewhat slower."""
    del seed
    count = problem.layer_count
    return _scaled(
        problem,
        weights=[0.05 if layer < _FRONT else 1.0 for layer in range(count)],
        caches=[_SHORT_CACHE] * count,
        times=[1.0 if layer < _FRONT else 0.8 for layer in range(count)],
    )


def windows(problem: CostProblem, seed: int) -> CostProblem:
    """Five layers with a window, then one that sees everything."""
    del seed
    caches = _caches(problem.layer_count)
    weights = [1.0] * problem.layer_count
    return _scaled(problem, weights, caches, [1.0 + cache for cache in caches])


def front_and_windows(problem: CostProblem, seed: int) -> CostProblem:
    """Three unlike layers in front, and windows."""
    del seed
    caches = _caches(problem.layer_count)
    weights = [0.4 if layer < _FRONT else 1.0 for layer in range(problem.layer_count)]
    times = [(1.5 if layer < _FRONT else 1.0) + cache for layer, cache in enumerate(caches)]
    return _scaled(problem, weights, caches, times)


def noise(problem: CostProblem, seed: int) -> CostProblem:
    """Three unlike layers in front, the others within 10 % of each other: every layer is a kind of its own."""
    return uneven(problem, random.Random(seed))


SHAPES: Mapping[str, Shape] = {
    "dense front": dense_front,
    "windows": windows,
    "front and windows": front_and_windows,
    "10 % of noise": noise,
}


def _caches(count: int) -> list[float]:
    return [_LONG_CACHE if layer % _PERIOD == _PERIOD - 1 else _SHORT_CACHE for layer in range(count)]


def _scaled(
    problem: CostProblem, weights: list[float], caches: list[float], times: list[float]
) -> CostProblem:
    """Return the problem with layers of such proportions, as large and slow in sum as before."""
    count = problem.layer_count
    whole = problem.model.layers[0].size_bytes * count / (sum(weights) + sum(caches))
    mean = sum(times) / count
    layers = tuple(
        replace(
            layer,
            weight_bytes=int(whole * weights[number]),
            cache_bytes=int(whole * caches[number]),
            time_weight=round(1_000_000 * times[number] / mean),
        )
        for number, layer in enumerate(problem.model.layers)
    )
    return replace(problem, model=replace(problem.model, layers=layers))
