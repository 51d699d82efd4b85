"""Model directories that make no sense: each is told of in words, none ends the scan, and the others are found."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo.shared.types.ids import ModelId
from exo.worker.models.store import ModelStore
from support.gguf_files import GgufWriter
from support.weights import TensorShapes, write_model

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "vocab_size": 16,
}
TENSORS: TensorShapes = {
    "model.embed_tokens.weight": ("BF16", (16, 8)),
    "model.layers.0.mlp.weight": ("BF16", (8, 8)),
    "model.layers.1.mlp.weight": ("BF16", (8, 8)),
}
MIB = 1024 * 1024
FIFO: Callable[[Path], object] = getattr(os, "mkfifo", Path.mkdir)
"""Where there are no pipes, a directory will do."""


def config(**changes: object) -> Callable[[Path], None]:
    """A sound model but for its config.json."""
    return lambda directory: write_model(directory, {**CONFIG, **changes}, TENSORS) and None


def config_text(text: str | bytes) -> Callable[[Path], None]:
    """A sound model but for the text of its config.json."""

    def make(directory: Path) -> None:
        write_model(directory, CONFIG, TENSORS)
        (directory / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def tensors(shapes: TensorShapes) -> Callable[[Path], None]:
    """A model with these tensors."""
    return lambda directory: write_model(directory, CONFIG, shapes) and None


def header(entries: object, data_bytes: int = 1000) -> Callable[[Path], None]:
    """A model whose weights have this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return weights(struct.pack("<Q", len(text)) + text + bytes(data_bytes))


def weights(content: bytes, size_bytes: int | None = None) -> Callable[[Path], None]:
    """A model whose weights' file begins so, and is as long as asked for."""

    def make(directory: Path) -> None:
        write_model(directory, CONFIG, TENSORS)
        with (directory / "model.safetensors").open("wb") as stream:
            stream.write(content)
            stream.truncate(size_bytes or len(content))

    return make


