"""Model directories: described from headers, broken ones named, changes noticed."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.shared.types.ids import ModelId
from exo.worker.models.card import ModelUnreadableError, read_card
from exo.worker.models.store import ModelStore

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def write_model(directory: Path, **changes: object) -> Path:
    """Write a directory whose tensors are zeros: an embedding, two layers, a norm."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (directory / "tokenizer.json").write_text("{}")
    sizes = {
        "model.embed_tokens.weight": 256,
        "model.layers.0.mlp.weight": 100,
        "model.layers.1.mlp.weight": 140,
        "model.norm.weight": 16,
    }
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return directory


def test_a_card_holds_what_the_files_say(tmp_path: Path) -> None:
    card = read_card(ModelId("m"), write_model(tmp_path / "m"))
    assert card.layer_bytes == (100, 140)
    assert (card.embedding_bytes, card.head_bytes, card.total_bytes) == (256, 16, 512)
    assert (card.dtype, card.context_length_max, card.has_tied_head) == ("bfloat16", 128, True)
    assert card.kv_bytes_per_token_and_layer == 2 * 2 * 4 * 2
    assert card.problem is None


def test_facts_of_a_wrapped_text_model_are_found(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    (directory / "config.json").write_text(json.dumps({"model_type": "vision", "text_config": CONFIG}))
    card = read_card(ModelId("m"), directory)
    assert (card.layer_count, card.family) == (2, "qwen3")


def test_a_truncated_file_is_a_problem_that_says_how_much_is_missing(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    weights = directory / "model.safetensors"
    whole = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-10])
    card = read_card(ModelId("m"), directory)
    assert card.problem is not None
    assert "truncated" in card.problem and f"{whole - 10:,} of {whole:,} bytes" in card.problem


def test_a_shard_that_the_index_names_and_is_missing_is_a_problem(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    problem = read_card(ModelId("m"), directory).problem
    assert problem is not None and "model-00002.safetensors is missing" in problem


def test_missing_layers_and_tokenizers_are_problems(tmp_path: Path) -> None:
    problem = read_card(ModelId("m"), write_model(tmp_path / "m", num_hidden_layers=3)).problem
    assert problem is not None and "no layer 2" in problem
    directory = write_model(tmp_path / "n")
    (directory / "tokenizer.json").unlink()
    problem = read_card(ModelId("n"), directory).problem
    assert problem is not None and "tokenizer" in problem


@pytest.mark.parametrize(
    "config", ["", "[]", "{", '{"num_hidden_layers": "six"}', '{"num_hidden_layers": -1}']
)
def test_a_config_that_says_nothing_is_unreadable_in_words(tmp_path: Path, config: str) -> None:
    directory = write_model(tmp_path / "m")
    (directory / "config.json").write_text(config)
    with pytest.raises(ModelUnreadableError, match=r"config\.json"):
        read_card(ModelId("m"), directory)


@given(garbage=st.binary(max_size=300))
def test_whatever_the_weights_file_holds_the_card_says_so_or_is_unreadable(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    directory = write_model(tmp_path_factory.mktemp("models") / "m")
    (directory / "model.safetensors").write_bytes(garbage)
    assert read_card(ModelId("m"), directory).problem is not None


def test_fingerprints_tell_different_weights_apart(tmp_path: Path) -> None:
    one = read_card(ModelId("m"), write_model(tmp_path / "one"))
    same = read_card(ModelId("m"), write_model(tmp_path / "same"))
    other = read_card(ModelId("m"), write_model(tmp_path / "other", vocab_size=17))
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("place", [0, 255, 511])
def test_fingerprints_tell_weights_of_one_layout_apart(tmp_path: Path, place: int) -> None:
    one = read_card(ModelId("m"), write_model(tmp_path / "one"))
    tuned = write_model(tmp_path / "tuned")
    weights = bytearray((tuned / "model.safetensors").read_bytes())
    weights[len(weights) - 512 + place] = 1
    (tuned / "model.safetensors").write_bytes(weights)
    assert read_card(ModelId("m"), tuned).fingerprint != one.fingerprint


def test_weights_that_are_named_as_no_engine_reads_them_are_a_problem(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    problem = read_card(ModelId("m"), directory).problem
    assert problem is not None
    assert "no model*.safetensors file" in problem and "weights.safetensors" in problem


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "README.md"])
@pytest.mark.parametrize("what", ["open", "stat"])
def test_files_that_cannot_be_read_never_end_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    write_model(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("# Title")
    whole = getattr(Path, what)

    # As for a file of another user; the tests may be run by one who may read everything.
    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == tmp_path / "m" / name:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *args, **options)

    monkeypatch.setattr(Path, what, refuse)
    store = ModelStore([tmp_path])
    cards = [card for card in store.scan() if card.model_id == "m"]
    if name == "model.safetensors" and what == "open":
        assert cards[0].problem is not None and "cannot be read: Permission denied" in cards[0].problem


def test_a_file_that_goes_while_it_is_read_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exo.engines import model_files

    directory = write_model(tmp_path / "m")
    whole = model_files._read_header  # pyright: ignore[reportPrivateUsage]

    def gone(file: Path) -> Any:
        found = whole(file)
        file.unlink()
        return found

    monkeypatch.setattr(model_files, "_read_header", gone)
    problem = read_card(ModelId("m"), directory).problem
    assert problem is not None and "cannot be read: No such file" in problem


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    write_model(tmp_path / "whole")
    try:
        write_model(tmp_path / "bad\udcff")
    except OSError:
        pytest.skip("this file system takes text only")
    store = ModelStore([tmp_path])
    assert "whole" in [card.model_id for card in store.scan()]
    assert all("bad" not in name for name in [*store.unreadable, *(card.model_id for card in store.scan())])


def test_the_store_finds_nested_models_and_notices_changes(tmp_path: Path) -> None:
    write_model(tmp_path / "org" / "name")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    store = ModelStore([tmp_path])
    assert ModelId("org/name") in [card.model_id for card in store.scan()]
    assert store.directory(ModelId("org/name")) == tmp_path / "org" / "name"
    assert list(store.unreadable) == ["broken"]
    before = store.scan()
    assert store.scan() == before
    (tmp_path / "org" / "name" / "model.safetensors").write_bytes(b"")
    (card,) = [card for card in store.scan() if card.model_id == "org/name"]
    assert card.problem is not None


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert ModelStore([tmp_path / "nowhere"]).directory(ModelId("x")) is None
