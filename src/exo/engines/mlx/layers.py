"""The part of an mlx-lm model that one stage keeps, run with the library's own layers."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from exo.engines.errors import UnsupportedModelError
from exo.engines.mlx.library import Module, create_attention_mask, make_prompt_cache

SPLITTABLE_FAMILIES = frozenset(
    {
        "ernie4_5",
        "glm",
        "llama",
        "mixtral",
        "olmo2",
        "olmoe",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "starcoder2",
        "telechat3",
    }
)
"""Modules of `mlx_lm.models` whose models embed, run layer after layer, normalise and project, and nothing else.

Others scale their embeddings or pass more than one thing from layer to layer: run in parts like these they would
give wrong answers, not errors. The contract tests hold every name here to the whole model's logits.
"""


def family_of(model: Module) -> str:
    """Return the module of `mlx_lm.models` that a model comes from."""
    return type(model).__module__.rpartition(".")[2]


class LayerRange:
    """Layers `start` to `end` of a model, with the embedding or the head when they belong to them.

    The model itself is cut down: what is not kept is dropped before its weights are ever read.

    Raises:
        UnsupportedModelError: Models of this family cannot be split.
    """

    def __init__(self, model: Module, start: int, end: int) -> None:
        family = family_of(model)
        if family not in SPLITTABLE_FAMILIES:
            raise UnsupportedModelError(
                f"models of the family {family} cannot be split into stages with MLX; place it on one device, or "
                f"use one of: {', '.join(sorted(SPLITTABLE_FAMILIES))}"
            )
        whole: Any = model
        inner: Any = whole.model
        self._model: Any = whole
        self._inner: Any = inner
        self._has_own_head = "lm_head" in model
        embedding: Any = inner.embed_tokens
        self.hidden_size = int(whole.args.hidden_size)
        self.dtype: mx.Dtype = (embedding.scales if "scales" in embedding else embedding.weight).dtype
        """Type of the hidden values between layers: that of the embedding, which nothing here changes."""
        count = len(inner.layers)
        self.is_first = start == 0
        self.is_last = end == count
        self.start = start
        self.end = end
        inner.layers = inner.layers[start:end]
        self._has_embedding = self.is_first or (self.is_last and not self._has_own_head)
        if not self._has_embedding:
            del inner.embed_tokens
        if not self.is_last:
            del inner.norm
            if self._has_own_head:
                del whole.lm_head
        self._masks = _mask_makers(inner)

    @property
    def layers(self) -> Sequence[Module]:
        """The layers kept, in order."""
        return self._inner.layers

    @property
    def others(self) -> Sequence[Module]:
        """What is kept beside the layers: embedding, final norm, head."""
        parts: tuple[Any, ...] = (
            self._inner.get("embed_tokens"),
            self._inner.get("norm"),
            self._model.get("lm_head"),
        )
        return [part for part in parts if part is not None]

    def is_kept(self, weight: str) -> bool:
        """Say whether a weight of the whole model, by its name, belongs to this part."""
        parts = weight.split(".")
        if parts[:2] == ["model", "layers"]:
            return self.start <= int(parts[2]) < self.end
        return self._has_embedding if parts[:2] == ["model", "embed_tokens"] else self.is_last

    def make_cache(self) -> list[Any]:
        """Return an empty KV cache per layer kept."""
        return make_prompt_cache(self._model)

    def run(self, inputs: mx.array, cache: list[Any], *, wants_logits: bool) -> mx.array:
        """Run positions of one sequence.

        Args:
            inputs: Token ids of shape (1, positions) on the first stage, else hidden values of shape (1, positions,
                hidden size).
            cache: What `make_cache` gave this sequence.
            wants_logits: On the last stage: go through norm and head.

        Returns:
            Logits of shape (1, positions, vocabulary), or hidden values.
        """
        hidden = self._inner.embed_tokens(inputs) if self.is_first else inputs
        masks = [make(hidden, cache) for make in self._masks]
        for layer, layer_cache in zip(self._inner.layers, cache, strict=True):
            hidden = layer(hidden, masks[_uses_window(layer)], layer_cache)
        if not (self.is_last and wants_logits):
            return hidden
        hidden = self._inner.norm(hidden)
        return (
            self._model.lm_head(hidden) if self._has_own_head else self._inner.embed_tokens.as_linear(hidden)
        )


def _uses_window(layer: Module) -> bool:
    return bool(getattr(layer, "use_sliding", False))


def _mask_makers(inner: Any) -> list[Callable[[mx.array, list[Any]], Any]]:
    """Return how to make the mask of full attention and the one of a sliding window.

    A mask depends on how much a cache holds, and caches of the two kinds differ in that: each mask is made from the
    first kept layer of its kind.
    """
    layers: list[Module] = list(inner.layers)
    places = {_uses_window(layer): place for place, layer in reversed(list(enumerate(layers)))}

    def full(hidden: mx.array, cache: list[Any]) -> Any:
        return create_attention_mask(hidden, cache[places[False]]) if False in places else None

    def window(hidden: mx.array, cache: list[Any]) -> Any:
        if True not in places:
            return None
        return create_attention_mask(hidden, cache[places[True]], window_size=inner.sliding_window)

    return [full, window]
