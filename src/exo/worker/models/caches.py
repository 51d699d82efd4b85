"""What an engine keeps of a sequence in each layer: the whole context, a window of it, or a state of fixed size.

This follows what mlx-lm's models do (their `make_cache`, and what they put into it), family by family: the contract
tests run families of each kind and compare. Whatever family is not named keeps keys and values of the whole context
in all layers. Pure.
"""

from collections.abc import Sequence

import msgspec

from exo.engines.calibration import PREFILL_TOKENS_MAX
from exo.worker.models.config import ModelConfig
from exo.worker.models.states import states

KV_STEP_TOKENS = 256
"""By how many tokens mlx-lm lets a cache grow at a time."""
_LATENT = {
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "joyai_llm_flash",
    "kimi_k2",
    "kimi_k25",
    "kimi_linear",
    "kimi_vl",
    "mistral4",
}
"""Families that keep what keys and values are made from (multi-head latent attention), not these themselves."""
_UNFOLDED = {"deepseek_v2", "minicpm3", "youtu_llm"}
"""Families with latent attention that keep the keys and values of each head all the same."""
_PATTERNED = {"cohere2", "gemma3", "gemma3_text"}
_LISTED = {
    "afmoe",
    "gemma3n",
    "gemma3n_text",
    "gemma4",
    "gemma4_text",
    "gemma4_unified",
    "gemma4_unified_text",
    "gpt_oss",
    "llama",
    "mellum",
    "ministral3",
    "mistral",
    "muse_glimmer",
    "olmo3",
}
_CHUNKED = {"llama4"}
"""By what the whole model is called, not its text model."""


class LayerCache(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer keeps of one sequence."""

    values_per_token: int
    tokens_max: int = 0
    """0: all tokens."""
    state_bytes: int = 0


def layer_caches(
    config: ModelConfig, *, kv_values: Sequence[int | None], bytes_per_value: int
) -> tuple[LayerCache, ...]:
    """Return what each layer keeps.

    Args:
        config: Of the model.
        kv_values: What the tensors tell of keys and values of each layer together; None: nothing.
        bytes_per_value: Of activations, and so of keys and values.
    """
    stated = _stated_kv_values(config)
    layers = [LayerCache(values_per_token=stated if told is None else told) for told in kv_values]
    family = config.family
    if family in _LATENT | _UNFOLDED:
        layers = [LayerCache(values_per_token=_latent_values(config))] * len(layers)
    windows = _window(config)
    if windows is not None:
        tokens_max, is_windowed = windows
        layers = [
            msgspec.structs.replace(layer, tokens_max=tokens_max) if windowed else layer
            for layer, windowed in zip(layers, is_windowed, strict=True)
        ]
    kept = states(config, bytes_per_value)
    if kept is not None:
        layers = [
            LayerCache(
                values_per_token=layer.values_per_token if place in kept.attending else 0,
                state_bytes=kept.state_bytes if place in kept.places else 0,
            )
            for place, layer in enumerate(layers)
        ]
    shared = config.number("num_kv_shared_layers") or 0
    if shared < len(layers):
        # The last layers may use what an earlier one keeps.
        layers[len(layers) - shared :] = [LayerCache(values_per_token=0)] * shared
    return tuple(layers)


def _stated_kv_values(config: ModelConfig) -> int:
    heads = config.number("num_attention_heads") or 1
    head_dim = config.number("head_dim") or max(1, config.hidden_size // heads)
    return 2 * (config.number("num_key_value_heads") or heads) * head_dim


def _latent_values(config: ModelConfig) -> int:
    def number(name: str, usual: int) -> int:
        return config.number(name) or usual

    rotated = number("qk_rope_head_dim", 64)
    if config.family in _UNFOLDED:
        heads = number("num_attention_heads", 1)
        plain = number("qk_nope_head_dim", 128)
        values = config.hidden_size // heads if config.family == "minicpm3" else number("v_head_dim", 128)
        return heads * (plain + rotated + values)
    latent = number("kv_lora_rank", 512) + rotated
    # Those that choose which tokens to attend to keep keys for that, and as many zeros.
    return latent + 2 * (config.number("index_head_dim") or 0)


def _window(config: ModelConfig) -> tuple[int, list[bool]] | None:
    """Return how many tokens a windowed layer keeps at most, and which layers those are."""
    count, family = config.layer_count, config.family
    if config.whole_family in _CHUNKED:
        chunk = config.number("attention_chunk_size")
        if chunk is None:
            return None
        return chunk + PREFILL_TOKENS_MAX, [place % 4 != 3 for place in range(count)]
    window = config.number("sliding_window")
    if window is None:
        return None
    if family in _PATTERNED:
        every = config.number("sliding_window_pattern") or count + 1
        windowed = [place % every != every - 1 for place in range(count)]
    elif family == "exaone4":
        pattern = config.words("sliding_window_pattern")
        windowed = [bool(pattern) and pattern[place % len(pattern)] == "L" for place in range(count)]
    elif family in _LISTED:
        types = config.words("layer_types") or _usual_types(config)
        if len(types) != count:
            return None
        windowed = [word == "sliding_attention" for word in types]
    else:
        return None
    # While a chunk of the prompt runs, the window's keys are kept for its first token and all others.
    return window - 1 + PREFILL_TOKENS_MAX, windowed


def _usual_types(config: ModelConfig) -> tuple[str, ...]:
    """Return the kinds of layers that a family has where its config.json does not list them."""
    every = {"gpt_oss": 2, "olmo3": 4}.get(config.family) or (
        (config.number("sliding_window_pattern") or 5) if config.family.startswith("gemma4") else None
    )
    return tuple(
        "sliding_attention" if every is not None and place % every != every - 1 else "full_attention"
        for place in range(config.layer_count)
    )
