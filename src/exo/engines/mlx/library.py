"""The functions of mlx-lm that are used here. It ships no types of its own: here, once, they become `Any`."""

# pyright: basic

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.base
import mlx_lm.models.cache
import mlx_lm.tokenizer_utils
import mlx_lm.utils
from mlx.utils import tree_flatten

Module = nn.Module

load_model: Any = mlx_lm.utils.load_model
load_tokenizer: Any = mlx_lm.utils.load_tokenizer
model_classes: Any = mlx_lm.utils._get_classes
raise_wired_limit: Any = mlx_lm.utils.maybe_set_recommended_wired_limit
make_prompt_cache: Any = mlx_lm.models.cache.make_prompt_cache
create_attention_mask: Any = mlx_lm.models.base.create_attention_mask
ByteLevelBpeDetokenizer: Any = mlx_lm.tokenizer_utils.BPEStreamingDetokenizer

# MLX's own stubs leave these partly unknown, or narrower than they are.
evaluate: Callable[..., None] = mx.eval
evaluate_soon: Callable[..., None] = mx.async_eval
new_array: Callable[[Any], mx.array] = mx.array
device_information: Callable[[], dict[str, Any]] = mx.device_info
parameters_of: Callable[[nn.Module], dict[str, Any]] = nn.Module.parameters


def named_parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    """Return a module's weights under the names that files give them."""
    named: Any = tree_flatten(module.parameters())
    return named


def token_of(array: mx.array) -> int:
    """Return the token id in an array of shape (1,), waiting until it is computed."""
    token: Any = array.item()
    return token
