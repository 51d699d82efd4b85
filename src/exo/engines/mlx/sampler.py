"""How the next token is chosen from logits. Every sequence has its own randomness, whoever runs beside it."""

import secrets
from collections.abc import Callable

import mlx.core as mx

from exo.shared.types.generation import Sampling

Sampler = Callable[[mx.array], mx.array]
"""Logits of shape (1, vocabulary) to a token id of shape (1,)."""


def make_sampler(sampling: Sampling) -> Sampler:
    """Return a sequence's sampler. The same seed gives the same tokens; without one they differ each time.

    The temperature is applied first, then top_k, top_p and min_p, each to what the one before left over.
    """
    if sampling.temperature <= 0:
        return greedy
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
    state = {"key": mx.random.key(seed & (2**64 - 1))}

    def sample(logits: mx.array) -> mx.array:
        state["key"], key = mx.random.split(state["key"])
        scaled = logits.astype(mx.float32) * (1.0 / sampling.temperature)
        kept, order = keep_likely(scaled, sampling)
        choice = mx.random.categorical(kept, key=key)
        return choice if order is None else mx.take_along_axis(order, choice[:, None], axis=-1).squeeze(-1)

    return sample


def greedy(logits: mx.array) -> mx.array:
    """Return the most likely token.

    Through log-probabilities, as mlx-lm does it: in 16 bits they round to ties that logits do not have, and a
    pipeline has to give the tokens that the plain library gives.
    """
    return mx.argmax(logits - mx.logsumexp(logits, keepdims=True), axis=-1)


def keep_likely(logits: mx.array, sampling: Sampling) -> tuple[mx.array, mx.array | None]:
    """Return the logits with minus infinity for what must not be chosen, and the token ids where it reordered them.

    Args:
        logits: Shape (1, vocabulary), float32, the temperature applied.
        sampling: `top_k` 0, `top_p` 1 and `min_p` 0 leave everything in.
    """
    order: mx.array | None = None
    if 0 < sampling.top_k < logits.shape[-1]:
        order = mx.argpartition(-logits, kth=sampling.top_k - 1, axis=-1)[:, : sampling.top_k]
        logits = mx.take_along_axis(logits, order, axis=-1)
    if sampling.top_p < 1:
        descending = mx.argsort(-logits, axis=-1)
        logits = mx.take_along_axis(logits, descending, axis=-1)
        order = descending if order is None else mx.take_along_axis(order, descending, axis=-1)
        probabilities = mx.softmax(logits, axis=-1)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        # The likeliest stays whatever top_p says: nothing is before it.
        outside = (before >= sampling.top_p) & (mx.arange(logits.shape[-1])[None] > 0)
        logits = mx.where(outside, -mx.inf, logits)
    if sampling.min_p > 0:
        floor = mx.max(logits, axis=-1, keepdims=True) + mx.log(mx.array(min(sampling.min_p, 1.0)))
        logits = mx.where(logits < floor, -mx.inf, logits)
    return logits, order
