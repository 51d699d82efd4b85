"""What one decoding step of a stage reads of a model: the same bytes for who measures steps and who predicts them."""

import msgspec

from exo.shared.types.models import ModelCard


class StepReads(msgspec.Struct, frozen=True, kw_only=True):
    """Of a step with one position of one sequence."""

    layers: float
    """With the output head on the last stage, as many layers as it has bytes for."""
    weight_bytes: int
    kv_bytes_per_position: int
    """Of all of its layers, for each position that is in the cache."""

    def at(self, position: float) -> float:
        """Return all bytes that a step reads with so many positions in the cache."""
        return self.weight_bytes + position * self.kv_bytes_per_position


def layer_reads(model: ModelCard) -> tuple[int, ...]:
    """Return the bytes that one token reads of each layer's weights: not all of them in a mixture of experts."""
    return model.layer_active_bytes or model.layer_bytes


def head_reads(model: ModelCard) -> int:
    """Return the bytes that one token reads of the output head; a tied one reads the embedding."""
    return model.head_bytes + (model.embedding_bytes if model.has_tied_head else 0)


def step_reads(model: ModelCard, start_layer: int, end_layer: int) -> StepReads:
    """Return what a stage with layers `start_layer` to `end_layer` (exclusive) reads. It has one layer at least."""
    reads = layer_reads(model)
    head = head_reads(model) if end_layer == model.layer_count else 0
    mean = sum(reads) / max(1, len(reads))
    count = end_layer - start_layer
    return StepReads(
        layers=count + (head / mean if mean > 0 else 0.0),
        weight_bytes=sum(reads[start_layer:end_layer]) + head,
        kv_bytes_per_position=count * model.kv_bytes_per_token_and_layer,
    )
