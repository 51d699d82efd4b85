"""Reads a model directory: its facts, and whether its files are whole. Reads headers and samples, not weights."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from exo.engines.errors import ModelFilesError
from exo.engines.model_files import Tensor, WeightFile, check_weights, sample_data, size_of
from exo.shared.types.ids import ModelId
from exo.shared.types.models import ModelCard
from exo.worker.models.caches import KV_STEP_TOKENS, layer_caches
from exo.worker.models.config import ModelConfig, ModelUnreadableError, sensible_kv_bytes
from exo.worker.models.layout import lay_out

_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_BYTES_PER_VALUE = {"bfloat16": 2, "float16": 2, "float32": 4}
_CONTEXT_LENGTH_UNKNOWN = 2048


def read_card(model_id: ModelId, directory: Path) -> ModelCard:
    """Describe the model in `directory` (config.json and *.safetensors).

    Raises:
        ModelUnreadableError: It cannot be described at all; the message names the file and what is wrong.
    """
    config_file = directory / "config.json"
    raw_config = _read(config_file)
    config = ModelConfig(raw_config, config_file)
    problem: str | None = None
    tensors: dict[str, Tensor] = {}
    fingerprint = ""
    try:
        weights = check_weights(directory)
        if weights.missing_files:
            name = weights.missing_files[0].name
            raise ModelFilesError(f"{name} is missing in {directory}; download the model again")
        tensors = weights.tensors
        fingerprint = fingerprint_of(raw_config, weights.files)
    except ModelFilesError as error:
        problem = error.message
    if problem is None and not any(is_file(directory / n) for n in ("tokenizer.json", "tokenizer.model")):
        problem = f"{directory} has no tokenizer.json; copy the model's tokenizer files there"
    layout = lay_out(
        tensors,
        layer_count=config.layer_count,
        experts_per_token=config.experts_per_token,
        expert_count=config.expert_count,
        expands_fp8=config.expands_fp8,
    )
    if problem is None and not all(layout.layer_bytes):
        problem = (
            f"the weights in {directory} have no layer {layout.layer_bytes.index(0)}, "
            f"but config.json says {config.layer_count} layers"
        )
    dtype = _dtype(config, tensors)
    caches = layer_caches(
        config,
        kv_values=layout.layer_kv_values,
        bytes_per_value=(per_value := _BYTES_PER_VALUE.get(dtype, 2)),
    )
    kv_bytes = sensible_kv_bytes((one.values_per_token * per_value for one in caches), config_file)
    # A state is no larger than what a step of a growing cache may be.
    sensible_kv_bytes((one.state_bytes // KV_STEP_TOKENS for one in caches), config_file)
    name, description = read_me(directory, model_id)
    return ModelCard(
        model_id=model_id,
        name=name,
        description=description,
        family=config.family,
        dtype=dtype if config.bits is None else f"{config.bits}-bit",
        layer_count=config.layer_count,
        hidden_size=config.hidden_size,
        vocabulary_size=config.number("vocab_size") or layout.vocabulary_size or 0,
        context_length_max=config.number("max_position_embeddings") or _CONTEXT_LENGTH_UNKNOWN,
        layer_bytes=layout.layer_bytes,
        embedding_bytes=layout.embedding_bytes,
        head_bytes=layout.head_bytes,
        has_tied_head=not layout.has_own_head if config.is_tied is None else config.is_tied,
        kv_bytes_per_token_and_layer=max(kv_bytes),
        fingerprint=fingerprint,
        problem=problem,
        layer_active_bytes=layout.layer_active_bytes,
        layer_kv_bytes_per_token=kv_bytes if len(set(kv_bytes)) > 1 else (),
        layer_kv_tokens_max=_unless_none(one.tokens_max for one in caches),
        layer_state_bytes=_unless_none(one.state_bytes for one in caches),
        kv_step_tokens=KV_STEP_TOKENS,
        attention_heads=(heads := config.number("num_attention_heads") or 0),
        kv_heads=config.number("num_key_value_heads") or heads,
    )


def _unless_none(figures: Iterable[int]) -> tuple[int, ...]:
    told = tuple(figures)
    return told if any(told) else ()


def is_file(file: Path) -> bool:
    """Say whether there is such a file; a directory that may not be looked into has none."""
    try:
        return file.is_file()
    except OSError:
        return False


def _read(file: Path) -> bytes:
    try:
        size_of(file)
        return file.read_bytes()
    except FileNotFoundError:
        raise ModelUnreadableError(
            f"{file.name} is missing in {file.parent}; download the model again"
        ) from None
    except OSError as error:
        raise ModelUnreadableError(f"{file} cannot be read: {error.strerror or error}") from error
    except ModelFilesError as error:
        raise ModelUnreadableError(error.message) from error


def _dtype(config: ModelConfig, tensors: dict[str, Tensor]) -> str:
    """The type that activations and KV values have: that of the unquantised weights."""
    bytes_by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        if tensor.dtype in _DTYPE_NAMES:
            bytes_by_dtype[tensor.dtype] = bytes_by_dtype.get(tensor.dtype, 0) + tensor.size_bytes
    if bytes_by_dtype:
        return _DTYPE_NAMES[max(bytes_by_dtype, key=lambda key: (bytes_by_dtype[key], key))]
    return config.stated_dtype or "unknown"


def fingerprint_of(raw_config: bytes, files: Sequence[WeightFile]) -> str:
    """Tell models apart whose files are laid out alike, such as two fine-tunes of one: by samples of the data."""
    total = hashlib.sha256(raw_config)
    for file in files:
        total.update(msgspec.json.encode((file.path.name, file.size_bytes, sorted(file.tensors.items()))))
        for sample in sample_data(file):
            total.update(sample)
    return total.hexdigest()[:16]


def read_me(directory: Path, model_id: ModelId) -> tuple[str, str]:
    """(title, first paragraph) of the model's README.md; its id and nothing where there is none."""
    try:
        size_of(directory / "README.md")
        text = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError, ModelFilesError):
        return model_id, ""
    if text.startswith("---"):
        text = text.partition("\n---")[2].lstrip("-")
    title = next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), str(model_id))
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    description = next((part for part in paragraphs if part and part[0] not in "#-|!`[<"), "")
    return title, description[:300]
