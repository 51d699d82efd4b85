"""Small random models on disk, the same bytes every time: for tests that need layers, not answers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

END_TOKEN = "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", END_TOKEN)
VOCABULARY_SIZE = 320
"""256 bytes, a few merged pairs, the specials, and room to spare, as real models have."""
MERGES = (("t", "h"), ("th", "e"), ("a", "n"), ("i", "n"), ("Ġ", "the"), ("e", "r"), ("o", "n"), ("Ġ", "a"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
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
    "tie_word_embeddings": True,
}


def write_random_model(
    directory: Path,
    *,
    family: str = "qwen3",
    seed: int = 0,
    dtype: str = "bfloat16",
    has_chat_template: bool = True,
    shard_count: int = 1,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model directory that mlx-lm can load, and return it.

    Args:
        directory: Created if need be.
        family: A module of `mlx_lm.models`, which is also the config's `model_type`.
        seed: Of the weights.
        dtype: Stored type, such as `bfloat16` or `float32`.
        has_chat_template: Without one, only prompts work.
        shard_count: Into how many safetensors files the weights go.
        config: Entries that differ from a six-layer toy of hidden size 64.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    directory.mkdir(parents=True, exist_ok=True)
    entries = {"model_type": family, "architectures": ["RandomForCausalLM"], **_COMMON, **(config or {})}
    model_class, arguments_class = _get_classes(config=entries)
    mx.random.seed(seed)
    model = model_class(arguments_class.from_dict(entries))
    # The usual initialisation is so small that every position looks alike; this spreads the logits.
    weights = {
        name: (
            value if value.ndim == 1 else mx.random.normal(value.shape) * (2.0 / value.shape[-1]) ** 0.5
        ).astype(getattr(mx, dtype))
        for name, value in tree_flatten(model.parameters())
    }
    names = list(weights)
    weight_map: dict[str, str] = {}
    for shard in range(shard_count):
        file_name = (
            "model.safetensors"
            if shard_count == 1
            else f"model-{shard + 1:05d}-of-{shard_count:05d}.safetensors"
        )
        chosen = names[shard * len(names) // shard_count : (shard + 1) * len(names) // shard_count]
        mx.save_safetensors(
            str(directory / file_name), {name: weights[name] for name in chosen}, {"format": "mlx"}
        )
        weight_map |= dict.fromkeys(chosen, file_name)
    size = sum(value.nbytes for value in weights.values())
    _write(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )
    end = VOCABULARY_SIZE - 1
    _write(directory / "config.json", {**entries, "torch_dtype": dtype, "eos_token_id": end})
    write_tokenizer(directory, has_chat_template=has_chat_template)
    return directory


def write_tokenizer(directory: Path, *, has_chat_template: bool = True) -> None:
    """Write a byte-level BPE tokenizer with ChatML specials as the last ids of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in MERGES:
        vocabulary[left + right] = len(vocabulary)
    while len(vocabulary) < VOCABULARY_SIZE - len(SPECIAL_TOKENS):
        vocabulary[f"<|unused_{len(vocabulary)}|>"] = len(vocabulary)
    for token in SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_TOKEN,
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            **({"chat_template": CHAT_TEMPLATE} if has_chat_template else {}),
        },
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2))
