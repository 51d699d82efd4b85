"""Tokenizers other than byte-level ones, and where a model's end tokens are named."""

import json
from pathlib import Path

import pytest

from exo.engines.mlx.tokenizer import MlxTokenizer
from support.models import VOCABULARY_SIZE, write_tokenizer

END = VOCABULARY_SIZE - 1


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tokenizer whose decoder is not plainly byte-level, so that the library's own way has to do."""
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("text", ["the weather in Zürich: 雨 and 🌧\n  and then", "", "\n\n", "  indented"])
def test_text_comes_out_whole(directory: Path, text: str) -> None:
    tokenizer = MlxTokenizer(directory, [END], gives_text=True)
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.add(token_id) for token_id in tokenizer.encode_prompt(text)]
    assert "".join(pieces) + detokenizer.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_special_tokens_are_no_text(directory: Path) -> None:
    tokenizer = MlxTokenizer(directory, [END], gives_text=True)
    detokenizer = tokenizer.detokenizer()
    token_ids = [*tokenizer.encode_prompt("a"), END, *tokenizer.encode_prompt("b")]
    assert "".join(detokenizer.add(token_id) for token_id in token_ids) + detokenizer.finish() == "ab"


def test_two_answers_at_once_do_not_mix(directory: Path) -> None:
    tokenizer = MlxTokenizer(directory, [END], gives_text=True)
    first, second = tokenizer.detokenizer(), tokenizer.detokenizer()
    halves = tokenizer.encode_prompt("雨")
    assert first.add(halves[0]) == ""
    assert second.add(tokenizer.encode_prompt("x")[0]) == "x"
    assert [first.add(half) for half in halves[1:]] == ["", "雨"]


def test_a_model_may_have_several_ends(directory: Path) -> None:
    assert MlxTokenizer(directory, [3, 5], gives_text=False).end_token_ids == {3, 5, END}


def test_a_beginning_that_is_there_is_not_added_again(directory: Path) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|endoftext|>"}))
    tokenizer = MlxTokenizer(directory, [END], gives_text=False)
    tokens = tokenizer.encode_prompt("<|endoftext|>a")
    assert tokens.count(VOCABULARY_SIZE - 3) == 1
