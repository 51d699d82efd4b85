"""Model directories whose tensors have names, types and shapes, but only zeros: for tests that read headers."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TensorShapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name to (type as safetensors names it, shape)."""

BITS = {"F64": 64, "F32": 32, "U32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "U8": 8, "I8": 8}


def size_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how long a tensor's data is."""
    return BITS[dtype] // 8 * math.prod(shape)


def write_safetensors(file: Path, tensors: TensorShapes) -> int:
    """Write a file of zeros, sparse where the file system can, and return the bytes of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + size_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)
    return offset


def write_model(directory: Path, config: Mapping[str, Any], *files: TensorShapes) -> Path:
    """Write config.json, a tokenizer and the tensors in as many files, with an index where there are several."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(config)))
    (directory / "tokenizer.json").write_text("{}")
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files, start=1):
        name = (
            "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        write_safetensors(directory / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory
