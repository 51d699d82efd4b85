"""What stands in the way of a placement: the one wish or instance without which there would be a plan. Pure."""

from collections.abc import Callable, Iterator, Mapping

from msgspec.structs import replace

from exo.master.placement.place import ShouldStop, find_model, place_instance
from exo.master.placement.problem import context_length_of
from exo.master.placement.words import gibibytes
from exo.master.recovery_ladder import without as freed_of
from exo.shared.node_names import distinct_names
from exo.shared.types.commands import Refusal, Remedy
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.state import State
from exo.shared.types.what_if import Change

_EACH_MAX = 8
"""So many of the things that one list names are tried one by one."""
_CONTEXT_LENGTH_MIN = 256
"""Shorter contexts are no remedy."""

Fits = Callable[[State, PlacementRequest], bool]


def remedy_for(
    state: State,
    request: PlacementRequest,
    change: Change,
    *,
    should_stop: ShouldStop,
    has_constraint_layer: bool = True,
    names: Mapping[str, str] | None = None,
) -> Remedy | None:
    """Return the first single thing to give up with which the request can be placed, or None where there is none.

    Wishes are tried before instances that run. Each try is a solve of its own, while there is time.

    Args:
        state: The cluster as it is, or as it would be with the change.
        request: What was refused.
        change: How the state differs from the cluster as it is.
        should_stop: Asked between the tries and within them.
        has_constraint_layer: As in `place_instance`.
        names: What people call nodes and devices, by their ids; None: those of the state.
    """
    model = find_model(state, request.model_id)
    if isinstance(model, Refusal):
        return None

    known: set[PlacementRequest] = set()

    def fits(on: State, wish: PlacementRequest) -> bool:
        if on is state and wish in known:
            return True
        if should_stop():
            return False
        answer = place_instance(on, wish, should_stop=should_stop, has_constraint_layer=has_constraint_layer)
        if isinstance(answer, Plan) and on is state:
            known.add(wish)
        return isinstance(answer, Plan)

    for words, wish in _wishes(state, model, request, fits, called(state) if names is None else names):
        if fits(state, wish):
            return Remedy(words=words, request=wish, without=change.without, instead=change.instead)
    # Of those that take most the smallest that helps: each try is a solve.
    by_size = sorted(state.instances.items(), key=lambda one: (_held_bytes(one[1].plan), one[0]))
    for instance_id, instance in by_size[-_EACH_MAX:]:
        if fits(freed_of(state, instance_id), request):
            freed = gibibytes(_held_bytes(instance.plan))
            return Remedy(
                words=f"Stop {instance.model.model_id} ({instance_id}), which takes {freed}",
                request=request,
                without=change.without,
                instead=(*change.instead, instance_id),
            )
    return None


def _wishes(
    state: State, model: ModelCard, request: PlacementRequest, fits: Fits, names: Mapping[str, str]
) -> Iterator[tuple[str, PlacementRequest]]:
    """Yield the request with one wish less, in the order in which people are likely to give them up."""
    if request.layer_split:
        yield "Do not prescribe the layers of each stage", replace(request, layer_split=())
    if request.sharding != "auto":
        yield f"Do not ask for {request.sharding} sharding", replace(request, sharding="auto")
    if request.engine != "auto":
        yield f"Do not ask for the engine {request.engine}", replace(request, engine="auto")
    for one in request.exclude[:_EACH_MAX]:
        left = tuple(name for name in request.exclude if name != one)
        yield f"Let {names.get(one, one)} take part", replace(request, exclude=left)
    for one in request.must_use[:_EACH_MAX]:
        left = tuple(name for name in request.must_use if name != one)
        yield f"Do not insist on {names.get(one, one)}", replace(request, must_use=left)
    for one in request.apart_from[:_EACH_MAX]:
        left = tuple(name for name in request.apart_from if name != one)
        yield f"Do not keep it apart from {one}", replace(request, apart_from=left)
    if request.min_zones > 1:
        count = _most(request.min_zones, lambda zones: fits(state, replace(request, min_zones=zones)))
        yield f"Ask for {_zones(count)}, not {request.min_zones}", replace(request, min_zones=count)
    if request.min_nodes > 1:
        count = _most(request.min_nodes, lambda nodes: fits(state, replace(request, min_nodes=nodes)))
        yield f"Ask for {_nodes(count)}, not {request.min_nodes}", replace(request, min_nodes=count)
    if request.zones:
        yield "Let other zones take part", replace(request, zones=())
    if request.node_ids:
        yield "Let other nodes take part", replace(request, node_ids=())
    if request.device_ids:
        yield "Let other devices take part", replace(request, device_ids=())
    if not request.prefer_gpu:
        # The other way round nothing is won: processors beside GPUs join where those do not hold the model.
        yield "Let GPUs take part", replace(request, prefer_gpu=True)
    if request.concurrency > 1:
        count = _most(request.concurrency, lambda many: fits(state, replace(request, concurrency=many)))
        told = "one request at a time" if count == 1 else f"{count} requests at a time"
        yield f"Keep room for {told}, not {request.concurrency:,}", replace(request, concurrency=count)
    asked = context_length_of(model, request)
    for length in _shorter(model, asked):
        words = f"Keep room for {length:,} tokens of context, not {asked:,}"
        yield words, replace(request, context_length=length)


def _shorter(model: ModelCard, asked: int) -> Iterator[int]:
    """Yield shorter contexts, longest first: what the model knows, then half of it each time."""
    length = asked
    if model.context_length_max < length:
        length = model.context_length_max
        yield length
    while length // 2 >= _CONTEXT_LENGTH_MIN:
        length //= 2
        yield length


def _most(asked: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number below the asked one that fits, or 1: with less of a wish it fits as well."""
    low, high = 1, asked - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _held_bytes(plan: Plan) -> int:
    return sum(stage.memory_bytes for stage in plan.stages)


def _nodes(count: int) -> str:
    return "one node" if count == 1 else f"{count} nodes"


def _zones(count: int) -> str:
    return "one zone" if count == 1 else f"{count} zones"


def called(state: State) -> dict[str, str]:
    """Return what people call nodes and devices, by their ids."""
    shown = distinct_names({str(key): node.identity.name for key, node in state.nodes.items()})
    return shown | {
        str(one.device_id): f"{one.local_alias} of {shown[key]}"
        for key, node in state.nodes.items()
        for one in node.identity.devices
    }
