"""What layers keep of a sequence whatever its length: states of linear attention and scans, ends of convolutions.

Follows mlx-lm's models, as `caches.py` does. Pure.
"""

from collections.abc import Callable

import msgspec

from exo.worker.models.config import ModelConfig

_STATE_BYTES_PER_VALUE = 4
"""States that add up over a whole text are kept in 32 bits, whatever the weights are in."""


class States(msgspec.Struct, frozen=True, kw_only=True):
    """Which layers keep a state, and how much."""

    state_bytes: int
    places: frozenset[int]
    """Layers that keep it."""
    attending: frozenset[int]
    """Layers that keep keys and values; some keep both, some neither."""


def states(config: ModelConfig, bytes_per_value: int) -> States | None:
    """Return what layers of a model keep beside or instead of keys and values; None: all keep just these.

    Args:
        config: Of the model.
        bytes_per_value: Of activations, and so of what convolutions keep.
    """
    find = _FAMILIES.get(config.family)
    return None if find is None else find(config, bytes_per_value)


def _either(config: ModelConfig, state_bytes: int, places: set[int]) -> States:
    every = frozenset(range(config.layer_count))
    return States(state_bytes=state_bytes, places=every & places, attending=every - places)


def _delta(config: ModelConfig, bytes_per_value: int) -> States:
    def number(name: str, usual: int) -> int:
        return config.number(name) or usual

    key_dim, value_dim = number("linear_key_head_dim", 192), number("linear_value_head_dim", 128)
    key_heads, value_heads = number("linear_num_key_heads", 16), number("linear_num_value_heads", 64)
    width = 2 * key_heads * key_dim + value_heads * value_dim
    state = value_heads * value_dim * key_dim * _STATE_BYTES_PER_VALUE
    convolution = (number("linear_conv_kernel_dim", 4) - 1) * width * bytes_per_value
    every = number("full_attention_interval", 4)
    places = {place for place in range(config.layer_count) if place % every != every - 1}
    return _either(config, state + convolution, places)


def _kimi(config: ModelConfig, bytes_per_value: int) -> States:
    linear = config.part("linear_attn_config")
    heads, dim = linear.number("num_heads") or 1, linear.number("head_dim") or 1
    state = heads * dim * dim * _STATE_BYTES_PER_VALUE
    convolutions = 3 * ((linear.number("short_conv_kernel_size") or 4) - 1) * heads * dim * bytes_per_value
    return _either(config, state + convolutions, {place - 1 for place in linear.numbers("kda_layers")})


def _short_convolutions(config: ModelConfig, bytes_per_value: int) -> States:
    attending = config.numbers("full_attn_idxs") or _called(config, "layer_types", "full_attention")
    kept = ((config.number("conv_L_cache") or 3) - 1) * config.hidden_size * bytes_per_value
    return _either(config, kept, set(range(config.layer_count)) - attending)


def _scan_bytes(
    *, heads: int, head_dim: int, state_dim: int, groups: int, kernel: int, bytes_per_value: int
) -> int:
    """Return what a scan of the second Mamba keeps: the ends of its convolution, and a matrix for each head."""
    convolution = (kernel - 1) * (heads * head_dim + 2 * groups * state_dim) * bytes_per_value
    return convolution + heads * head_dim * state_dim * _STATE_BYTES_PER_VALUE


def _mamba(config: ModelConfig, bytes_per_value: int) -> int:
    def number(name: str, usual: int) -> int:
        return config.number(f"mamba_{name}") or usual

    return _scan_bytes(
        heads=number("n_heads", 24),
        head_dim=number("d_head", 64),
        state_dim=number("d_state", 128),
        groups=number("n_groups", 1),
        kernel=number("d_conv", 4),
        bytes_per_value=bytes_per_value,
    )


def _granite(config: ModelConfig, bytes_per_value: int) -> States:
    return _either(config, _mamba(config, bytes_per_value), _called(config, "layer_types", "mamba"))


def _falcon(config: ModelConfig, bytes_per_value: int) -> States:
    every = frozenset(range(config.layer_count))
    return States(state_bytes=_mamba(config, bytes_per_value), places=every, attending=every)


def _nemotron(config: ModelConfig, bytes_per_value: int) -> States:
    state_bytes = _scan_bytes(
        heads=config.number("mamba_num_heads") or 1,
        head_dim=config.number("mamba_head_dim") or 64,
        state_dim=config.number("ssm_state_size") or 128,
        groups=config.number("n_groups") or 1,
        kernel=config.number("conv_kernel") or 4,
        bytes_per_value=bytes_per_value,
    )
    names = ("hybrid_override_pattern", "layers_block_type", "layer_types")
    kinds = next((found for name in names if (found := config.words(name))), ())
    return States(
        state_bytes=state_bytes,
        places=frozenset(i for i, kind in enumerate(kinds) if kind in {"M", "mamba", "linear_attention"}),
        attending=frozenset(
            i for i, kind in enumerate(kinds) if kind in {"*", "attention", "full_attention"}
        ),
    )


def _jamba(config: ModelConfig, bytes_per_value: int) -> States:
    width = (config.number("mamba_expand") or 2) * config.hidden_size
    kept = (config.number("mamba_d_conv") or 4) - 1 + (config.number("mamba_d_state") or 16)
    every, first = config.number("attn_layer_period") or 8, config.number("attn_layer_offset") or 0
    places = _called(config, "layers_block_type", "mamba") or {
        place for place in range(config.layer_count) if place % every != first
    }
    # The first Mamba's state is in the type of its weights.
    return _either(config, kept * width * bytes_per_value, places)


def _called(config: ModelConfig, name: str, kind: str) -> set[int]:
    return {place for place, word in enumerate(config.words(name)) if word == kind}


_FAMILIES: dict[str, Callable[[ModelConfig, int], States]] = {
    "falcon_h1": _falcon,
    "granitemoehybrid": _granite,
    "jamba": _jamba,
    "kimi_linear": _kimi,
    "lfm2": _short_convolutions,
    "lfm2_moe": _short_convolutions,
    "nemotron_h": _nemotron,
    "qwen3_5": _delta,
    "qwen3_5_moe": _delta,
    "qwen3_5_moe_text": _delta,
    "qwen3_5_text": _delta,
    "qwen3_next": _delta,
}
