"""Says which model cards and requests no plan can be made for, whatever the cluster: figures missing or absurd."""

from collections.abc import Iterator, Sequence

from exo.shared.types.commands import Refusal
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.models import ModelCard

SIZE_BYTES_MAX = 2**56
"""Far beyond every model; sums of so many bytes are still exact everywhere."""
_MENDING = "convert or download it again"


def refuse_unsound(model: ModelCard, request: PlacementRequest) -> Refusal | None:
    """Return the refusal of a model or request whose figures cannot be, or None."""
    wrong = next(_of_model(model), None)
    if wrong is not None:
        return Refusal(
            status=422,
            code="model_unusable",
            message=f"{model.model_id} cannot be placed: its card {wrong}; {_MENDING}.",
        )
    wrong = next(_of_request(request), None)
    return None if wrong is None else Refusal(status=422, code="bad_request", message=wrong)


def _of_model(model: ModelCard) -> Iterator[str]:
    if model.layer_count < 1:
        yield f"tells of {model.layer_count} layers"
    if len(model.layer_bytes) != model.layer_count:
        yield f"tells the sizes of {len(model.layer_bytes)} layers of {model.layer_count}"
    for number, size in enumerate(model.layer_bytes):
        if not 1 <= size <= SIZE_BYTES_MAX:
            yield f"tells of {size} bytes for layer {number}"
            break
    per_layer: Sequence[tuple[str, tuple[int, ...]]] = (
        ("active bytes", model.layer_active_bytes),
        ("cache bytes per token", model.layer_kv_bytes_per_token),
        ("cached tokens", model.layer_kv_tokens_max),
        ("state bytes", model.layer_state_bytes),
    )
    for name, values in per_layer:
        if values and len(values) != model.layer_count:
            yield f"tells the {name} of {len(values)} layers of {model.layer_count}"
        if values and not all(0 <= value <= SIZE_BYTES_MAX for value in values):
            yield f"tells of {min(values)} to {max(values)} {name} of a layer"
    for name, value in (
        ("embedding bytes", model.embedding_bytes),
        ("head bytes", model.head_bytes),
        ("cache bytes per token and layer", model.kv_bytes_per_token_and_layer),
        ("values of hidden size", model.hidden_size),
    ):
        if not 0 <= value <= SIZE_BYTES_MAX:
            yield f"tells of {value} {name}"
    if model.kv_step_tokens < 1:
        yield f"tells that its cache grows by {model.kv_step_tokens} tokens"


def _of_request(request: PlacementRequest) -> Iterator[str]:
    for name, value in (
        ("context_length", request.context_length),
        ("concurrency", request.concurrency),
        ("min_nodes", request.min_nodes),
        ("min_zones", request.min_zones),
    ):
        if value is not None and value < 1:
            yield f"{name} is {value}; give at least 1."
