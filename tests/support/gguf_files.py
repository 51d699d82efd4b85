"""Writes small GGUF files, sound ones and such that are not: headers as asked for, zeros for weights."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GgufTensors = Mapping[str, tuple[int, tuple[int, ...]]]
"""Name to (type as GGUF numbers it, dimensions with the shortest stride first)."""

F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 2, 8, 12, 14, 30
BLOCKS = {
    F32: (1, 4),
    F16: (1, 2),
    Q4_0: (32, 18),
    Q8_0: (32, 34),
    Q4_K: (256, 144),
    Q6_K: (256, 210),
    BF16: (1, 2),
}

FACTS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Small Llama",
    "llama.block_count": 2,
    "llama.embedding_length": 256,
    "llama.context_length": 4096,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b"],
}


def layer(number: int, kind: int = Q4_K) -> GgufTensors:
    """The tensors of a layer."""
    return {
        f"blk.{number}.attn_norm.weight": (F32, (256,)),
        f"blk.{number}.attn_q.weight": (kind, (256, 256)),
        f"blk.{number}.ffn_up.weight": (kind, (256, 512)),
    }


TENSORS: GgufTensors = {
    "token_embd.weight": (Q6_K, (256, 4)),
    **layer(0),
    **layer(1),
    "output_norm.weight": (F32, (256,)),
    "output.weight": (Q6_K, (256, 4)),
}


def size_bytes(kind: int, dimensions: tuple[int, ...]) -> int:
    """How long a tensor's data is."""
    values, block_bytes = BLOCKS[kind]
    return math.prod(dimensions) // values * block_bytes


class GgufWriter:
    """Puts a file together; each part may be replaced by something else."""

    def __init__(self, *, order: str = "<", version: int = 3) -> None:
        self.order = order
        self.version = version
        self.counts: tuple[int, int] | None = None
        """(tensors, facts) to state; None: as many as there are."""

    def header(self, facts: Mapping[str, Any], tensors: GgufTensors) -> bytes:
        """Everything before the weights, padded to 32 bytes."""
        tensor_count, fact_count = self.counts or (len(tensors), len(facts))
        made = b"GGUF" + self._pack("IQQ", self.version, tensor_count, fact_count)
        for key, value in facts.items():
            made += self._text(key) + self._value(value)
        offset = 0
        for name, (kind, dimensions) in tensors.items():
            made += self._text(name) + self._pack(f"I{len(dimensions)}Q", len(dimensions), *dimensions)
            made += self._pack("IQ", kind, offset)
            offset += -(-size_bytes(kind, dimensions) // 32) * 32
        return made + bytes(-len(made) % 32)

    def write(self, file: Path, facts: Mapping[str, Any] = FACTS, tensors: GgufTensors = TENSORS) -> Path:
        """Write a file, its weights sparse where the file system can."""
        header = self.header(facts, tensors)
        total = sum(-(-size_bytes(*what) // 32) * 32 for what in tensors.values())
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + total)
        return file

    def _pack(self, layout: str, *values: int | float) -> bytes:
        return struct.pack(self.order + layout, *values)

    def _text(self, text: str) -> bytes:
        raw = text.encode()
        return self._pack("Q", len(raw)) + raw

    def _value(self, value: Any) -> bytes:
        match value:
            case bool():
                return self._pack("I?", 7, value)
            case int():
                return self._pack("II", 4, value) if 0 <= value < 2**32 else self._pack("IQ", 10, value)
            case float():
                return self._pack("If", 6, value)
            case str():
                return self._pack("I", 8) + self._text(value)
            case list():
                inside = [self._value(one) for one in value]
                kind = inside[0][:4] if inside else self._pack("I", 4)
                return (
                    self._pack("I", 9) + kind + self._pack("Q", len(value)) + b"".join(i[4:] for i in inside)
                )
            case _:
                raise TypeError(value)
