"""A model's tokenizer as mlx-lm loads it, and byte-exact streaming of its text."""

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exo.engines.base import Detokenizer, Tokenizer
from exo.engines.errors import ModelFilesError, PromptError
from exo.engines.mlx.library import ByteLevelBpeDetokenizer, load_tokenizer
from exo.shared.types.generation import ChatMessage


class ByteLevelDetokenizer(Detokenizer):
    """For byte-level vocabularies: every token is some bytes, and UTF-8 says where a character ends."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes[token_id]) if token_id < len(self._token_bytes) else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class StreamingDetokenizer(Detokenizer):
    """For every other vocabulary: the library's own way."""

    def __init__(self, inner: Any, special_ids: frozenset[int]) -> None:
        self._inner: Any = inner
        self._special_ids = special_ids

    def add(self, token_id: int) -> str:
        if token_id in self._special_ids:
            return ""
        self._inner.add_token(token_id)
        return str(self._inner.last_segment)

    def finish(self) -> str:
        self._inner.finalize()
        return str(self._inner.last_segment)


class MlxTokenizer(Tokenizer):
    """The tokenizer of a model directory.

    Args:
        model_dir: With tokenizer.json or what the family uses instead.
        end_token_ids: The ids that the model's config names as ends of text, beside the tokenizer's own.
        gives_text: Whether `detokenizer` will be asked for, which wants a table of the whole vocabulary.

    Raises:
        ModelFilesError: Its files are missing or damaged.
    """

    def __init__(self, model_dir: Path, end_token_ids: Sequence[int], *, gives_text: bool) -> None:
        try:
            # Its own argument for end tokens is used when it is there; without one the tokenizer's own stays.
            self._wrapper: Any = load_tokenizer(model_dir, eos_token_ids=list(end_token_ids))
        except Exception as error:  # The libraries below raise whatever the damage leads to.
            raise ModelFilesError(
                f"the tokenizer in {model_dir} cannot be read: {error}; fetch it again"
            ) from error
        inner: Any = self._wrapper._tokenizer
        self._inner: Any = inner
        self._special_ids = frozenset(int(token_id) for token_id in inner.all_special_ids)
        self._end_token_ids = frozenset(int(token_id) for token_id in self._wrapper.eos_token_ids)
        self._vocabulary_size = len(inner)
        is_byte_level = isinstance(self._wrapper.detokenizer, ByteLevelBpeDetokenizer)
        self._token_bytes = _token_bytes(inner, self._special_ids) if gives_text and is_byte_level else None

    @property
    def vocabulary_size(self) -> int:
        return self._vocabulary_size

    @property
    def end_token_ids(self) -> frozenset[int]:
        return self._end_token_ids

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        if not self._wrapper.has_chat_template:
            raise PromptError("this model has no chat template; send a prompt to /v1/completions instead")
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            tokens = self._wrapper.apply_chat_template(conversation, add_generation_prompt=True)
        except Exception as error:  # A template may raise anything; it speaks of the messages.
            raise PromptError(f"the model's chat template refuses these messages: {error}") from error
        return [int(token) for token in tokens]

    def encode_prompt(self, text: str) -> list[int]:
        # A text that brings its own beginning-of-text token gets no second one.
        start = self._inner.bos_token
        tokens = self._inner.encode(text, add_special_tokens=start is None or not text.startswith(start))
        return [int(token) for token in tokens]

    def detokenizer(self) -> Detokenizer:
        if self._token_bytes is not None:
            return ByteLevelDetokenizer(self._token_bytes)
        return StreamingDetokenizer(self._wrapper.detokenizer, self._special_ids)


def _token_bytes(tokenizer: Any, special_ids: frozenset[int]) -> list[bytes]:
    """Return every id's bytes; special tokens have none, for they are no part of the text."""
    byte_of = _byte_of_letter()
    added = {int(token_id): str(token.content) for token_id, token in tokenizer.added_tokens_decoder.items()}
    table: list[bytes] = []
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if token is None or token_id in special_ids:
            table.append(b"")
        elif token_id in added:
            table.append(added[token_id].encode())
        else:
            table.append(b"".join(byte_of.get(letter) or letter.encode() for letter in token))
    return table


def _byte_of_letter() -> dict[str, bytes]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Bytes that print stand for themselves, the others for the letters from U+0100 on, in order (GPT-2's scheme).
    """
    printing = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [value for value in range(256) if value not in printing]
    table = {chr(value): bytes([value]) for value in printing}
    return table | {chr(256 + place): bytes([value]) for place, value in enumerate(others)}
