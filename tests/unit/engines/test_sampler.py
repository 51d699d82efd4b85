"""The sampler against a plain twin in NumPy: the same tokens stay possible, in the right proportions."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.engines.mlx.sampler import greedy, keep_likely, make_sampler
from exo.shared.types.generation import Sampling

logit_lists = st.lists(st.integers(-40, 40), min_size=1, max_size=24, unique=True).map(
    lambda numbers: [number / 4 for number in numbers]
)


def plain_kept(logits: npt.NDArray[np.float64], sampling: Sampling) -> set[int]:
    """Return the tokens that stay possible, one rule after the other."""
    kept = sorted(range(len(logits)), key=lambda token: -logits[token])
    if sampling.top_k > 0:
        kept = kept[: sampling.top_k]
    if sampling.top_p < 1:
        weights = np.exp(logits[kept] - logits[kept].max())
        shares = weights / weights.sum()
        kept = [
            token for place, token in enumerate(kept) if place == 0 or shares[:place].sum() < sampling.top_p
        ]
    best = logits[kept[0]]
    return {token for token in kept if np.exp(logits[token] - best) >= sampling.min_p}


@settings(max_examples=200)
@given(
    logits=logit_lists,
    top_k=st.integers(0, 30),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.31, 0.013]),
    min_p=st.sampled_from([0.0, 0.011, 0.13, 0.9]),
)
def test_what_stays_possible(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    kept, order = keep_likely(mx.array([logits], mx.float32), sampling)
    ids = list(range(len(logits))) if order is None else [int(token) for token in np.array(order)[0]]
    possible = {token for token, logit in zip(ids, np.array(kept)[0], strict=True) if np.isfinite(logit)}
    assert possible == plain_kept(np.array(logits), sampling)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=0.5, seed=5),
        Sampling(temperature=1.0, top_k=3, seed=5),
        Sampling(temperature=1.0, top_p=0.8, seed=5),
        Sampling(temperature=2.0, top_k=4, top_p=0.9, min_p=0.2, seed=5),
    ],
)
def test_the_proportions_are_right(sampling: Sampling) -> None:
    logits = np.log([0.4, 0.05, 0.3, 0.15, 0.1])
    scaled = logits / sampling.temperature
    kept = sorted(plain_kept(scaled, sampling))
    weights = np.exp(scaled[kept])
    expected = dict(zip(kept, weights / weights.sum(), strict=True))
    sample = make_sampler(sampling)
    drawn = np.array(mx.concatenate([sample(mx.array([list(logits)], mx.float32)) for _ in range(4000)]))
    assert set(drawn.tolist()) == set(kept)
    for token, share in expected.items():
        # Four standard deviations of the count, with a fixed seed: no luck is involved.
        assert abs((drawn == token).mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5


@given(logits=logit_lists)
def test_greedy_takes_the_likeliest(logits: list[float]) -> None:
    assert int(greedy(mx.array([logits], mx.float32)).item()) == int(np.argmax(logits))


def test_temperature_zero_is_greedy() -> None:
    assert make_sampler(Sampling(temperature=0.0, seed=1)) is greedy


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, 2**70])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    logits = mx.zeros((1, 50))
    first, again = (make_sampler(Sampling(temperature=1.0, seed=seed)) for _ in range(2))
    assert [int(first(logits).item()) for _ in range(5)] == [int(again(logits).item()) for _ in range(5)]


def test_without_a_seed_it_differs() -> None:
    logits = mx.zeros((1, 1000))
    first, other = (make_sampler(Sampling(temperature=1.0)) for _ in range(2))
    assert [int(first(logits).item()) for _ in range(8)] != [int(other(logits).item()) for _ in range(8)]