def index(content: object) -> Callable[[Path], None]:
    """A model with this index."""

    def make(directory: Path) -> None:
        write_model(directory, CONFIG, TENSORS)
        (directory / "model.safetensors.index.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )

    return make


def instead(name: str, make_one: Callable[[Path], object]) -> Callable[[Path], None]:
    """A model with something that is no file in the place of one."""

    def make(directory: Path) -> None:
        write_model(directory, CONFIG, TENSORS)
        (directory / name).unlink(missing_ok=True)
        make_one(directory / name)

    return make


def tensor(begin: object, end: object, dtype: object = "BF16", shape: object = (4, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no layers by config": (config(num_hidden_layers=0), "num_hidden_layers"),
    "layers below zero": (config(num_hidden_layers=-1), "num_hidden_layers"),
    "too many layers": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "layers beyond numbers": (
        config_text('{"num_hidden_layers": 1e999, "hidden_size": 8}'),
        "num_hidden_layers",
    ),
    "no number of layers": (config(num_hidden_layers=None), "num_hidden_layers"),
    "no width": (config(hidden_size=0), "hidden_size"),
    "absurd width": (config(hidden_size=10**30), "hidden_size"),
    "absurd heads": (config(num_key_value_heads=10**8, head_dim=10**8), "no model has"),
    "quantised by a word": (config(quantization={"bits": "few"}), "bits"),
    "config is a list": (config_text("[]"), "config.json"),
    "config is empty": (config_text(""), "config.json"),
    "config is no text": (config_text(b"\xff\xfe\x00"), "config.json"),
    "config is half a letter": (
        config_text('{"num_hidden_layers": 2, "hidden_size": 8, "model_type": "\\ud800"}'),
        "config.json",
    ),
    "config is deep": (config_text('{"a":' + "[" * 200_000), "config.json"),
    "config is a directory": (instead("config.json", Path.mkdir), "is no file"),
    "config is a pipe": (instead("config.json", FIFO), "is no file"),
    "config is not there": (instead("config.json", lambda file: None), "config.json is missing"),
    "no layer has weights": (tensors({"model.embed_tokens.weight": ("BF16", (16, 8))}), "no layer 0"),
    "a layer is missing": (tensors({"model.layers.0.mlp.weight": ("BF16", (8, 8))}), "no layer 1"),
    "a layer is empty": (tensors({**TENSORS, "model.layers.1.mlp.weight": ("BF16", (0, 8))}), "no layer 1"),
    "layers are called otherwise": (tensors({"net.0.weight": ("BF16", (8, 8))}), "no layer 0"),
    "no tensors": (tensors({}), "no layer 0"),
    "weights are a directory": (instead("model.safetensors", Path.mkdir), "is no file"),
    "weights are a pipe": (instead("model.safetensors", FIFO), "is no file"),
    "weights lead nowhere": (
        instead("model.safetensors", lambda f: f.symlink_to("/nowhere/at/all")),
        "cannot be read|no model",
    ),
    "weights lead to themselves": (
        instead("model.safetensors", lambda f: f.symlink_to(f)),
        "cannot be read|no model",
    ),
    "no weights": (instead("model.safetensors", lambda file: None), "no model*.safetensors"),
    "weights are empty": (weights(b""), "no safetensors file"),
    "a header of no length": (weights(struct.pack("<Q", 0) + bytes(100)), "no safetensors file"),
    "a header beyond all files": (weights(struct.pack("<Q", 2**64 - 1) + bytes(100)), "no safetensors file"),
    "a header of 200 MiB": (weights(struct.pack("<Q", 200 * MIB), 300 * MIB), "no safetensors file"),
    "a header of 20 MiB of nothing": (weights(struct.pack("<Q", 20 * MIB), 30 * MIB), "header is damaged"),
    "a header cut off": (weights(struct.pack("<Q", 1000) + b"{}"), "truncated"),
    "a header that is a list": (header([]), "header is damaged"),
    "a deep header": (header(b'{"a":' + b"[" * 100_000), "header is damaged"),
    "a header of other things": (header({"a": 1}), "header is damaged"),
    "offsets below zero": (header({"a": tensor(-1, 5)}), "header is damaged"),
    "offsets that are no numbers": (header({"a": tensor("a", None)}), "header is damaged"),
    "offsets that go back": (header({"a": tensor(10, 5)}), "ends before it begins"),
    "offsets beyond the file": (header({"a": tensor(0, 2**60)}), "truncated"),
    "tensors on each other": (header({"a": tensor(0, 10), "b": tensor(9, 20)}), "b lies where a does"),
    "a type that is a number": (header({"a": tensor(0, 10, dtype=5)}), "header is damaged"),
    "an index that is no JSON": (index("no"), "is no JSON"),
    "an index that is a list": (index([]), "no JSON object"),
    "an index without a map": (index({"metadata": {}}), "no weight_map"),
    "an index with a list for a map": (index({"weight_map": ["a"]}), "no weight_map"),
    "an index that names a missing file": (
        index({"weight_map": {"x": "model-00002-of-00002.safetensors"}}),
        "model-00002-of-00002.safetensors is missing",
    ),
    "an index that names numbers": (index({"weight_map": {"x": 7}}), "7 is missing"),
    "an index that names other places": (
        index({"weight_map": {"x": "../../../etc/passwd"}}),
        "passwd is missing",
    ),
    "an index that is deep": (index('{"weight_map":' + "[" * 100_000), "is no JSON"),
    "an index that is a pipe": (instead("model.safetensors.index.json", FIFO), "is no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_directory_is_told_of_and_the_others_are_found(tmp_path: Path, name: str) -> None:
    make, says = BAD[name]
    make(tmp_path / "bad")
    write_model(tmp_path / "sound", CONFIG, TENSORS)
    store = ModelStore([tmp_path])
    cards = {card.model_id: card for card in store.scan()}
    assert cards[ModelId("sound")].problem is None
    bad = cards.get(ModelId("bad"))
    words = store.unreadable[ModelId("bad")] if bad is None else bad.problem
    assert words is not None
    assert any(part in words for part in says.split("|")), words
    if bad is not None:
        # It is sent to all nodes all the same, so that people see what is wrong with it.
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(bad), type=type(bad)) == bad


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**30, "max_position_embeddings": 10**30},
        {"num_attention_heads": "four", "num_key_value_heads": [1], "head_dim": {}},
        {"num_experts": 10**40, "num_experts_per_tok": -1},
        {"layer_types": ["odd"], "sliding_window": 4, "model_type": "llama"},
        {"layer_types": 7, "sliding_window": "x", "model_type": "gpt_oss"},
        {"model_type": "kimi_linear", "linear_attn_config": []},
        {"model_type": "gemma3", "sliding_window_pattern": 0},
        {"num_kv_shared_layers": 99},
        {"text_config": None, "quantization": None, "torch_dtype": None},
    ],
)
def test_odd_figures_that_do_not_matter_are_passed_over(tmp_path: Path, changes: dict[str, object]) -> None:
    config(**changes)(tmp_path / "m")
    (card,) = [card for card in ModelStore([tmp_path]).scan() if card.model_id == "m"]
    assert card.problem is None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(card), type=type(card)) == card
    assert all(card.cache_bytes(layer, 1000) >= 0 for layer in range(card.layer_count))


def test_a_gguf_file_that_is_no_file_is_told_of(tmp_path: Path) -> None:
    FIFO(tmp_path / "pipe.gguf")
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "away")
    GgufWriter().write(tmp_path / "sound.gguf")
    store = ModelStore([tmp_path])
    assert ModelId("sound") in [card.model_id for card in store.scan()]
    assert "is no file" in store.unreadable[ModelId("pipe")]
    assert "nowhere.gguf" in store.unreadable[ModelId("nowhere")]
