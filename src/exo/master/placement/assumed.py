"""What the cost model takes for granted until it is measured; memory aside, which is counted as the evaluator does."""

from msgspec.structs import replace

from exo.master.placement.held import process_bytes
from exo.master.placement.ladder.cost_model import Assumptions
from exo.shared.types.models import ModelCard

ASSUMED = Assumptions(memory_share=1.0, reserve_bytes=0, activation_values_per_hidden=0)
"""The ladder's starting values. `assumed_for` knows what a stage holds beside its layers."""


def assumed_for(model: ModelCard) -> Assumptions:
    """Return the starting values for a model."""
    return replace(ASSUMED, reserve_bytes=process_bytes(model))
