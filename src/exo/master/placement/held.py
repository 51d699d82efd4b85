"""What a stage's process holds beside weights and caches: itself, and the values of the step that it runs."""

from exo.engines.calibration import PREFILL_TOKENS_MAX
from exo.shared.types.models import ModelCard

RESERVE_BYTES = 128 * 1024 * 1024
"""Taken by the process itself: interpreter, libraries, buffers."""
VALUES_PER_HIDDEN = 24
"""Values that a step of a prompt holds at once, for each of its positions and each hidden dimension: input, norms,
query, key, value, both sides of the feed-forward part and what is added up. Measured with MLX on a processor: 20.7 for
a llama with a feed-forward part of 3.5 times its width, whatever the number of layers. The scores of attention are not
counted: GPUs never hold them as a whole, and processors that would are given prompts in smaller steps."""
_VALUE_BYTES = {"float32": 4, "float64": 8}


def activation_bytes(model: ModelCard) -> int:
    """Return what a step over `PREFILL_TOKENS_MAX` positions of a prompt holds; stages run one sequence at a time."""
    value_bytes = _VALUE_BYTES.get(model.dtype, 2)
    return PREFILL_TOKENS_MAX * VALUES_PER_HIDDEN * model.hidden_size * value_bytes


def process_bytes(model: ModelCard) -> int:
    """Return what every stage holds, whatever its layers."""
    return RESERVE_BYTES + activation_bytes(model)
