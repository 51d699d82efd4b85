"""Several ways to place one model, side by side, for people to choose from."""

from msgspec.structs import replace

from exo.master.placement.place import ShouldStop, place_instance
from exo.shared.types.commands import Preview, Refusal
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State


def preview_placements(
    state: State, request: PlacementRequest, *, should_stop: ShouldStop, has_constraint_layer: bool = True
) -> tuple[Preview, ...]:
    """Solve the request as asked, over more nodes, and on GPUs or processors; leave out what comes to the same."""
    connected = sum(1 for node in state.nodes.values() if node.is_connected and node.identity.is_worker)
    has_gpu = any(d.backend != "cpu" for node in state.nodes.values() for d in node.identity.devices)
    ways = [
        ("Fastest" if request.min_nodes == 1 else f"Fastest on {request.min_nodes} nodes or more", request)
    ]
    ways += [
        (f"Across {count} nodes or more", replace(request, min_nodes=count))
        for count in dict.fromkeys((2, 3, connected))
        if request.min_nodes < count <= connected
    ]
    if has_gpu:
        ways.append(("GPUs first" if not request.prefer_gpu else "Processors", _other_devices(request)))
    previews: list[Preview] = []
    seen: set[tuple[object, ...]] = set()
    for title, asked in ways:
        if should_stop() and previews:
            break
        answer = place_instance(
            state, asked, should_stop=should_stop, has_constraint_layer=has_constraint_layer
        )
        if isinstance(answer, Refusal):
            previews.append(Preview(title=title, request=asked, refusal=answer))
            continue
        if _shape(answer) not in seen:
            seen.add(_shape(answer))
            previews.append(Preview(title=title, request=asked, plan=answer))
    return tuple(previews)


def _other_devices(request: PlacementRequest) -> PlacementRequest:
    return replace(request, prefer_gpu=not request.prefer_gpu)


def _shape(plan: Plan) -> tuple[object, ...]:
    return tuple((stage.device_ids, stage.start_layer, stage.end_layer) for stage in plan.stages)
