"""Shapes of `GET /models`: every model that any node has on its disk."""

from exo.api.schemas.base import Shape


class ModelOnNodeView(Shape):
    """One node's copy of a model."""

    node_id: str
    name: str
    """The node's name."""
    is_connected: bool
    fingerprint: str
    """Equal on two nodes exactly when configuration and weight layout are equal."""
    problem: str | None
    """Why this copy cannot be loaded, or null."""


class ModelView(Shape):
    model_id: str
    name: str
    description: str
    family: str
    format: str
    dtype: str
    layer_count: int
    hidden_size: int
    vocabulary_size: int
    context_length_max: int
    """Tokens, prompt and answer together."""
    total_bytes: int
    kv_bytes_per_token_and_layer: int
    problem: str | None
    """Why no node can load it, or null."""
    nodes: list[ModelOnNodeView]
    instance_ids: list[str]


class ModelList(Shape):
    models: list[ModelView]
    """Sorted by `model_id`."""
