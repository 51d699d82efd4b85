"""Whether a model directory is whole: read from the files' own headers, before an engine trusts them."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from exo.engines.errors import ModelFilesError

_HEADER_BYTES_MAX = 100 * 1024 * 1024
_LENGTH_BYTES = 8


def read_config(model_dir: Path) -> dict[str, Any]:
    """Return the model's config.json.

    Raises:
        ModelFilesError: It is missing or no JSON object.
    """
    return _read_object(model_dir / "config.json")


@dataclass(frozen=True)
class WeightFiles:
    """Where a model's tensors are.

    Attributes:
        present: Tensor to the file that has it.
        absent: Tensor to the file that should have it, for files that are not there. A stage that needs none of
            these tensors can do without them.
    """

    present: dict[str, Path]
    absent: dict[str, Path]


def check_weights(model_dir: Path) -> WeightFiles:
    """Look at every safetensors file's header and length.

    Raises:
        ModelFilesError: A file is truncated or no safetensors file, or there is none; the message names it.
    """
    files = sorted(model_dir.glob("model*.safetensors"))
    if not files:
        raise ModelFilesError(f"{model_dir} has no model*.safetensors file; fetch the model again")
    present = {tensor: file for file in files for tensor in _tensors(file)}
    absent: dict[str, Path] = {}
    index = model_dir / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelFilesError(f"{index} has no weight_map; fetch the file again")
        for tensor, name in cast(dict[str, str], weight_map).items():
            if tensor not in present:
                absent[tensor] = model_dir / str(name)
    return WeightFiles(present, absent)


def _tensors(file: Path) -> list[str]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(_LENGTH_BYTES)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == _LENGTH_BYTES else 0
            if not 2 <= header_bytes <= _HEADER_BYTES_MAX:
                raise ModelFilesError(f"{file} is no safetensors file; fetch it again")
            raw = stream.read(header_bytes)
    except OSError as error:
        raise ModelFilesError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(raw) < header_bytes:
        raise _truncated(file, size, _LENGTH_BYTES + header_bytes)
    try:
        header = cast(dict[str, Any], json.loads(raw))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelFilesError(
            f"{file} is no safetensors file (its header is damaged); fetch it again"
        ) from error
    wanted = _LENGTH_BYTES + header_bytes + end
    if size < wanted:
        raise _truncated(file, size, wanted)
    return list(entries)


def _truncated(file: Path, size: int, wanted: int) -> ModelFilesError:
    return ModelFilesError(
        f"{file} is truncated: it has {size:,} bytes of at least {wanted:,} ({wanted - size:,} are missing); "
        "fetch it again"
    )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content: object = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ModelFilesError(f"{file} is missing; fetch the model again") from error
    except OSError as error:
        raise ModelFilesError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelFilesError(f"{file} is no JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{file} holds no JSON object; fetch it again")
    return cast(dict[str, Any], content)
