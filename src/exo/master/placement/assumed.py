"""What the cost model takes for granted until it is measured."""

from exo.master.placement.ladder.cost_model import Assumptions
from exo.master.placement.problem import RESERVE_BYTES

ASSUMED = Assumptions(memory_share=1.0, reserve_bytes=RESERVE_BYTES, activation_values_per_hidden=0)
"""The ladder's starting values, with memory as the evaluator counts it."""
