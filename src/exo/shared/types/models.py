"""Model cards: the facts about a model that placement and engines need, read from its files."""

import msgspec

from exo.shared.types.ids import ModelId

ENGINES_BY_FORMAT = {"safetensors": ("mlx",)}
"""Engines that can run a format, preferred first. Models of other formats are listed, but not placed."""
TENSOR_ENGINES: frozenset[str] = frozenset()
"""Engines that can run one stage on several GPUs of a node."""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model directory, described. Sizes are those of the files as stored."""

    model_id: ModelId
    name: str
    description: str = ""
    family: str
    """`model_type` of its config.json, such as `qwen3`."""
    format: str = "safetensors"
    """`safetensors` or `gguf`; see `ENGINES_BY_FORMAT`."""
    dtype: str
    """Stored type of most weights: `bfloat16`, `float16`, `float32`, or `4-bit` and the like when quantised."""
    layer_count: int
    hidden_size: int
    vocabulary_size: int
    context_length_max: int
    """Tokens, prompt and answer together."""
    layer_bytes: tuple[int, ...]
    embedding_bytes: int
    head_bytes: int
    """Of an output head of its own plus the final norm; a tied head reuses the embedding's weights."""
    has_tied_head: bool
    kv_bytes_per_token_and_layer: int
    """Of the layer whose cache grows most; `cache_bytes` knows them one by one."""
    fingerprint: str
    """Equal on two nodes exactly when config and weight layout are equal."""
    problem: str | None = None
    """Why it cannot be loaded (a missing or truncated file), or None."""
    layer_active_bytes: tuple[int, ...] = ()
    """Bytes that one token reads of each layer, where that is fewer than all (a mixture of experts); empty: all."""
    layer_kv_bytes_per_token: tuple[int, ...] = ()
    """What the cache of each layer grows by with each token; 0: it does not grow. Empty: alike in all layers."""
    layer_kv_tokens_max: tuple[int, ...] = ()
    """Tokens that the cache of each layer keeps at most (a sliding window); 0: all. Empty: all, in all layers."""
    layer_state_bytes: tuple[int, ...] = ()
    """What each layer keeps of a sequence whatever its length (linear attention, convolutions); empty: nothing."""
    kv_step_tokens: int = 1
    """By how many tokens the engine lets a cache grow at a time."""
    attention_heads: int = 0
    """0: not known, so that no layer is split over GPUs."""
    kv_heads: int = 0
    """As many as there are keys and values for; 0: not known."""

    @property
    def hindrance(self) -> str | None:
        """Why it cannot be run, or None: its files are not whole, or no engine can run their format."""
        if self.problem is not None or self.format in ENGINES_BY_FORMAT:
            return self.problem
        return f"no engine here can run {self.format}; fetch the model as safetensors"

    @property
    def total_bytes(self) -> int:
        """All weights together, each counted once."""
        return sum(self.layer_bytes) + self.embedding_bytes + self.head_bytes

    def cache_bytes(self, layer: int, context_length: int) -> int:
        """Return the most that the cache of one layer takes for one sequence of so many tokens."""
        per_token = self.kv_bytes_per_token_and_layer
        if self.layer_kv_bytes_per_token:
            per_token = self.layer_kv_bytes_per_token[layer]
        tokens = -(-context_length // self.kv_step_tokens) * self.kv_step_tokens
        tokens_max = self.layer_kv_tokens_max[layer] if self.layer_kv_tokens_max else 0
        if tokens_max:
            # A window's cache grows from where the prompt ended, not from a multiple of the step.
            tokens = min(tokens_max, context_length + self.kv_step_tokens - 1)
        return per_token * tokens + (self.layer_state_bytes[layer] if self.layer_state_bytes else 0)
