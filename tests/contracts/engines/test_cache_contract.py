"""What model cards say of weights and caches, held to what the engine keeps when it runs: family by family."""

from pathlib import Path
from typing import Any

import pytest

from exo.engines.base import StageSpec
from exo.engines.calibration import PREFILL_TOKENS_MAX
from exo.engines.registry import available_engines, create_stage
from exo.shared.types.generation import Sampling
from exo.shared.types.ids import ModelId
from exo.worker.models.card import read_card
from support.models import VOCABULARY_SIZE, write_random_model

pytestmark = pytest.mark.skipif("mlx" not in available_engines(), reason="MLX is not installed here")

LATENT: dict[str, Any] = {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "attention_bias": False,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.5,
}
SCAN: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 2,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"] * 2

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY_SIZE,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": {**EXPERTS, "mlp_only_layers": [0]},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama": {"layer_types": WINDOWED, "sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 3, "query_pre_attn_scalar": 16},
    "gpt_oss": {
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
    "cohere2": {"sliding_window": 8, "sliding_window_pattern": 3, "layer_norm_eps": 1e-5, "logit_scale": 1.0},
    "exaone4": {
        "sliding_window": 8,
        "sliding_window_pattern": "LLG",
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "rope_scaling": None,
    },
    "ministral3": {
        "sliding_window": 8,
        "layer_types": WINDOWED,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4096,
        },
    },
    "gemma4_text": {
        "sliding_window": 8,
        "layer_types": WINDOWED,
        "num_kv_shared_layers": 2,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
    },
    "deepseek_v2": {
        **LATENT,
        "topk_method": "gready",
        "rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 1024, "type": "yarn"},
    },
    "minicpm3": {
        **LATENT,
        "dim_model_base": 64,
        "scale_depth": 1.4,
        "scale_emb": 1,
        "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "type": "longrope"},
    },
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4096},
    "youtu_llm": LATENT,
    "qwen3_next": {**DELTA, **EXPERTS},
    "qwen3_5_text": {**DELTA, "model_type": "qwen3_5"},
    "kimi_linear": {
        **LATENT,
        "model_max_length": 2048,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "linear_attn_config": {
            "kda_layers": [1, 2, 4, 5],
            "full_attn_layers": [3, 6],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
    },
    "falcon_h1": {**SCAN, "mamba_d_ssm": 128},
    "granitemoehybrid": {
        **SCAN,
        "layer_types": ["mamba", "mamba", "attention"] * 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 48,
        "attention_bias": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "mamba_proj_bias": False,
        "mamba_conv_bias": True,
    },
    "nemotron_h": {
        "hybrid_override_pattern": "M-M*-*",
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
        "attention_bias": False,
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 3,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "llama4": {
        "text_config": {
            **COMMON,
            "model_type": "llama4_text",
            "attention_bias": False,
            "attention_chunk_size": 100,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "rope_scaling": None,
            "use_qk_norm": True,
        }
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv"] * 2,
    },
}
HAS_WINDOWS = {
    "llama",
    "llama4",
    "gemma3_text",
    "gpt_oss",
    "cohere2",
    "olmo3",
    "exaone4",
    "ministral3",
    "gemma4_text",
}
"""Their caches are promised for the worst place at which a prompt can end; all others are held to the byte."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_says_what_the_engine_keeps(family: str, tmp_path: Path) -> None:
    config = dict(FAMILIES[family])
    name = config.pop("model_type", family)
    # MLX multiplies chosen experts on a CPU in 32 bits only.
    dtype = "float32" if "num_experts_per_tok" in str(config) else "bfloat16"
    directory = write_random_model(tmp_path / "model", family=name, dtype=dtype, config=config)
    card = read_card(ModelId("m"), directory)
    assert card.problem is None
    spec = StageSpec(
        model_dir=directory, device="cpu", start_layer=0, end_layer=card.layer_count, context_length=2048
    )
    stage: Any = create_stage("mlx", spec)
    stage.load(lambda done, total, step: None)
    assert card.total_bytes == sum(value.nbytes for value in _parameters(stage._model))
    assert (card.layer_active_bytes or card.layer_bytes) == tuple(
        _read_bytes(layer, 1 if family == "llama4" else 2) for layer in stage._model.layers
    )

    stage.open("s", Sampling())
    context_length = 0
    peak_bytes = [0] * card.layer_count
    for tokens in (PREFILL_TOKENS_MAX, PREFILL_TOKENS_MAX, 1, 1):
        stage.forward("s", [7] * tokens, wants_token=True)
        context_length += tokens
        kept = _kept_bytes(stage, has_gaps=family == "nemotron_h")
        promised = [card.cache_bytes(layer, context_length) for layer in range(card.layer_count)]
        assert all(have <= said for have, said in zip(kept, promised, strict=True)), (kept, promised)
        if family not in HAS_WINDOWS:
            assert kept == promised
        peak_bytes = [max(pair) for pair in zip(kept, peak_bytes, strict=True)]
    # Over the whole sequence, even windows reach what is promised: no more is taken than is needed.
    assert peak_bytes == [card.cache_bytes(layer, context_length) for layer in range(card.layer_count)]


def _kept_bytes(stage: Any, *, has_gaps: bool) -> list[int]:
    """What each layer keeps; layers that only multiply have no cache, nor have those that use another's."""
    kept = [cache.nbytes for cache in stage._sequences["s"].cache]
    if has_gaps:
        caches = iter(kept)
        return [next(caches) if layer.block_type in "M*" else 0 for layer in stage._model.layers]
    return kept + [0] * (len(stage._model.layers) - len(kept))


def _parameters(module: Any) -> list[Any]:
    from mlx.utils import tree_flatten

    return [value for _, value in tree_flatten(module.parameters())]


def _read_bytes(layer: Any, working: int) -> int:
    """What one token reads of a layer in which so many of four experts work on it."""
    from mlx_lm.models.switch_layers import SwitchLinear

    experts = [module for module in layer.modules() if isinstance(module, SwitchLinear)]
    spared = sum(value.nbytes for module in experts for value in _parameters(module)) * (4 - working) // 4
    return sum(value.nbytes for value in _parameters(layer)) - spared
