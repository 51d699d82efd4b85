"""What a step of a prompt holds in MLX, against what placement promises a stage for it."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from msgspec.structs import replace

from exo.engines.calibration import PREFILL_TOKENS_MAX
from exo.master.placement.held import activation_bytes
from support.placing import big

HIDDEN, HEADS = 256, 4


def test_a_step_of_a_prompt_holds_no_more_than_it_is_promised() -> None:
    mx.set_default_device(mx.Device(mx.DeviceType.cpu))
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        intermediate_size=HIDDEN * 7 // 2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        rms_norm_eps=1e-5,
        vocab_size=100,
    )
    model: Any = llama.Model(arguments)
    model.update(tree_map(lambda weights: weights.astype(mx.float32), model.parameters()))
    mx.eval(model.parameters())
    cache: list[Any] = make_prompt_cache(model)
    tokens = mx.zeros((1, PREFILL_TOKENS_MAX), dtype=mx.int32)
    flat: Any = tree_flatten(model.parameters())
    weights_bytes = sum(value.nbytes for _, value in flat)
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    assert before_bytes >= weights_bytes
    mx.reset_peak_memory()
    output = model(tokens, cache=cache)
    mx.eval([one.state for one in cache])
    del output
    cache_bytes = sum(one.keys.nbytes + one.values.nbytes for one in cache)
    # A processor holds the scores of attention as a whole.
    scores_bytes = HEADS * PREFILL_TOKENS_MAX * PREFILL_TOKENS_MAX * 4
    held_bytes = mx.get_peak_memory() - before_bytes - cache_bytes - scores_bytes
    promised_bytes = activation_bytes(replace(big(2, 1, hidden_size=HIDDEN), dtype="float32"))
    assert 0.5 * promised_bytes < held_bytes <= promised_bytes
