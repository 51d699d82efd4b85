"""What one decoding step of a stage reads of a model: the same bytes for who measures steps and who predicts them."""

import msgspec

from exo.shared.types.models import ModelCard


class StepReads(msgspec.Struct, frozen=True, kw_only=True):
    """Of a step with one position of one sequence."""

    layers: float
    """With the output head on the last stage, as many layers as it has bytes for."""
    weight_bytes: int
    cache_bytes: int
    """At the position that was asked for."""

    @property
    def total_bytes(self) -> int:
        """All that is read."""
        return self.weight_bytes + self.cache_bytes


def step_reads(model: ModelCard, start_layer: int, end_layer: int, position: int) -> StepReads:
    """Return what a stage with layers `start_layer` to `end_layer` (exclusive) reads.

    Args:
        model: Whose layers they are.
        start_layer: The first.
        end_layer: Behind the last; there is one at least.
        position: Tokens that are in the cache.
    """
    # Of a mixture of experts a token reads some only.
    reads = model.layer_active_bytes or model.layer_bytes
    head = model.head_bytes + (model.embedding_bytes if model.has_tied_head else 0)
    if end_layer != model.layer_count:
        head = 0
    mean = sum(reads) / max(1, len(reads))
    return StepReads(
        layers=end_layer - start_layer + (head / mean if mean > 0 else 0.0),
        weight_bytes=sum(reads[start_layer:end_layer]) + head,
        cache_bytes=sum(model.cache_bytes(layer, position) for layer in range(start_layer, end_layer)),
    )
