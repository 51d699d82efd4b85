"""Reads a model directory: its facts, and whether its files are whole. Reads headers and samples, not weights."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from exo.engines.errors import ModelFilesError
from exo.engines.model_files import Tensor, WeightFile, check_weights, sample_data
from exo.shared.errors import ExoError
from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard

T = TypeVar("T")
_Positive = Annotated[int, msgspec.Meta(gt=0)]
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_BYTES_PER_VALUE = {"bfloat16": 2, "float16": 2, "float32": 4}
_CONTEXT_LENGTH_UNKNOWN = 2048


class ModelUnreadableError(ExoError):
    """Raised when a directory does not hold a whole model: a file is missing, truncated or not what it should be."""


class _TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a config.json that every family states under the same names."""

    num_hidden_layers: _Positive
    hidden_size: _Positive
    num_attention_heads: _Positive
    vocab_size: _Positive
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool | None = None
    model_type: str | None = None


class _Quantization(msgspec.Struct, frozen=True, kw_only=True):
    bits: int | None = None


class _Wrapping(msgspec.Struct, frozen=True, kw_only=True):
    """What stands around the text model's own facts."""

    model_type: str | None = None
    text_config: msgspec.Raw = msgspec.Raw()
    quantization: _Quantization | None = None
    quantization_config: _Quantization | None = None
    torch_dtype: str | None = None
    dtype: str | None = None


def read_card(model_id: ModelId, directory: Path) -> ModelCard:
    """Describe the model in `directory` (config.json and *.safetensors).

    Raises:
        ModelUnreadableError: It cannot be described at all; the message names the file and what is wrong.
    """
    config_file = directory / "config.json"
    raw_config = _read(config_file)
    config = _decode(raw_config, _Wrapping, config_file)
    inner = bytes(config.text_config)
    text = _decode(inner if inner.startswith(b"{") else raw_config, _TextConfig, config_file)
    problem: str | None = None
    tensors: dict[str, Tensor] = {}
    fingerprint = ""
    try:
        weights = check_weights(directory)
        if weights.missing_files:
            name = weights.missing_files[0].name
            raise ModelFilesError(f"{name} is missing in {directory}; download the model again")
        tensors = weights.tensors
        fingerprint = _fingerprint(raw_config, weights.files)
    except ModelFilesError as error:
        problem = error.message
    if problem is None and not any(is_file(directory / n) for n in ("tokenizer.json", "tokenizer.model")):
        problem = f"{directory} has no tokenizer.json; copy the model's tokenizer files there"
    layer_bytes = [0] * text.num_hidden_layers
    embedding_bytes = head_bytes = 0
    has_own_head = False
    for name, tensor in tensors.items():
        match = _LAYER.search(name)
        if match is not None and int(match[1]) < text.num_hidden_layers:
            layer_bytes[int(match[1])] += tensor.size_bytes
        elif "embed" in name or "wte" in name:
            embedding_bytes += tensor.size_bytes
        else:
            head_bytes += tensor.size_bytes
            has_own_head = has_own_head or "lm_head" in name
    if problem is None and not all(layer_bytes):
        problem = (
            f"the weights in {directory} have no layer {layer_bytes.index(0)}, "
            f"but config.json says {text.num_hidden_layers} layers"
        )
    dtype = _dtype(config, tensors)
    quantization = config.quantization or config.quantization_config
    bits = quantization.bits if quantization is not None else None
    kv_heads = text.num_key_value_heads or text.num_attention_heads
    head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
    name, description = _read_me(directory, model_id)
    return ModelCard(
        model_id=model_id,
        name=name,
        description=description,
        family=text.model_type or config.model_type or "unknown",
        dtype=dtype if bits is None else f"{bits}-bit",
        layer_count=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocabulary_size=text.vocab_size,
        context_length_max=text.max_position_embeddings or _CONTEXT_LENGTH_UNKNOWN,
        layer_bytes=tuple(layer_bytes),
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        has_tied_head=not has_own_head if text.tie_word_embeddings is None else text.tie_word_embeddings,
        kv_bytes_per_token_and_layer=2 * kv_heads * head_dim * _BYTES_PER_VALUE.get(dtype, 2),
        fingerprint=fingerprint,
        problem=problem,
    )


def is_file(file: Path) -> bool:
    """Say whether there is such a file; a directory that may not be looked into has none."""
    try:
        return file.is_file()
    except OSError:
        return False


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ModelUnreadableError(
            f"{file.name} is missing in {file.parent}; download the model again"
        ) from None
    except OSError as error:
        raise ModelUnreadableError(f"{file} cannot be read: {error.strerror or error}") from error


def _decode(text: bytes, kind: type[T], file: Path) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelUnreadableError(f"{file} is not what exo can read: {error}") from error


def _dtype(config: _Wrapping, tensors: dict[str, Tensor]) -> str:
    """The type that activations and KV values have: that of the unquantised weights."""
    bytes_by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.dtype in _DTYPE_NAMES:
            bytes_by_dtype[tensor.dtype] = bytes_by_dtype.get(tensor.dtype, 0) + tensor.size_bytes
    if bytes_by_dtype:
        return _DTYPE_NAMES[max(bytes_by_dtype, key=lambda key: (bytes_by_dtype[key], key))]
    return config.torch_dtype or config.dtype or "unknown"


def _fingerprint(raw_config: bytes, files: Sequence[WeightFile]) -> str:
    """Tell models apart whose files are laid out alike, such as two fine-tunes of one: by samples of the data."""
    total = hashlib.sha256(raw_config)
    for file in files:
        total.update(msgspec.json.encode((file.path.name, file.size_bytes, sorted(file.tensors.items()))))
        for sample in sample_data(file):
            total.update(sample)
    return total.hexdigest()[:16]


def _read_me(directory: Path, model_id: ModelId) -> tuple[str, str]:
    """(title, first paragraph) of the model's README.md; its id and nothing where there is none."""
    try:
        text = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return model_id, ""
    if text.startswith("---"):
        text = text.partition("\n---")[2].lstrip("-")
    title = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), str(model_id))
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    description = next((part for part in paragraphs if part and part[0] not in "#-|!`[<"), "")
    return title, description[:300]
