"""Several ways to place one model, side by side, for people to choose from. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec.structs import replace

from exo.master.placement.place import ShouldStop, place_instance
from exo.master.placement.problem import free_bytes_by_pool, pool_of
from exo.shared.types.commands import Preview, Refusal
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State

Share = Callable[[int], ShouldStop]
"""Of the time that is left a fair share, where so many solves are still to come."""
MANY_REQUESTS = 8
"""At the same time: what `most throughput` is worked out for, where fewer are asked for."""
NAMED_MAX = 1000
"""Ids in one list of a request: as many as the API takes."""
_SINGLE_NODES_MAX = 12
"""Where one node holds the model, so many of the roomiest are tried for the fastest of them."""


class _Way:
    """One question, and under which title its answer is shown."""

    def __init__(
        self,
        title: str,
        request: PlacementRequest,
        *,
        is_shown_refused: bool = True,
        nodes_max: int | None = None,
    ) -> None:
        self.title = title
        self.request = request
        self.is_shown_refused = is_shown_refused
        self.nodes_max = nodes_max
        """A plan on more nodes is not what the title says: the fastest plan takes more anyway."""


def preview_placements(
    state: State, request: PlacementRequest, *, share: Share, has_constraint_layer: bool = True
) -> tuple[Preview, ...]:
    """Solve the request as asked and in other ways; ways that come to the same plan are one, with all their titles.

    What was asked for besides (nodes, exclusions, zones, context) holds in every way.
    """
    ways = list(_ways(state, request))
    found: list[tuple[Preview, bool]] = []
    for place, way in enumerate(ways):
        # The first is what would be decided: it has half of the time, the others the rest.
        stop = share(len(ways) - place if place else 2)
        if place and stop():
            found.append((Preview(title=way.title, request=way.request, refusal=_out_of_time()), False))
            continue
        answer = place_instance(
            state, way.request, should_stop=stop, has_constraint_layer=has_constraint_layer
        )
        if isinstance(answer, Plan):
            if way.nodes_max is not None and _node_count(answer) > way.nodes_max:
                continue
            found.append((Preview(title=way.title, request=way.request, plan=answer), True))
        elif place == 0 or way.is_shown_refused:
            found.append((Preview(title=way.title, request=way.request, refusal=answer), place == 0))
        if place == 0 and isinstance(answer, Refusal) and answer.status == 404:
            break  # Something that was named does not exist: it does not in any other way.
    fewest = _fewest_nodes(state, request, [one for one, _ in found], share(1), has_constraint_layer)
    if fewest is not None:
        found.append((fewest, False))
    return folded([one for one, _ in found])


def folded(previews: Iterable[Preview]) -> tuple[Preview, ...]:
    """Put those of equal plans, and those refused in equal words, into one with all their titles."""
    kept: dict[object, Preview] = {}
    for one in previews:
        key = _shape(one.plan) if one.plan is not None else one.refusal and one.refusal.message
        first = kept.get(key)
        kept[key] = one if first is None else replace(first, title=f"{first.title}, {_lowered(one.title)}")
    return tuple(kept.values())


def without_each(
    plan: Plan, request: PlacementRequest, names: Callable[[NodeId], str]
) -> Iterator[tuple[str, PlacementRequest]]:
    """Yield the request without each node that a plan uses, with a title; nothing for a plan on one node alone."""
    used = dict.fromkeys(stage.node_id for stage in plan.stages)
    if len(used) > 1:
        for node_id in used:
            free = replace(request, exclude=(*request.exclude, node_id), must_use=(), layer_split=())
            yield f"Without {names(node_id)}", free


def _ways(state: State, request: PlacementRequest) -> Iterator[_Way]:
    least = request.min_nodes
    yield _Way("Fastest" if least == 1 else f"Fastest on {least} nodes or more", request)
    nodes = [node for node in state.nodes.values() if node.is_connected and node.identity.is_worker]
    devices = [one for node in nodes for one in node.identity.devices]
    gpus = [one.device_id for one in devices if one.backend != "cpu" and not one.is_simulated]
    processors = [one.device_id for one in devices if one.backend == "cpu"]
    free = replace(request, layer_split=())
    if gpus and 0 < len(processors) <= NAMED_MAX:
        only = replace(free, prefer_gpu=True, exclude=(*free.exclude, *processors)[:NAMED_MAX])
        yield _Way("GPUs only", only)
    if gpus and processors and len(gpus) <= NAMED_MAX:
        only = replace(free, prefer_gpu=False, exclude=(*free.exclude, *gpus)[:NAMED_MAX])
        yield _Way("Processors only", only)
    for count in dict.fromkeys((2, 3, len(nodes))):
        if least < count <= len(nodes):
            title = f"Pipeline over {'all ' if count == len(nodes) and count > 3 else ''}{count} nodes"
            yield _Way(title, replace(free, min_nodes=count, sharding="pipeline"), nodes_max=count)
    if request.sharding == "auto" and devices:
        yield _Way("Tensor parallel", replace(free, sharding="tensor"))
    yield _Way("Least latency", replace(request, objective="latency"), is_shown_refused=False)
    many = max(request.concurrency, MANY_REQUESTS)
    title = "Most throughput" + (f" with {many} requests at a time" if many > request.concurrency else "")
    yield _Way(title, replace(request, objective="throughput", concurrency=many))


def _fewest_nodes(
    state: State,
    request: PlacementRequest,
    found: Sequence[Preview],
    stop: ShouldStop,
    has_constraint_layer: bool,
) -> Preview | None:
    """Return the plan on the fewest nodes: of one, the fastest that holds it; of more, the roomiest."""
    title = "Fewest nodes"
    base = replace(request, layer_split=())
    known = [
        one.plan for one in found if one.plan is not None and one.request.concurrency == request.concurrency
    ]
    most = min((_node_count(plan) for plan in known), default=None)
    if most is None:
        return None

    def solved(nodes: Sequence[NodeId]) -> Plan | None:
        asked = replace(base, node_ids=tuple(nodes))
        answer = place_instance(state, asked, should_stop=stop, has_constraint_layer=has_constraint_layer)
        return answer if isinstance(answer, Plan) else None

    roomiest = _roomiest(state, request)
    if request.min_nodes == 1 and _node_count(known[0]) > 1:
        alone = [plan for node_id in roomiest[:_SINGLE_NODES_MAX] if (plan := solved([node_id])) is not None]
        if alone:
            best = min(alone, key=_ms_per_token)
            used = replace(base, node_ids=(best.stages[0].node_id,))
            return Preview(title=title, request=used, plan=best)
    for count in range(max(2, request.min_nodes), min(most, NAMED_MAX)):
        if stop():
            return None
        plan = solved(roomiest[:count])
        if plan is not None:
            return Preview(title=title, request=replace(base, node_ids=tuple(roomiest[:count])), plan=plan)
    # None of the ways takes more nodes than is needed: of those on as few, the fastest.
    fewest = [
        one for one in found if one.plan is not None and one.plan in known and _node_count(one.plan) == most
    ]
    shown = min(fewest, key=lambda one: _ms_per_token(one.plan))
    return replace(shown, title=title)


def _roomiest(state: State, request: PlacementRequest) -> list[NodeId]:
    """Return the nodes that may be asked for, those with the most free memory first."""
    free = free_bytes_by_pool(state)
    rooms: list[tuple[int, NodeId]] = []
    for node_id, node in state.nodes.items():
        if not node.is_connected or not node.identity.is_worker or node_id in request.exclude:
            continue
        if request.node_ids and node_id not in request.node_ids:
            continue
        if not any(card.model_id == request.model_id for card in node.identity.models):
            continue
        pools = {pool_of(node, one) for one in node.identity.devices if one.device_id not in request.exclude}
        rooms.append((-sum(free[pool] for pool in pools), node_id))
    return [node_id for _, node_id in sorted(rooms)]


def _node_count(plan: Plan) -> int:
    return len({stage.node_id for stage in plan.stages})


def _ms_per_token(plan: Plan | None) -> float:
    told = None if plan is None or plan.prediction is None else plan.prediction.ms_per_token
    return float("inf") if told is None else told


def _shape(plan: Plan) -> tuple[object, ...]:
    stages = tuple((stage.device_ids, stage.start_layer, stage.end_layer) for stage in plan.stages)
    return (plan.sharding, plan.concurrency, plan.context_length, stages)


def _lowered(title: str) -> str:
    return title if title[:2].isupper() else f"{title[:1].lower()}{title[1:]}"


def _out_of_time() -> Refusal:
    return Refusal(
        status=503,
        code="not_worked_out",
        message="The time for previews was over before this way was worked out; ask for it alone.",
    )
