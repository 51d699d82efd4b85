"""From the tensors' names to what layers, embedding and head weigh, and what one token reads of them. Pure."""

import re
from collections.abc import Mapping

import msgspec

from exo.engines.model_files import Tensor

_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)??(?:layers|h|blocks|blk))\.(?P<number>\d+)\.")
_OTHER_PARTS = re.compile(
    r"(?:^|\.)(?:vision_\w+|visual|audio_\w+|image_newline|multi_modal_projector|mm_projector|connector"
    r"|embed_vision|embed_audio|mtp)(?:\.|$)"
)
"""Parts of models that see, hear, or guess ahead. The engines leave them unread."""
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.")
_EMBEDDING = re.compile(r"emb|wte")
_ONE_EXPERT = re.compile(r"\.experts\.(\d+)\.|\.ffn_(?:gate|up|down)\.(\d+)\.")
_ALL_EXPERTS = re.compile(
    r"\.(?:experts|switch_mlp)\.|\.block_sparse_moe\.(?:input|output)_linear\.|\.moe\.(?:gate|up|down)_proj\."
    r"|\.ffn_\w+_(?:ch)?exps\."
)
_KEYS = re.compile(r"attn\.k_proj\.weight$")
_VALUES = re.compile(r"attn\.v_proj\.weight$")


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A model's tensors by where they belong. Sizes are what the engine holds in memory."""

    layer_bytes: tuple[int, ...]
    layer_active_bytes: tuple[int, ...]
    """Bytes that one token reads of each layer; empty where that is all, and where it is not known."""
    layer_kv_values: tuple[int | None, ...]
    """Values of keys and values together that each layer computes for a token; None: its tensors do not tell."""
    embedding_bytes: int
    head_bytes: int
    has_own_head: bool
    vocabulary_size: int | None
    """Rows of the embedding; None: there is none."""


def lay_out(
    tensors: Mapping[str, Tensor],
    *,
    layer_count: int,
    experts_per_token: int | None = None,
    expert_count: int | None = None,
    expands_fp8: bool = False,
) -> Layout:
    """Sort a model's tensors into layers, embedding and head; those that no engine here reads are left out.

    Args:
        tensors: By name, as the files have them.
        layer_count: Layers beyond it (those that guess ahead) are left out.
        experts_per_token: How many experts of a layer work on a token; None: it is no mixture of experts.
        expert_count: How many a layer has, where that is said: tensors that hold them all must agree.
        expands_fp8: The engine turns values of 8 bits into such of 16 when it loads them.
    """
    layers = [_Layer() for _ in range(layer_count)]
    embedding_bytes = head_bytes = 0
    has_own_head = False
    vocabulary_size: int | None = None
    own_stack = _own_stack(tensors, layer_count)
    for name, tensor in tensors.items():
        if _OTHER_PARTS.search(name):
            continue
        size_bytes = tensor.size_bytes * (2 if expands_fp8 and tensor.dtype.startswith("F8_") else 1)
        match = _LAYER.match(name)
        if match is not None:
            if match["stack"] == own_stack and int(match["number"]) < layer_count:
                layers[int(match["number"])].add(name, tensor, size_bytes)
        elif _HEAD.search(name):
            head_bytes += size_bytes
            has_own_head = True
        elif _EMBEDDING.search(name):
            embedding_bytes += size_bytes
            if vocabulary_size is None and name.endswith(".weight"):
                vocabulary_size = rows_of(tensor)
        else:
            head_bytes += size_bytes
    has_experts = experts_per_token is not None and any(layer.expert_bytes for layer in layers)
    return Layout(
        layer_bytes=tuple(layer.shared_bytes + layer.expert_bytes for layer in layers),
        layer_active_bytes=tuple(layer.active_bytes(experts_per_token or 0, expert_count) for layer in layers)
        if has_experts
        else (),
        layer_kv_values=tuple(layer.kv_values for layer in layers),
        embedding_bytes=embedding_bytes,
        head_bytes=head_bytes,
        has_own_head=has_own_head,
        vocabulary_size=vocabulary_size,
    )


def rows_of(tensor: Tensor) -> int | None:
    """Return the rows of a matrix; None where it has fewer bytes than rows, so that its header makes no sense."""
    return tensor.shape[0] if tensor.shape and 0 < tensor.shape[0] <= tensor.size_bytes else None


class _Layer:
    def __init__(self) -> None:
        self.shared_bytes = 0
        self.expert_bytes = 0
        self._numbers: set[int] = set()
        self._stacked_counts: set[int] = set()
        self._key_values: int | None = None
        self._value_values: int | None = None

    def add(self, name: str, tensor: Tensor, size_bytes: int) -> None:
        one = _ONE_EXPERT.search(name)
        if one is not None:
            self._numbers.add(int(one[1] or one[2]))
        elif _ALL_EXPERTS.search(name) and tensor.shape:
            self._stacked_counts.add(tensor.shape[0])
        else:
            self.shared_bytes += size_bytes
            # Quantising packs the columns; the rows are those of the matrix that it stands for.
            if _KEYS.search(name):
                self._key_values = rows_of(tensor)
            elif _VALUES.search(name):
                self._value_values = rows_of(tensor)
            return
        self.expert_bytes += size_bytes

    @property
    def kv_values(self) -> int | None:
        if self._key_values is None:
            return None
        # Without a matrix for values, the keys are the values too, and are kept twice.
        return self._key_values + (self._key_values if self._value_values is None else self._value_values)

    def active_bytes(self, experts_per_token: int, expert_count: int | None) -> int:
        counts = set(self._stacked_counts)
        if self._numbers:
            counts.add(len(self._numbers))
        count = next(iter(counts), 0)
        if len(counts) != 1 or count == 0 or expert_count not in (None, count):
            return self.shared_bytes + self.expert_bytes  # Not laid out in a way that is understood.
        working = min(experts_per_token, count)
        return self.shared_bytes + -(-self.expert_bytes * working // count)


def _own_stack(tensors: Mapping[str, Tensor], layer_count: int) -> str | None:
    """Return what the names of the language model's layers begin with: of all stacks the one with most bytes.

    A model that sees or hears has stacks of layers for that too, which look the same but for what goes before.
    """
    size_bytes: dict[str, int] = {}
    numbers: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match is None or _OTHER_PARTS.search(name):
            continue
        stack = match["stack"]
        size_bytes[stack] = size_bytes.get(stack, 0) + tensor.size_bytes
        numbers.setdefault(stack, set()).add(int(match["number"]))
    wanted = set(range(layer_count))
    return max(
        size_bytes, key=lambda stack: (len(numbers[stack] & wanted), size_bytes[stack], stack), default=None
    )
