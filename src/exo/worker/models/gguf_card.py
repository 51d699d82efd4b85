"""Describes a model in GGUF files: its facts and sizes, from their headers."""

import re
import sys
from pathlib import Path
from typing import Any, cast

from exo.engines.errors import ModelFilesError
from exo.engines.gguf_files import LENGTH, GgufFile, parts_of, read_gguf
from exo.engines.model_files import Tensor
from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard
from exo.worker.models.card import fingerprint_of, read_me
from exo.worker.models.config import LAYERS_MAX, NUMBER_MAX, ModelUnreadableError, sensible_kv_bytes
from exo.worker.models.layout import lay_out

_CONTEXT_LENGTH_UNKNOWN = 2048
_KV_BYTES_PER_VALUE = 2
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_QUANTISED = re.compile(r"(?:[IT]?Q|\w+FP)(\d)")
_NOT_A_MODEL = {
    "mmproj": "what a model sees or hears with",
    "clip": "what a model sees or hears with",
    "adapter": "an adapter, which changes another model",
    "imatrix": "a record of which weights matter most",
}


def read_gguf_card(model_id: ModelId, file: Path) -> ModelCard:
    """Describe the model whose only or first file this is.

    KV values count as kept by all layers for the whole context, in 16 bits: windows and the like are up to the
    engine.

    Raises:
        ModelUnreadableError: The file cannot be described at all; the message names it and what is wrong.
    """
    try:
        first = _read_part(file)
    except ModelFilesError as error:
        raise ModelUnreadableError(error.message) from error
    facts = _Facts(file, first.facts)
    parts = [first]
    problem: str | None = None
    try:
        for part in parts_of(file)[1:]:
            parts.append(_read_part(part))
    except ModelFilesError as error:
        problem = error.message
    if problem is None and (sys.byteorder == "big") != first.is_big_endian:
        order = "big" if first.is_big_endian else "little"
        problem = f"{file} is {order}-endian, which machines like this cannot run; fetch the usual file"
    tensors = {name: tensor for part in parts for name, tensor in part.weights.tensors.items()}
    layer_count = facts.layer_count
    layout = lay_out(
        tensors,
        layer_count=layer_count,
        experts_per_token=facts.number("expert_used_count"),
        expert_count=facts.number("expert_count"),
    )
    if problem is None and not all(layout.layer_bytes):
        problem = f"{file} has no layer {layout.layer_bytes.index(0)}, but says {layer_count} layers"
    kv_bytes = facts.kv_bytes_per_token
    name, description = read_me(file.parent, model_id)
    return ModelCard(
        model_id=model_id,
        name=facts.text("general.name") or name,
        description=description,
        family=facts.architecture,
        format="gguf",
        dtype=_dtype(tensors),
        layer_count=layer_count,
        hidden_size=facts.require("embedding_length"),
        vocabulary_size=facts.vocabulary_size or layout.vocabulary_size or 0,
        context_length_max=facts.number("context_length") or _CONTEXT_LENGTH_UNKNOWN,
        layer_bytes=layout.layer_bytes,
        embedding_bytes=layout.embedding_bytes,
        head_bytes=layout.head_bytes,
        has_tied_head=not layout.has_own_head,
        kv_bytes_per_token_and_layer=max(kv_bytes),
        fingerprint="" if problem else _fingerprint(parts),
        problem=problem,
        layer_active_bytes=layout.layer_active_bytes,
        layer_kv_bytes_per_token=kv_bytes if len(set(kv_bytes)) > 1 else (),
    )


def _read_part(part: Path) -> GgufFile:
    try:
        is_there = part.exists()
    except OSError:
        is_there = True  # It is named by what reads it.
    if not is_there:
        raise ModelFilesError(f"{part.name} is missing in {part.parent}; download the model again")
    return read_gguf(part)


def _fingerprint(parts: list[GgufFile]) -> str:
    return fingerprint_of(b"".join(part.header_hash for part in parts), [part.weights for part in parts])


class _Facts:
    """A header's facts, by the names they have in every architecture.

    Raises:
        ModelUnreadableError: It is no language model, or does not say how many layers it has and how wide they are.
    """

    def __init__(self, file: Path, facts: dict[str, Any]) -> None:
        self._file = file
        self._facts = facts
        self.architecture = self.text("general.architecture") or ""
        kind = _NOT_A_MODEL.get(self.text("general.type") or "") or _NOT_A_MODEL.get(self.architecture)
        if kind is not None:
            raise ModelUnreadableError(f"{file} is {kind}, no model of its own; exo leaves it alone")
        if not self.architecture:
            raise ModelUnreadableError(f"{file} names no general.architecture; fetch it again")
        blocks = self.require("block_count")
        # The last ones may guess tokens ahead, which is no part of the model.
        self.layer_count = max(1, blocks - (self.number("nextn_predict_layers") or 0))
        if self.layer_count > LAYERS_MAX:
            raise ModelUnreadableError(f"{file} says {self.layer_count:,} layers; fetch it again")

    def text(self, key: str) -> str | None:
        value = self._facts.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return a positive number of the architecture; of a list its largest."""
        value = self._facts.get(f"{self.architecture}.{key}")
        found = [
            one for one in cast(list[Any], value if isinstance(value, list) else [value]) if _is_number(one)
        ]
        return max(found, default=None)

    def require(self, key: str) -> int:
        value = self.number(key)
        if value is None:
            raise ModelUnreadableError(
                f"{self._file} does not say its {self.architecture}.{key}; fetch it again"
            )
        return value

    @property
    def vocabulary_size(self) -> int | None:
        tokens = self._facts.get("tokenizer.ggml.tokens")
        counted = tokens.count if isinstance(tokens, LENGTH) else None
        return self.number("vocab_size") or counted

    @property
    def kv_bytes_per_token(self) -> tuple[int, ...]:
        """Of each layer: some architectures have layers without keys and values, whose heads are given as 0."""
        heads = self.number("attention.head_count") or 1
        width = max(1, self.require("embedding_length") // heads)
        each = (self.number("attention.key_length") or width) + (
            self.number("attention.value_length") or width
        )
        stated = self._facts.get(f"{self.architecture}.attention.head_count_kv", heads)
        counts = cast(list[Any], stated) if isinstance(stated, list) else [stated] * self.layer_count
        counts = [int(one) if _is_number(one) else 0 for one in counts[: self.layer_count]]
        counts += [heads] * (self.layer_count - len(counts))
        return sensible_kv_bytes([count * each * _KV_BYTES_PER_VALUE for count in counts], self._file)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= NUMBER_MAX


def _dtype(tensors: dict[str, Tensor]) -> str:
    """Return the type that most bytes are of: its name, or its bits where it is a quantised one."""
    size_bytes: dict[str, int] = {}
    for tensor in tensors.values():
        size_bytes[tensor.dtype] = size_bytes.get(tensor.dtype, 0) + tensor.size_bytes
    most = max(size_bytes, key=lambda dtype: (size_bytes[dtype], dtype), default="unknown")
    quantised = _QUANTISED.match(most)
    return f"{quantised[1]}-bit" if quantised is not None else _NAMES.get(most, most.lower())
