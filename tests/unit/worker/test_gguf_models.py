"""Models in GGUF files: described from headers, damaged ones named in words, listed beside all others."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.engines.errors import ModelFilesError
from exo.engines.gguf_files import parts_of, read_gguf
from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard
from exo.worker.models.config import ModelUnreadableError
from exo.worker.models.gguf_card import read_gguf_card
from exo.worker.models.store import ModelStore
from support.gguf_files import (
    BF16,
    F16,
    F32,
    FACTS,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    TENSORS,
    GgufTensors,
    GgufWriter,
    layer,
)
from support.gguf_files import size_bytes as bytes_of
from support.weights import write_model as write_safetensors_model

LAYER = 256 * 4 + 256 * 256 // 256 * 144 + 256 * 512 // 256 * 144


def card_of(file: Path, facts: dict[str, Any] | None = None, tensors: GgufTensors = TENSORS) -> ModelCard:
    """Write a file and describe it."""
    return read_gguf_card(ModelId("m"), GgufWriter().write(file, {**FACTS, **(facts or {})}, tensors))


def test_a_card_holds_what_the_header_says(tmp_path: Path) -> None:
    card = card_of(tmp_path / "m.gguf")
    assert (card.format, card.family, card.name, card.problem) == ("gguf", "llama", "Small Llama", None)
    assert card.layer_bytes == (LAYER, LAYER)
    assert (card.embedding_bytes, card.head_bytes, card.has_tied_head) == (840, 840 + 1024, False)
    assert (card.layer_count, card.hidden_size, card.vocabulary_size) == (2, 256, 4)
    assert (card.context_length_max, card.dtype) == (4096, "4-bit")
    assert card.kv_bytes_per_token_and_layer == 2 * (32 + 32) * 2
    assert card.layer_active_bytes == card.layer_kv_bytes_per_token == ()


def test_a_head_that_is_not_there_is_the_embedding(tmp_path: Path) -> None:
    tensors = {name: what for name, what in TENSORS.items() if name != "output.weight"}
    card = card_of(tmp_path / "m.gguf", tensors=tensors)
    assert (card.has_tied_head, card.embedding_bytes, card.head_bytes) == (True, 840, 1024)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (F32, "float32"),
        (F16, "float16"),
        (BF16, "bfloat16"),
        (Q4_0, "4-bit"),
        (Q8_0, "8-bit"),
        (Q6_K, "6-bit"),
    ],
)
def test_the_type_is_that_of_most_bytes(tmp_path: Path, kind: int, dtype: str) -> None:
    card = card_of(tmp_path / "m.gguf", tensors={**TENSORS, **layer(0, kind), **layer(1, kind)})
    assert card.dtype == dtype


def test_experts_count_in_part_and_shared_ones_in_full(tmp_path: Path) -> None:
    experts: GgufTensors = {
        "blk.1.ffn_up_exps.weight": (Q8_0, (64, 32, 8)),
        "blk.1.ffn_down_exps.weight": (Q8_0, (32, 64, 8)),
        "blk.1.ffn_up_shexp.weight": (Q8_0, (64, 32)),
        "blk.1.ffn_gate_inp.weight": (F32, (64, 8)),
    }
    facts = {"llama.expert_count": 8, "llama.expert_used_count": 2}
    card = card_of(tmp_path / "m.gguf", facts, {**TENSORS, **experts})
    one = 64 * 32 // 32 * 34
    assert card.layer_bytes == (LAYER, LAYER + 2 * 8 * one + one + 64 * 8 * 4)
    assert card.layer_active_bytes == (LAYER, LAYER + 2 * 2 * one + one + 64 * 8 * 4)
    single = {f"blk.{n}.ffn_up.{e}.weight": (Q8_0, (64, 32)) for n in (0, 1) for e in range(8)}
    card = card_of(tmp_path / "n.gguf", facts, {**TENSORS, **single})
    assert card.layer_active_bytes == (LAYER + 2 * one,) * 2


def test_heads_that_differ_from_layer_to_layer_give_caches_of_their_own(tmp_path: Path) -> None:
    facts = {
        "llama.attention.head_count_kv": [0, 4],
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 32,
    }
    card = card_of(tmp_path / "m.gguf", facts)
    assert card.layer_kv_bytes_per_token == (0, 4 * 96 * 2)
    assert (card.cache_bytes(0, 10), card.cache_bytes(1, 10)) == (0, 7680)


def test_layers_that_guess_ahead_are_left_out(tmp_path: Path) -> None:
    facts = {"llama.block_count": 3, "llama.nextn_predict_layers": 1}
    card = card_of(tmp_path / "m.gguf", facts, {**TENSORS, **layer(2)})
    assert (card.layer_count, card.layer_bytes, card.problem) == (2, (LAYER, LAYER), None)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(tmp_path: Path, version: int) -> None:
    card = read_gguf_card(ModelId("m"), GgufWriter(version=version).write(tmp_path / "m.gguf"))
    assert (card.problem, card.layer_bytes) == (None, (LAYER, LAYER))


def test_the_other_byte_order_is_read_and_named(tmp_path: Path) -> None:
    card = read_gguf_card(ModelId("m"), GgufWriter(order=">").write(tmp_path / "m.gguf"))
    assert card.layer_bytes == (LAYER, LAYER)
    assert card.problem is not None and "big-endian" in card.problem


def test_parts_are_put_together_and_missing_ones_named(tmp_path: Path) -> None:
    halves = list(TENSORS.items())
    first = tmp_path / "m-00001-of-00002.gguf"
    GgufWriter().write(first, FACTS, dict(halves[:4]))
    problem = read_gguf_card(ModelId("m"), first).problem
    assert problem is not None and "m-00002-of-00002.gguf is missing" in problem
    GgufWriter().write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1}, dict(halves[4:]))
    card = read_gguf_card(ModelId("m"), first)
    assert (card.problem, card.layer_bytes) == (None, (LAYER, LAYER))
    assert card.total_bytes == sum(bytes_of(*what) for what in TENSORS.values())
    assert parts_of(first) == [first, tmp_path / "m-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"general.architecture": "clip"}, "sees or hears"),
        ({"general.type": "adapter"}, "an adapter"),
        ({"general.architecture": ""}, r"general\.architecture"),
        ({"general.architecture": "other"}, r"other\.block_count"),
        ({"llama.block_count": 0}, r"llama\.block_count"),
        ({"llama.block_count": 2**32 + 1}, r"llama\.block_count"),
        ({"llama.block_count": 99_999}, "99,999 layers"),
        ({"llama.embedding_length": "wide"}, r"llama\.embedding_length"),
        ({"llama.attention.head_count_kv": 10**9}, "no model has"),
    ],
)
def test_what_is_no_language_model_is_unreadable_in_words(
    tmp_path: Path, facts: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelUnreadableError, match=says):
        card_of(tmp_path / "m.gguf", facts)


def test_layers_without_tensors_are_a_problem(tmp_path: Path) -> None:
    problem = card_of(tmp_path / "m.gguf", {"llama.block_count": 3}).problem
    assert problem is not None and "no layer 2" in problem


HEADER = GgufWriter().header(FACTS, TENSORS)
NAME = b"blk.0.ffn_up.weight"
INFO = HEADER.index(NAME) + len(NAME)
"""Where the dimensions of a tensor begin: count, two lengths, type, offset."""


def patched(place: int, value: bytes) -> bytes:
    """The header with something else at a place, and weights enough."""
    return HEADER[:place] + value + HEADER[place + len(value) :] + bytes(400_000)


def test_what_is_patched_here_is_sound_otherwise(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(patched(0, b""))
    assert read_gguf(tmp_path / "m.gguf").weights.tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no GGUF file"),
        (b"GG", "no GGUF file"),
        (b"GGML" + bytes(100), "no GGUF file"),
        (b"GGUF\x03\x00", "truncated"),
        (patched(4, struct.pack("<I", 1)), "version 1 of GGUF"),
        (patched(4, struct.pack("<I", 4)), "version 4 of GGUF"),
        (patched(8, struct.pack("<Q", 2**64 - 1)), "18,446,744,073,709,551,615 tensors"),
        (patched(16, struct.pack("<Q", 2**63)), "facts"),
        (patched(8, struct.pack("<Q", 900_000)), "unknown type|dimensions|twice|truncated"),
        (patched(24, struct.pack("<Q", 2**64 - 1)), "truncated"),
        (patched(INFO, struct.pack("<I", 5)), "5 dimensions"),
        (patched(INFO + 4, struct.pack("<Q", 257)), "257 values"),
        (patched(INFO + 4, struct.pack("<QQ", 2**63, 2**63)), "truncated: 4"),
        (patched(INFO + 20, struct.pack("<I", 4)), "unknown type 4"),
        (patched(INFO + 24, struct.pack("<Q", 0)), "lies where"),
        (patched(INFO + 24, struct.pack("<Q", 2**60)), "truncated"),
        (patched(HEADER.index(b"blk.1.ffn_up"), b"blk.0"), "twice"),
        (patched(HEADER.index(b"llama.block_count") + 17, struct.pack("<I", 13)), "unknown type 13"),
        (patched(HEADER.index(b"tokenizer.ggml.tokens") + 25, struct.pack("<I", 9)), "type 9"),
        (patched(HEADER.index(b"tokenizer.ggml.tokens") + 29, struct.pack("<Q", 2**50)), "texts"),
        (
            patched(HEADER.index(b"tokenizer.ggml.tokens") + 29, struct.pack("<Q", 10**6)),
            "truncated|twice|type",
        ),
        (GgufWriter().header({"general.alignment": 24, **FACTS}, {}), "no alignment"),
        (HEADER, "truncated"),
        (HEADER[:-200], "truncated"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelFilesError, match=says) as caught:
        read_gguf(file)
    assert str(file) in caught.value.message


def test_a_header_without_end_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**40))
        stream.truncate(2**41)
    with pytest.raises(ModelFilesError, match="longer than"):
        read_gguf(file)


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, len(HEADER)), place=st.integers(0, len(HEADER) - 8), junk=st.binary(max_size=8))
def test_no_damage_is_an_exception_of_another_kind(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, junk: bytes
) -> None:
    file = tmp_path_factory.mktemp("models") / "m.gguf"
    file.write_bytes(patched(place, junk))
    try:
        read_gguf_card(ModelId("m"), file)
    except ModelUnreadableError as error:
        assert str(file) in error.message
    file.write_bytes(HEADER[:cut])
    with pytest.raises(ModelUnreadableError):
        read_gguf_card(ModelId("m"), file)


KINDS = st.sampled_from([(F32, 1), (F16, 1), (Q8_0, 32), (Q4_K, 256)])
PARTS = st.sampled_from(
    ["attn_q.weight", "ffn_up.weight", "ffn_up_exps.weight", "ffn_up_shexp.weight", "attn_norm.bias"]
)


@settings(max_examples=100, deadline=None)
@given(
    layers=st.lists(
        st.dictionaries(PARTS, st.tuples(KINDS, st.integers(1, 9), st.integers(1, 5)), min_size=1),
        min_size=1,
        max_size=5,
    ),
    used=st.integers(1, 6),
)
def test_every_byte_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory, layers: list[dict[str, Any]], used: int
) -> None:
    tensors: dict[str, tuple[int, tuple[int, ...]]] = {
        f"blk.{number}.{name}": (kind, (unit * columns, rows))
        for number, parts in enumerate(layers)
        for name, ((kind, unit), columns, rows) in parts.items()
    }
    facts = {"llama.block_count": len(layers), "llama.expert_used_count": used}
    card = card_of(tmp_path_factory.mktemp("models") / "m.gguf", facts, {**ENDS, **tensors})
    assert card.problem is None
    assert card.total_bytes == sum(bytes_of(*what) for what in {**ENDS, **tensors}.values())
    assert all(a <= b for a, b in zip(card.layer_active_bytes, card.layer_bytes, strict=False))


ENDS: GgufTensors = {"token_embd.weight": (F16, (8, 4)), "output_norm.weight": (F32, (8,))}


def test_the_store_lists_files_and_directories_of_either_format(tmp_path: Path) -> None:
    write = GgufWriter().write
    write(tmp_path / "alone.gguf")
    write(tmp_path / "org" / "one" / "one-Q4_K_M.gguf")
    write(tmp_path / "org" / "one" / "mmproj-one.gguf", {"general.architecture": "clip"}, {})
    (tmp_path / "org" / "one" / "config.json").write_text("{}")
    write(tmp_path / "org" / "several" / "Q4.gguf")
    write(tmp_path / "org" / "several" / "Q8.gguf", FACTS, {**TENSORS, **layer(0, Q8_0), **layer(1, Q8_0)})
    write(tmp_path / "org" / "deep" / "Q4" / "m-00001-of-00002.gguf")
    write(tmp_path / "lost" / "m-00002-of-00002.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"no")
    (tmp_path / "folder.gguf").mkdir()
    both = {"model_type": "x", "num_hidden_layers": 1, "hidden_size": 8}
    write_safetensors_model(tmp_path / "both", both, {"model.layers.0.w": ("BF16", (8,))})
    write(tmp_path / "both" / "both.gguf")
    store = ModelStore([tmp_path])
    found = {card.model_id: card for card in store.scan() if store.directory(card.model_id) is not None}
    formats = {
        name: card.format
        for name, card in found.items()
        if tmp_path in (store.directory(name) or tmp_path).parents
    }
    assert formats == {
        "alone": "gguf",
        "both": "safetensors",
        "org/deep/Q4": "gguf",
        "org/one": "gguf",
        "org/several/Q4": "gguf",
        "org/several/Q8": "gguf",
    }
    assert store.directory(ModelId("org/one")) == tmp_path / "org" / "one" / "one-Q4_K_M.gguf"
    assert sorted(store.unreadable) == ["bad", "lost"]
    assert "m-00001-of-00002.gguf is missing" in store.unreadable[ModelId("lost")]
    assert "is missing" in (found[ModelId("org/deep/Q4")].problem or "")


def test_the_store_notices_when_a_part_arrives(tmp_path: Path) -> None:
    halves = list(TENSORS.items())
    GgufWriter().write(tmp_path / "m-00001-of-00002.gguf", FACTS, dict(halves[:4]))
    store = ModelStore([tmp_path])
    (card,) = [card for card in store.scan() if card.model_id == "m"]
    assert card.problem is not None
    GgufWriter().write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1}, dict(halves[4:]))
    (card,) = [card for card in store.scan() if card.model_id == "m"]
    assert card.problem is None
    assert store.scan() == store.scan()


def test_fingerprints_tell_files_of_one_layout_apart(tmp_path: Path) -> None:
    one, same = card_of(tmp_path / "a" / "m.gguf"), card_of(tmp_path / "b" / "m.gguf")
    named = card_of(tmp_path / "c" / "m.gguf", {"general.name": "Other Llama"})
    tuned = GgufWriter().write(tmp_path / "d" / "m.gguf")
    with tuned.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert one.fingerprint == same.fingerprint != ""
    assert len({one.fingerprint, named.fingerprint, read_gguf_card(ModelId("m"), tuned).fingerprint}) == 3


def test_a_header_that_another_program_wrote_is_read_as_it_meant(tmp_path: Path) -> None:
    """The writer of the `gguf` package (0.19) made it; the sizes are those that its own reader gives."""
    file = tmp_path / "m.gguf"
    file.write_bytes((Path(__file__).parents[2] / "support" / "headers" / "mixture.gguf").read_bytes())
    with file.open("r+b") as stream:
        stream.truncate(636_640)
    card = read_gguf_card(ModelId("m"), file)
    assert (card.problem, card.name, card.family, card.dtype) == (None, "Tiny Mixture", "qwen3moe", "4-bit")
    every = 1024 + 69_632 + 18_432 + 4096
    first, second = (36_864, 36_864, 147_456), (34_816, 36_864, 147_456)
    assert card.layer_bytes == (every + sum(first), every + sum(second))
    assert card.layer_active_bytes == (every + sum(first) // 2, every + sum(second) // 2)
    assert (card.embedding_bytes, card.head_bytes, card.vocabulary_size) == (6720, 1024, 32)
    assert card.kv_bytes_per_token_and_layer == 2 * (64 + 64) * 2
    last = read_gguf(file).weights.tensors["output_norm.weight"]
    assert read_gguf(file).weights.data_start + last.data_offsets[0] == 635_616
