"""Whether a model directory is whole: read from the files' own headers, before anything trusts them."""

import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

from exo.engines.errors import ModelFilesError

WEIGHTS_PATTERN = "model*.safetensors"
"""The files that engines read; whatever else lies beside them is not the model's."""
HEADER_BYTES_MAX = 100 * 1024 * 1024
_LENGTH_BYTES = 8
_SAMPLES_PER_FILE = 16
_SAMPLE_BYTES = 1024


class Tensor(msgspec.Struct, frozen=True):
    """What a file's header says of a tensor."""

    dtype: str
    """As the format names it, such as `BF16`."""
    shape: tuple[int, ...]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]
    """First byte and the one after the last, counted from the end of the header."""

    @property
    def size_bytes(self) -> int:
        """How long its data is."""
        return self.data_offsets[1] - self.data_offsets[0]


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file that is as long as its header says."""

    path: Path
    size_bytes: int
    data_start: int
    """Where the header ends."""
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class WeightFiles:
    """Where a model's tensors are.

    Attributes:
        files: In the order of their names.
        present: Tensor to the file that has it.
        absent: Tensor to the file that should have it, where it is not there. A stage that needs none of these
            tensors can do without them.
    """

    files: tuple[WeightFile, ...]
    present: dict[str, Path]
    absent: dict[str, Path]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is there, by name."""
        return {name: tensor for file in self.files for name, tensor in file.tensors.items()}

    @property
    def missing_files(self) -> list[Path]:
        """Files that the index names and that are not there, in the order of their names."""
        there = {file.path for file in self.files}
        return sorted({file for file in self.absent.values() if file not in there})


def read_config(model_dir: Path) -> dict[str, Any]:
    """Return the model's config.json.

    Raises:
        ModelFilesError: It is missing or no JSON object.
    """
    return _read_object(model_dir / "config.json")


def check_weights(model_dir: Path) -> WeightFiles:
    """Look at every safetensors file's header and length.

    Raises:
        ModelFilesError: A file is truncated, unreadable or no safetensors file, or there is none; the message names
            it.
    """
    try:
        paths = sorted(model_dir.glob(WEIGHTS_PATTERN))
        others = [] if paths else sorted(model_dir.glob("*.safetensors"))
    except OSError as error:
        raise unreadable(model_dir, error) from error
    if others:
        raise ModelFilesError(
            f"{model_dir} has no {WEIGHTS_PATTERN} file: its weights are called {others[0].name}, where no engine "
            "looks for them; rename them as the model's config.json or index would have it"
        )
    if not paths:
        raise ModelFilesError(f"{model_dir} has no {WEIGHTS_PATTERN} file; fetch the model again")
    files = tuple(_read_header(path) for path in paths)
    present = {name: file.path for file in files for name in file.tensors}
    absent: dict[str, Path] = {}
    index = model_dir / "model.safetensors.index.json"
    if _exists(index):
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelFilesError(f"{index} has no weight_map; fetch the file again")
        for tensor, name in cast(dict[str, Any], weight_map).items():
            if tensor not in present:
                absent[tensor] = model_dir / str(name)
    return WeightFiles(files, present, absent)


def sample_data(file: WeightFile) -> Iterator[bytes]:
    """Give some of a file's data, evenly spread from its first to its last bytes: to tell files apart cheaply.

    Raises:
        ModelFilesError: It cannot be read any more.
    """
    room = max(0, file.size_bytes - file.data_start - _SAMPLE_BYTES)
    places = sorted({room * number // (_SAMPLES_PER_FILE - 1) for number in range(_SAMPLES_PER_FILE)})
    try:
        with file.path.open("rb", buffering=0) as stream:
            for place in places:
                stream.seek(file.data_start + place)
                yield stream.read(_SAMPLE_BYTES)
    except OSError as error:
        raise unreadable(file.path, error) from error


def _read_header(file: Path) -> WeightFile:
    """Read 8 bytes of little-endian length and the JSON that follows; the data it describes comes after it."""
    try:
        size_bytes = size_of(file)
        with file.open("rb") as stream:
            prefix = stream.read(_LENGTH_BYTES)
            header_bytes = int.from_bytes(prefix, "little") if len(prefix) == _LENGTH_BYTES else 0
            if not 2 <= header_bytes <= HEADER_BYTES_MAX:
                raise ModelFilesError(f"{file} is no safetensors file ({size_bytes:,} bytes); fetch it again")
            raw = stream.read(header_bytes)
    except OSError as error:
        raise unreadable(file, error) from error
    data_start = _LENGTH_BYTES + header_bytes
    if len(raw) < header_bytes:
        raise _truncated(file, size_bytes, data_start)
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=Tensor) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFilesError(
            f"{file} is no safetensors file (its header is damaged: {error}); fetch it again"
        ) from error
    backwards = next((name for name, tensor in tensors.items() if tensor.size_bytes < 0), None)
    if backwards is not None:
        raise ModelFilesError(
            f"{file} is no safetensors file ({backwards} ends before it begins); fetch it again"
        )
    require_whole(file, size_bytes, data_start, tensors)
    return WeightFile(file, size_bytes, data_start, tensors)


def require_whole(file: Path, size_bytes: int, data_start: int, tensors: Mapping[str, Tensor]) -> None:
    """Make sure that a file holds all its tensors, each in a place of its own.

    Raises:
        ModelFilesError: It is shorter than they want, or two of them overlap; the message names it.
    """
    wanted_bytes = data_start + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size_bytes < wanted_bytes:
        raise _truncated(file, size_bytes, wanted_bytes)
    end, before = 0, ""
    for (begin, tensor_end), name in sorted((tensor.data_offsets, name) for name, tensor in tensors.items()):
        if begin < end and begin < tensor_end:
            raise ModelFilesError(f"{file} is damaged: {name} lies where {before} does; fetch it again")
        end, before = max(end, tensor_end), name


def _truncated(file: Path, size_bytes: int, wanted_bytes: int) -> ModelFilesError:
    return ModelFilesError(
        f"{file} is truncated: {size_bytes:,} of {wanted_bytes:,} bytes ({wanted_bytes - size_bytes:,} are missing); "
        "fetch it again"
    )


def size_of(file: Path) -> int:
    """Return how long a file is.

    Raises:
        ModelFilesError: It is a directory, or something else that reading would never come back from.
        OSError: It is not there, or may not be looked at.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ModelFilesError(f"{file} is no file; put the model's file there")
    return found.st_size


def unreadable(file: Path, error: OSError) -> ModelFilesError:
    """Return what to say of a file that the system does not let us read."""
    return ModelFilesError(f"{file} cannot be read: {error.strerror or error}; check who may read it")


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as error:
        raise unreadable(file, error) from error


def _read_object(file: Path) -> dict[str, Any]:
    try:
        size_of(file)
        content: object = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ModelFilesError(f"{file} is missing; fetch the model again") from error
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{file} is no JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{file} holds no JSON object; fetch it again")
    return cast(dict[str, Any], content)
