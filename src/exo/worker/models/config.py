"""What a model's config.json says, under whichever of their usual names, with the defaults that families leave out."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec

from exo.shared.errors import ExoError

T = TypeVar("T")
LAYERS_MAX = 10_000
NUMBER_MAX = 10**9
"""No figure of a model is larger; beyond it, cards could not be sent."""
_KV_BYTES_MAX = 10**8
_FEW = Annotated[int, msgspec.Meta(gt=0, le=LAYERS_MAX)]
_SIZE = Annotated[int, msgspec.Meta(gt=0, le=10**9)]
_EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3 | {"num_attention_heads": 4, "num_key_value_heads": 1},
    "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "gpt_oss": {"sliding_window": 128, "head_dim": 64, "num_experts_per_tok": 4},
    "mixtral": {"num_experts_per_tok": 2},
}
"""What a config.json of the family may leave out, as mlx-lm fills it in."""


class ModelUnreadableError(ExoError):
    """Raised when a directory does not hold a whole model: a file is missing, truncated or not what it should be."""


class _Quantization(msgspec.Struct, frozen=True, kw_only=True):
    bits: int | None = None
    quant_method: str | None = None
    scale_fmt: str | None = None


class _Wrapping(msgspec.Struct, frozen=True, kw_only=True):
    """What stands around the text model's own facts."""

    model_type: str | None = None
    text_config: msgspec.Raw = msgspec.Raw()
    quantization: _Quantization | None = None
    quantization_config: _Quantization | None = None
    torch_dtype: str | None = None
    dtype: str | None = None


class _Required(msgspec.Struct, frozen=True, kw_only=True):
    num_hidden_layers: _FEW
    hidden_size: _SIZE
    model_type: str | None = None


class ModelConfig:
    """A config.json.

    Raises:
        ModelUnreadableError: It is no JSON object, or does not say how many layers there are and how wide they are.
    """

    def __init__(self, text: bytes, file: Path) -> None:
        outer = _decode(text, _Wrapping, file)
        inner = bytes(outer.text_config)
        if inner.startswith(b"{"):
            text = inner
        required = _decode(text, _Required, file)
        self._facts: dict[str, Any] = _decode(text, dict[str, Any], file)
        self._outer = outer
        self._quantization = outer.quantization or outer.quantization_config or _Quantization()
        self.layer_count: int = required.num_hidden_layers
        self.hidden_size: int = required.hidden_size
        self.family = required.model_type or outer.model_type or "unknown"
        self.whole_family = outer.model_type or self.family
        """Of the whole model where that also sees or hears; else the same as `family`."""
        self._defaults = _DEFAULTS.get(self.whole_family) or _DEFAULTS.get(self.family, {})

    def number(self, name: str) -> int | None:
        """Return a positive number, or None where there is no sensible one."""
        for facts in (self._facts, self._defaults):
            value = facts.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= NUMBER_MAX:
                return value
        return None

    def words(self, name: str) -> tuple[str, ...]:
        """Return the words of a list, or the letters of a text; nothing where it is neither."""
        return tuple(str(word) for word in self._several(name))

    def numbers(self, name: str) -> frozenset[int]:
        """Return the numbers of a list; nothing where it is none."""
        return frozenset(one for one in self._several(name) if isinstance(one, int))

    def _several(self, name: str) -> Sequence[object]:
        value: object = self._facts.get(name)
        return cast(Sequence[object], value) if isinstance(value, list | str) else ()

    def part(self, name: str) -> "ModelConfig":
        """Return the facts of an object in it, which may be empty."""
        copy = object.__new__(ModelConfig)
        copy.__dict__.update(self.__dict__)
        value = self._facts.get(name)
        copy._facts, copy._defaults = (value if isinstance(value, dict) else {}), {}
        return copy

    @property
    def is_tied(self) -> bool | None:
        """Whether the head is said to reuse the embedding's weights; None: nothing is said."""
        value = self._facts.get("tie_word_embeddings")
        return value if isinstance(value, bool) else None

    @property
    def bits(self) -> int | None:
        """Bits of the weights as the engine holds them, where they are quantised; None: they are not."""
        if self.expands_fp8:
            return None
        if self._quantization.bits is not None:
            return self._quantization.bits
        return {"mxfp4": 4, "fp8": 8, "mxfp8": 8}.get(self._quantization.quant_method or "")

    @property
    def expands_fp8(self) -> bool:
        """Whether the engine makes 16 bits of the file's 8: mlx-lm keeps such weights only in its own format."""
        return self._quantization.quant_method == "fp8" and self._quantization.scale_fmt != "ue8m0"

    @property
    def stated_dtype(self) -> str | None:
        """The type of the values, where it is said."""
        return self._outer.torch_dtype or self._outer.dtype

    @property
    def experts_per_token(self) -> int | None:
        """How many experts of a layer work on a token; None: it is no mixture of experts."""
        if self.expert_count is None:
            return None
        return next((count for name in _EXPERTS_PER_TOKEN if (count := self._most(name)) is not None), None)

    @property
    def expert_count(self) -> int | None:
        """Experts of a layer, those that work on every token not counted; None: it is no mixture of experts."""
        return next((count for name in _EXPERTS if (count := self._most(name)) is not None), None)

    def _most(self, name: str) -> int | None:
        """Return a number, or the largest of a list that has one for each layer."""
        return max(self.numbers(name), default=None) or self.number(name)


def sensible_kv_bytes(figures: Iterable[int], file: Path) -> tuple[int, ...]:
    """Return what caches grow by, as it is.

    Raises:
        ModelUnreadableError: It is so much that the file cannot mean it.
    """
    found = tuple(figures)
    if max(found) > _KV_BYTES_MAX:
        raise ModelUnreadableError(
            f"{file} speaks of {max(found):,} bytes of cache for a token and layer, which no model has; fetch it again"
        )
    return found


def _decode(text: bytes, kind: type[T], file: Path) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelUnreadableError(f"{file} is not what exo can read: {error}") from error
