"""What the header of a GGUF file says: facts about the model, and its tensors. Reads no weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, either byte order).
"""

import hashlib
import math
import re
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from exo.engines.errors import ModelFilesError
from exo.engines.model_files import HEADER_BYTES_MAX, Tensor, WeightFile, require_whole, size_of, unreadable

_MAGIC = b"GGUF"
_READ_BYTES = 1024 * 1024
_ALIGNMENT = 32
_DIMENSIONS_MAX = 4
_COUNT_MAX = 1_000_000
_TEXTS_MAX = 4_000_000
_KEPT_LENGTH_MAX = 8192
"""Longer arrays are those of the vocabulary; of them only the length is kept."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values that are numbers, as `struct` names them."""
_TEXT, _ARRAY = 8, 9
_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")

_BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Types of tensors: name, values in a block, bytes of a block."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file that is as long as its header says."""

    weights: WeightFile
    """Its tensors; their shapes are in the order of other formats, rows first."""
    facts: dict[str, Any]
    """Numbers, texts, and short lists of them, by key; of a long list its length as `LENGTH`."""
    header_hash: bytes
    is_big_endian: bool


@dataclass(frozen=True)
class LENGTH:
    """How long an array is whose values were passed over."""

    count: int


def split_of(file: Path) -> tuple[str, int, int]:
    """Return what a file is called without its ending, which part of the model it is (from 1), and of how many."""
    match = _SPLIT.match(file.stem)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return file.stem, 1, 1
    return match["stem"], int(match["number"]), int(match["count"])


def parts_of(file: Path) -> list[Path]:
    """Return all files of the model that a file belongs to, in order, those that are missing too."""
    stem, _, count = split_of(file)
    if count == 1:
        return [file]
    return [
        file.with_name(f"{stem}-{number:05d}-of-{count:05d}{file.suffix}") for number in range(1, count + 1)
    ]


def read_gguf(file: Path) -> GgufFile:
    """Read a file's header.

    Raises:
        ModelFilesError: It is truncated, damaged, of another version or no GGUF file; the message names it.
    """
    try:
        size_bytes = size_of(file)
        with file.open("rb") as stream:
            return _read(file, _Header(file, stream, size_bytes))
    except OSError as error:
        raise unreadable(file, error) from error


def _read(file: Path, header: "_Header") -> GgufFile:
    if header.size_bytes < 4 or header.take(4) != _MAGIC:
        raise ModelFilesError(f"{file} is no GGUF file ({header.size_bytes:,} bytes); fetch it again")
    version = header.number("I")
    if version & 0xFFFF == 0:  # Written by a machine of the other byte order: 3 reads as 3 << 24.
        header.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise ModelFilesError(
            f"{file} is of version {version} of GGUF, and exo reads 2 and 3; convert the model again"
        )
    tensor_count, fact_count = header.number("Q"), header.number("Q")
    facts: dict[str, Any] = {}
    for count, kind in ((tensor_count, "tensors"), (fact_count, "facts")):
        if count > _COUNT_MAX:
            raise header.damaged(f"it has {count:,} {kind}")
    for _ in range(fact_count):
        key = header.text()
        if key in facts:
            raise header.damaged(f"it says {key} twice")
        facts[key] = header.value(header.number("I"))
    tensors: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        name = header.text()
        if name in tensors:
            raise header.damaged(f"it has {name} twice")
        tensors[name] = header.tensor(name)
    alignment = facts.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise header.damaged(f"{alignment} is no alignment")
    data_start = -(-header.position // alignment) * alignment
    require_whole(file, header.size_bytes, data_start if tensors else header.position, tensors)
    return GgufFile(
        weights=WeightFile(file, header.size_bytes, data_start, tensors),
        facts=facts,
        header_hash=header.hash(),
        is_big_endian=header.order == ">",
    )


class _Header:
    """Takes values off the beginning of a file, never more of it than there is or than a header may be."""

    def __init__(self, file: Path, stream: BufferedReader, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.order = "<"
        self.position = 0
        self._file = file
        self._stream = stream
        self._read = bytearray()

    def hash(self) -> bytes:
        return hashlib.sha256(memoryview(self._read)[: self.position]).digest()

    def damaged(self, why: str) -> ModelFilesError:
        return ModelFilesError(f"{self._file} is no GGUF file that exo can read ({why}); fetch it again")

    def _reach(self, count: int) -> int:
        """Move on by so many bytes, and return where they begin."""
        begin = self.position
        end = begin + count
        if end > len(self._read):
            if end > self.size_bytes:
                raise self.damaged(
                    f"its header goes on beyond its {self.size_bytes:,} bytes: it is truncated or damaged"
                )
            if end > HEADER_BYTES_MAX:
                raise self.damaged(f"its header is longer than {HEADER_BYTES_MAX:,} bytes")
            while len(self._read) < end:
                more = self._stream.read(max(_READ_BYTES, end - len(self._read)))
                if not more:
                    raise self.damaged("it became shorter while it was read")
                self._read += more
        self.position = end
        return begin

    def take(self, count: int) -> bytes:
        begin = self._reach(count)
        return bytes(self._read[begin : begin + count])

    def number(self, kind: str) -> Any:
        layout = self.order + kind
        return struct.unpack_from(layout, self._read, self._reach(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise self.damaged(f"a value is of the unknown type {kind}")
        of, count = self.number("I"), self.number("Q")
        if of in _NUMBERS:
            layout = f"{self.order}{count}{_NUMBERS[of]}" if count <= _KEPT_LENGTH_MAX else ""
            begin = self._reach(count * struct.calcsize(self.order + _NUMBERS[of]))
            return list(struct.unpack_from(layout, self._read, begin)) if layout else LENGTH(count)
        if of != _TEXT:
            raise self.damaged(f"an array holds values of the type {of}")
        self._pass_texts(count)
        return LENGTH(count)

    def _pass_texts(self, count: int) -> None:
        """Go past an array of texts: there are as many as a vocabulary has, so this is done in few steps each."""
        if count > _TEXTS_MAX:
            raise self.damaged(f"an array has {count:,} texts")
        length_at = struct.Struct(self.order + "Q").unpack_from
        read, position = self._read, self.position
        for _ in range(count):
            if position + 8 > len(read):
                self.position = position
                self._reach(8)
            position += 8 + length_at(read, position)[0]
        self.position = position
        self._reach(0)

    def tensor(self, name: str) -> Tensor:
        dimensions = self.number("I")
        if not 0 <= dimensions <= _DIMENSIONS_MAX:
            raise self.damaged(f"{name} has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in _BLOCKS:
            raise self.damaged(f"{name} holds numbers of the unknown type {kind}")
        dtype, block_values, block_bytes = _BLOCKS[kind]
        if shape and shape[0] % block_values:
            raise self.damaged(f"rows of {name} have {shape[0]} values, which {dtype} cannot hold")
        size_bytes = math.prod(shape) // block_values * block_bytes
        return Tensor(dtype, tuple(reversed(shape)), (offset, offset + size_bytes))
