"""Model cards: the facts about a model that placement and engines need, read from its files."""

import msgspec

from exo.shared.types.ids import ModelId


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model directory, described. Sizes are those of the files as stored."""

    model_id: ModelId
    name: str
    description: str = ""
    family: str
    """`model_type` of its config.json, such as `qwen3`."""
    format: str = "safetensors"
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
    fingerprint: str
    """Equal on two nodes exactly when config and weight layout are equal."""
    problem: str | None = None
    """Why it cannot be loaded (a missing or truncated file), or None."""
    layer_active_bytes: tuple[int, ...] = ()
    """Bytes that one token reads of each layer, where that is fewer than all (a mixture of experts); empty: all."""

    @property
    def total_bytes(self) -> int:
        """All weights together, each counted once."""
        return sum(self.layer_bytes) + self.embedding_bytes + self.head_bytes
