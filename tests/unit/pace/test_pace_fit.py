"""From times of steps to figures: against a naive minimiser, and where samples leave no doubt, against the truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.worker.pace.fit import Fit, Prior, Sample, fit

PRIOR = Prior(bandwidth_bytes_per_s=10e9)


def sample(layers: float, read_bytes: float, seconds: float, weight: float = 8.0) -> Sample:
    return Sample(layers=layers, read_bytes=read_bytes, seconds=seconds, weight=weight)


def exact(step_s: float, layer_s: float, bandwidth: float, layers: float, layer_bytes: float) -> Sample:
    read = layers * layer_bytes
    return sample(layers, read, step_s + layers * layer_s + read / bandwidth, weight=1000.0)


def naive(samples: list[Sample], prior: Prior) -> np.ndarray:
    """Return the unknowns in their own units, none below nothing: all sets of bounds, each solved by NumPy."""
    byte_s = 1 / prior.bandwidth_bytes_per_s
    expected = np.array([prior.step_overhead_s, prior.layer_overhead_s, byte_s])
    spread = np.array(
        [prior.step_overhead_spread_s, prior.layer_overhead_spread_s, byte_s * prior.bandwidth_spread]
    )
    rows, right = [np.diag(1 / spread)], [expected / spread]
    for one in samples:
        sigma = max(1e-6, one.seconds * math.sqrt(0.02**2 + 0.06**2 / one.weight))
        rows.append(np.array([[1.0, one.layers, one.read_bytes]]) / sigma)
        right.append(np.array([one.seconds / sigma]))
    a, b = np.vstack(rows), np.concatenate(right)
    least = np.array([0.0, 0.0, byte_s * 1e-3])
    best, best_cost = least, math.inf
    for held in itertools.product((False, True), repeat=3):
        x = least.copy()
        free = [i for i in range(3) if not held[i]]
        if free:
            # Columns of one size, so that NumPy does not take bytes for nothing.
            scaled = a[:, free] * spread[free]
            x[free] = (
                np.linalg.lstsq(scaled, b - a @ np.where(held, least, 0.0), rcond=None)[0] * spread[free]
            )
        cost = float(np.sum((a @ x - b) ** 2))
        if np.all(x >= least - 1e-12 * spread) and cost < best_cost:
            best, best_cost = x, cost
    return best


samples = st.lists(
    st.builds(
        sample,
        st.floats(0.5, 100),
        st.floats(1e4, 1e11),
        st.floats(1e-5, 5.0),
        st.floats(0.05, 64),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(samples, st.floats(1e8, 4e12))
def test_it_finds_what_the_naive_minimiser_finds(found: list[Sample], bandwidth: float) -> None:
    prior = Prior(bandwidth_bytes_per_s=bandwidth)
    got, wanted = fit(found, prior), naive(found, prior)
    for one in [*found, sample(10, 1e9, 1.0), sample(1, 1e5, 1.0)]:
        expected_s = wanted @ [1.0, one.layers, one.read_bytes]
        assert got.step_s(one.layers, one.read_bytes) == pytest.approx(expected_s, rel=1e-4, abs=1e-9)
    assert min(got.step_overhead_s, got.layer_overhead_s) >= 0 and got.byte_s > 0
    assert math.isfinite(got.error)


def test_without_samples_the_prior_stands() -> None:
    found = fit([], PRIOR)
    assert found == Fit(step_overhead_s=0.0003, layer_overhead_s=0.00005, byte_s=1e-10, error=0.0)


def test_stages_of_different_sizes_tell_bytes_and_overheads_apart() -> None:
    truth = (0.002, 0.0001, 3e9)
    found = fit(
        [exact(*truth, layers, size) for layers, size in ((2, 1e5), (20, 1e5), (2, 5e7), (20, 5e7))], PRIOR
    )
    assert found.step_overhead_s == pytest.approx(0.002, rel=0.1)
    assert found.layer_overhead_s == pytest.approx(0.0001, rel=0.15)
    assert 1 / found.byte_s == pytest.approx(3e9, rel=0.03)
    assert found.error < 0.02


def test_one_large_stage_tells_of_bandwidth_and_leaves_overheads_as_assumed() -> None:
    found = fit([exact(0.0003, 0.00005, 2e9, 12, 5e7)], PRIOR)
    assert 1 / found.byte_s == pytest.approx(2e9, rel=0.03)
    assert found.step_overhead_s == pytest.approx(0.0003, abs=0.0002)


def test_one_tiny_stage_tells_of_overheads_and_leaves_the_bandwidth_as_assumed() -> None:
    found = fit([exact(0.001, 0.00005, 10e9, 2, 8e4)], PRIOR)
    assert found.step_s(2, 1.6e5) == pytest.approx(0.00112, rel=0.05)
    assert 1 / found.byte_s == pytest.approx(10e9, rel=0.05)


def test_a_device_faster_than_assumed_has_no_negative_overhead() -> None:
    found = fit([sample(10, 1e6, 0.00002), sample(20, 2e6, 0.00003)], PRIOR)
    assert min(found.step_overhead_s, found.layer_overhead_s) >= 0
    assert found.step_s(10, 1e6) == pytest.approx(0.00002, rel=0.3)


def test_weight_decides_between_samples_that_contradict() -> None:
    rare, often = sample(10, 1e9, 0.2, weight=0.1), sample(10, 1e9, 0.1, weight=16.0)
    assert fit([rare, often], PRIOR).step_s(10, 1e9) == pytest.approx(0.1, rel=0.05)
