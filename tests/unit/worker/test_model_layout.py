"""Where a model's bytes are: layers, experts, embedding and head, told from the headers of its files."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard
from exo.worker.models.card import read_card
from support.weights import TensorShapes, size_bytes, write_model

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
ENDS: TensorShapes = {
    "model.embed_tokens.weight": ("BF16", (16, 8)),
    "model.norm.weight": ("BF16", (8,)),
    "lm_head.weight": ("BF16", (16, 8)),
}
DENSE = 2 * 16 * 8 + 2 * 8


def attention(layer: int, prefix: str = "model") -> TensorShapes:
    """Shared parts of a layer: 272 bytes."""
    return {
        f"{prefix}.layers.{layer}.self_attn.q_proj.weight": ("BF16", (16, 8)),
        f"{prefix}.layers.{layer}.input_layernorm.weight": ("BF16", (8,)),
    }


def card_of(directory: Path, *files: TensorShapes, **changes: object) -> ModelCard:
    """Write a model and describe it."""
    return read_card(ModelId("m"), write_model(directory / "m", {**CONFIG, **changes}, *files))


def test_experts_one_by_one_count_in_part(tmp_path: Path) -> None:
    experts = {
        f"model.layers.{layer}.mlp.experts.{number}.{part}.weight": ("BF16", (8, 8))
        for layer in (0, 1)
        for number in range(4)
        for part in ("gate_proj", "up_proj", "down_proj")
    }
    router = {f"model.layers.{layer}.mlp.gate.weight": ("BF16", (4, 8)) for layer in (0, 1)}
    card = card_of(tmp_path, {**ENDS, **attention(0), **attention(1), **experts, **router})
    shared = DENSE + 2 * 4 * 8
    assert card.layer_bytes == (shared + 4 * 3 * 128,) * 2
    assert card.layer_active_bytes == (shared + 2 * 3 * 128,) * 2
    assert (card.embedding_bytes, card.head_bytes, card.has_tied_head) == (256, 272, False)


@pytest.mark.parametrize(
    "names",
    [
        ("mlp.switch_mlp.up_proj.weight", "mlp.switch_mlp.up_proj.scales"),
        ("mlp.experts.gate_up_proj_blocks", "mlp.experts.gate_up_proj_bias"),
        ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        ("moe.gate_proj.weight", "moe.down_proj.weight"),
    ],
)
def test_experts_in_one_tensor_count_in_part(tmp_path: Path, names: tuple[str, str]) -> None:
    experts = {f"model.layers.{layer}.{name}": ("U8", (4, 6, 8)) for layer in (0, 1) for name in names}
    card = card_of(tmp_path, {**ENDS, **attention(0), **attention(1), **experts})
    assert card.layer_bytes == (DENSE + 2 * 192,) * 2
    assert card.layer_active_bytes == (DENSE + 2 * 96,) * 2


def test_dense_first_layers_and_shared_experts_count_in_full(tmp_path: Path) -> None:
    second = {
        "model.layers.1.mlp.shared_experts.up_proj.weight": ("BF16", (8, 8)),
        "model.layers.1.mlp.experts.up_proj": ("BF16", (4, 8, 8)),
    }
    first = {"model.layers.0.mlp.up_proj.weight": ("BF16", (64, 8))}
    card = card_of(tmp_path, {**ENDS, **attention(0), **attention(1), **first, **second})
    assert card.layer_bytes == (DENSE + 1024, DENSE + 128 + 512)
    assert card.layer_active_bytes == (DENSE + 1024, DENSE + 128 + 256)


def test_an_uneven_share_of_experts_is_rounded_up(tmp_path: Path) -> None:
    experts = {f"model.layers.{layer}.mlp.experts.up_proj": ("U8", (3, 5)) for layer in (0, 1)}
    card = card_of(tmp_path, {**ENDS, **experts}, num_experts=3, num_experts_per_tok=2)
    assert card.layer_active_bytes == (10, 10)
    more = {
        f"model.layers.{layer}.mlp.experts.{number}.w1": ("U8", (5,)) for layer in (0, 1) for number in (0, 1)
    }
    uneven = {**more, "model.layers.0.mlp.experts.1.w2": ("U8", (1,))}
    card = card_of(tmp_path / "n", {**ENDS, **uneven}, num_experts=2, num_experts_per_tok=1)
    assert card.layer_active_bytes == (6, 5)


@pytest.mark.parametrize("changes", [{"num_experts": None}, {"num_experts_per_tok": None}])
def test_a_model_without_experts_reads_everything(tmp_path: Path, changes: dict[str, object]) -> None:
    card = card_of(
        tmp_path,
        {**ENDS, **attention(0), **attention(1), "model.layers.0.mlp.experts.up": ("U8", (4, 5))},
        **changes,
    )
    assert card.layer_active_bytes == ()


def test_experts_laid_out_in_unknown_ways_are_read_in_full(tmp_path: Path) -> None:
    experts = {f"model.layers.{layer}.ffn.experts.mlp.w1": ("U8", (4 * 6, 8)) for layer in (0, 1)}
    card = card_of(tmp_path, {**ENDS, **experts})
    assert card.layer_active_bytes == card.layer_bytes == (192, 192)


@pytest.mark.parametrize(
    "names", [{"moe_topk": [1, 2], "num_experts": 4}, {"moe_k": 2, "moe_num_experts": 4}]
)
def test_experts_are_found_under_every_name(tmp_path: Path, names: dict[str, object]) -> None:
    experts = {f"model.layers.{layer}.mlp.experts.up": ("U8", (4, 8)) for layer in (0, 1)}
    changes = {"num_experts": None, "num_experts_per_tok": None, **names}
    assert card_of(tmp_path, {**ENDS, **experts}, **changes).layer_active_bytes == (16, 16)


def test_parts_that_no_engine_reads_weigh_nothing(tmp_path: Path) -> None:
    text = {**attention(0, "language_model.model"), **attention(1, "language_model.model")}
    ends = {f"language_model.{name}": what for name, what in ENDS.items()}
    others: TensorShapes = {
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": ("BF16", (999, 8)),
        "vision_tower.vision_model.embeddings.patch_embedding.weight": ("BF16", (999, 8)),
        "multi_modal_projector.mm_input_projection_weight": ("BF16", (999, 8)),
        "model.visual.blocks.1.norm.weight": ("BF16", (999,)),
        "speech.layers.0.mlp.weight": ("BF16", (9,)),
        "language_model.model.layers.2.eh_proj.weight": ("BF16", (999,)),
        "language_model.mtp.layers.0.norm.weight": ("BF16", (999,)),
    }
    card = card_of(tmp_path, {**others, **text, **ends})
    assert card.layer_bytes == (DENSE, DENSE)
    assert (card.embedding_bytes, card.head_bytes) == (256, 272)


def test_keys_and_values_are_as_many_as_their_matrices_have_rows(tmp_path: Path) -> None:
    narrow = {f"model.layers.0.self_attn.{name}_proj.weight": ("U32", (8, 1)) for name in "kv"}
    wide = {f"model.layers.1.self_attn.{name}_proj.weight": ("U32", (24, 1)) for name in "kv"}
    scales = {"model.layers.1.self_attn.k_proj.scales": ("BF16", (24, 1))}
    card = card_of(tmp_path, {**ENDS, **narrow, **wide, **scales})
    assert card.layer_kv_bytes_per_token == (2 * 8 * 2, 2 * 24 * 2)
    assert card.kv_bytes_per_token_and_layer == 2 * 24 * 2
    assert card.cache_bytes(0, 100) == 32 * 256
    assert card.cache_bytes(1, 300) == 96 * 512


def test_weights_of_eight_bits_take_sixteen_where_the_engine_expands_them(tmp_path: Path) -> None:
    layers = {f"model.layers.{layer}.mlp.up_proj.weight": ("F8_E4M3", (8, 8)) for layer in (0, 1)}
    scales = {f"model.layers.{layer}.mlp.up_proj.weight_scale_inv": ("F32", (1, 1)) for layer in (0, 1)}
    card = card_of(tmp_path, {**ENDS, **layers, **scales}, quantization_config={"quant_method": "fp8"})
    assert card.layer_bytes == (128 + 4, 128 + 4)
    assert card.dtype == "bfloat16"
    kept = {"quant_method": "mxfp8"}
    card = card_of(tmp_path / "n", {**ENDS, **layers, **scales}, quantization_config=kept)
    assert (card.layer_bytes, card.dtype) == ((64 + 4, 64 + 4), "8-bit")


def test_a_vocabulary_that_config_leaves_out_is_counted(tmp_path: Path) -> None:
    card = card_of(tmp_path, {**ENDS, **attention(0), **attention(1)}, vocab_size=None)
    assert card.vocabulary_size == 16


def test_an_output_of_another_name_is_a_head_of_its_own(tmp_path: Path) -> None:
    ends = {"gpt_neox.embed_in.weight": ("F16", (16, 8)), "embed_out.weight": ("F16", (16, 8))}
    layers = {f"gpt_neox.layers.{layer}.mlp.weight": ("F16", (8,)) for layer in (0, 1)}
    card = card_of(tmp_path, {**ends, **layers})
    assert (card.embedding_bytes, card.head_bytes, card.has_tied_head) == (256, 256, False)


SHAPE = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
WHAT = st.tuples(st.sampled_from(["BF16", "F16", "F32", "U32", "U8"]), SHAPE)
PARTS = st.sampled_from(
    [
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "mlp.up_proj.weight",
        "mlp.up_proj.scales",
        "mlp.experts.0.w1.weight",
        "mlp.experts.1.w1.weight",
        "mlp.switch_mlp.up_proj.weight",
        "mlp.shared_expert.weight",
        "input_layernorm.weight",
    ]
)
OUTER = st.sampled_from(
    ["embed_tokens.weight", "norm.weight", "lm_head.weight", "norm.bias", "rotary.inv_freq"]
)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    layer_count=st.integers(1, 5),
    stack=st.sampled_from(["model.layers", "transformer.h", "blocks"]),
)
def test_every_byte_of_a_language_model_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layer_count: int, stack: str
) -> None:
    layers = [
        data.draw(st.dictionaries(PARTS, WHAT, min_size=1), label=f"layer {number}")
        for number in range(layer_count)
    ]
    inside = {
        f"{stack}.{number}.{name}": what
        for number, layer in enumerate(layers)
        for name, what in layer.items()
    }
    outside = {f"model.{name}": what for name, what in data.draw(st.dictionaries(OUTER, WHAT)).items()}
    tensors = list((inside | outside).items())
    shuffled = data.draw(st.permutations(tensors))
    cut = data.draw(st.integers(0, len(tensors)))
    files = [dict(part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    working = data.draw(st.integers(1, 3))
    directory = tmp_path_factory.mktemp("models")
    card = card_of(
        directory, *files, num_hidden_layers=layer_count, num_experts=2, num_experts_per_tok=working
    )
    assert card.problem is None
    assert card.total_bytes == sum(size_bytes(*what) for _, what in tensors)
    assert card.layer_bytes == tuple(sum(size_bytes(*what) for what in layer.values()) for layer in layers)
    if card.layer_active_bytes:
        assert all(
            0 <= active <= whole
            for active, whole in zip(card.layer_active_bytes, card.layer_bytes, strict=True)
        )
