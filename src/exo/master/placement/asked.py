"""Checks of what was asked for, before anything is solved: each refusal names the wish that cannot be had."""

import difflib
from collections.abc import Iterable, Sequence

from exo.master.placement.filters import NOT_ASKED_FOR, why_not_wanted, zone_words
from exo.master.placement.problem import Problem, context_length_of
from exo.master.placement.tensor_groups import tensor_groups
from exo.master.placement.wishes import in_turn
from exo.master.placement.words import gibibytes
from exo.shared.types.commands import Refusal
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

_REASONS_MAX = 8
"""Devices that a refusal names with their reasons."""


def check_request(model: ModelCard, request: PlacementRequest) -> Refusal | None:
    """Refuse what no cluster could give: wishes that contradict each other or the model."""
    layer_count = model.layer_count
    context_length = context_length_of(model, request)
    if context_length > model.context_length_max:
        return _never(
            "context_too_long",
            f"{model.model_id} knows {model.context_length_max:,} tokens of context at most; "
            f"{context_length:,} were asked for",
        )
    if request.min_nodes > layer_count:
        return _never(
            "too_few_layers",
            f"{model.model_id} has {layer_count} layers, too few for {request.min_nodes} nodes",
        )
    split = request.layer_split
    if split and (sum(split) != layer_count or min(split) < 1):
        return _never(
            "bad_layer_split",
            f"layer_split adds up to {sum(split)} layers; {model.model_id} has {layer_count}, "
            "and every stage needs at least one",
        )
    return _check_counts(request)


def _check_counts(request: PlacementRequest) -> Refusal | None:
    nodes, zones, split = len(set(request.node_ids)), len(set(request.zones)), len(request.layer_split)
    if nodes and request.min_nodes > nodes:
        return _contradiction(f"min_nodes asks for {request.min_nodes} nodes, and node_ids names {nodes}")
    devices = len(set(request.device_ids))
    if devices and request.min_nodes > devices:
        return _contradiction(f"min_nodes asks for {request.min_nodes} nodes, and device_ids names {devices}")
    if zones and request.min_zones > zones:
        return _contradiction(f"min_zones asks for {request.min_zones} zones, and zones names {zones}")
    if split and request.sharding in {"tensor", "hybrid"}:
        return _contradiction(f"layer_split is for pipelines, and {request.sharding} sharding was asked for")
    for name, least in (("min_nodes", request.min_nodes), ("min_zones", request.min_zones)):
        if split and least > split:
            return _contradiction(f"{name} asks for {least}, and layer_split has {split} stages")
    return None


def check_names(state: State, request: PlacementRequest) -> Refusal | None:
    """Refuse names that nothing in the cluster has."""
    nodes = state.nodes.values()
    known = set(state.nodes) | {device.device_id for node in nodes for device in node.identity.devices}
    asked = (*request.node_ids, *request.device_ids, *request.exclude, *request.must_use)
    for name in asked:
        if name not in known:
            message = f"{name!r} is no node or device of this cluster; `exo status` lists them."
            return _unknown("unknown_node_or_device", message, name, known)
    for name in request.apart_from:
        if not is_known_to_run(state, name):
            return _unknown(
                "unknown_instance_or_model",
                f"{name!r} in apart_from is no instance or model of this cluster; `exo status` lists them.",
                name,
                _can_run(state),
            )
    zones = {node.identity.zone for node in nodes}
    for name in request.zones:
        if name not in zones:
            there = ", ".join(sorted(zone_words(zone) for zone in zones))
            message = (
                f"{name!r} is no zone of this cluster, which has {there}; nodes are put into one with --zone."
            )
            return _unknown("unknown_zone", message, name, zones)
    return None


def is_known_to_run(state: State, name: str) -> bool:
    """Say whether a name is that of an instance, or of a model that nodes have or run."""
    return name in _can_run(state)


def _can_run(state: State) -> set[str]:
    placed: set[str] = {*state.instances, *(one.model.model_id for one in state.instances.values())}
    return placed | {card.model_id for node in state.nodes.values() for card in node.identity.models}


def check_candidates(state: State, problem: Problem) -> Refusal | None:
    """Refuse where those that can take part are too few for what was asked for."""
    request = problem.request
    refusal = next((found for name in request.must_use if (found := _about(state, problem, name))), None)
    if refusal is not None:
        return refusal
    wanted = max(request.min_nodes, 1)
    if problem.node_count < wanted:
        count = f"{problem.node_count} of the {wanted} nodes wanted" if wanted > 1 else "no node"
        return _too_few(problem, f"{count} can take part")
    split = len(request.layer_split)
    devices = len(problem.candidates) + len(problem.spare)
    if devices < split:
        return _too_few(problem, f"{devices} of the {split} devices that layer_split wants can take part")
    zones = {one.zone for one in problem.candidates}
    if len(zones) < request.min_zones:
        there = ", ".join(sorted(zone_words(zone) for zone in zones))
        start = f"{len(zones)} of the {request.min_zones} zones that min_zones wants can take part: {there}"
        if len({one.identity.zone for one in state.nodes.values()}) < request.min_zones:
            # No device is to blame: the cluster has too few.
            start += "; start nodes in other ones with --zone, or ask for fewer"
            return Refusal(status=409, code="too_few_zones", message=f"{start}.")
        return _too_few(problem, start, code="too_few_zones")
    _, must = in_turn(problem)
    if must > problem.model.layer_count:
        layers = problem.model.layer_count
        return _never(
            "too_few_layers", f"{problem.model.model_id} has {layers} layers, too few for all of must_use"
        )
    if split and must > split:
        return _contradiction(f"must_use asks for {must} stages, and layer_split has {split}")
    return None


def check_groups(state: State, problem: Problem) -> Refusal | None:
    """Refuse to split layers where no GPUs of one node can share them."""
    request, model = problem.request, problem.model
    if request.sharding not in {"tensor", "hybrid"} or tensor_groups(state, problem):
        return None
    if model.attention_heads < 1:
        return _never(
            "no_tensor_group",
            f"nobody told how many attention heads {model.model_id} has, so its layers cannot be split over GPUs; "
            "ask for pipeline or auto",
        )
    return Refusal(
        status=409,
        code="no_tensor_group",
        message=f"No node has two or more GPUs with memory of their own that can take part and share the "
        f"{model.kv_heads} key heads of {model.model_id} evenly; ask for pipeline or auto.",
    )


def _about(state: State, problem: Problem, name: str) -> Refusal | None:
    """Refuse where something that must be used cannot take part."""
    if any(name in (one.node_id, one.device.device_id) for one in problem.candidates):
        return None
    node, of_name = _devices_of(state, name)
    called = node.identity.name if name == node.identity.node_id else _called(node, name)
    reasons: dict[str, str] = {one.device_id: one.reason for one in problem.excluded}
    why = next((reasons[one] for one in sorted(of_name) if one in reasons), "it has no device")
    request = problem.request
    by_request = [
        why_not_wanted(node, device, request, {})
        for device in node.identity.devices
        if device.device_id in of_name
    ]
    if by_request and all(by_request):
        return _contradiction(f"must_use names {called}, but {why}")
    return Refusal(
        status=409,
        code="must_use_unavailable",
        message=f"must_use names {called}, which cannot take part: {why}.",
    )


def _devices_of(state: State, name: str) -> tuple[Node, list[str]]:
    node = state.nodes.get(NodeId(name))
    if node is not None:
        return node, [one.device_id for one in node.identity.devices]
    owner = next(
        one
        for one in state.nodes.values()
        if any(device.device_id == name for device in one.identity.devices)
    )
    return owner, [name]


def _called(node: Node, name: str) -> str:
    alias = next(one.local_alias for one in node.identity.devices if one.device_id == name)
    return f"{alias} of {node.identity.name}"


def _too_few(problem: Problem, start: str, *, code: str = "too_few_nodes") -> Refusal:
    free = sum({one.pool: one.memory_free_bytes for one in problem.candidates}.values())
    room = f" ({gibibytes(free)} free)" if problem.candidates else ""
    reasons = _reasons(problem)
    return Refusal(
        status=409,
        code=code,
        message=f"{start}{room}" + (f": {reasons}." if reasons else "; start more with `uv run exo`."),
    )


def _reasons(problem: Problem) -> str:
    """Say why devices cannot take part, those with the same reason together.

    What was not asked for is not named, unless it is all that there is: whoever asks for a device knows the others.
    """
    asked = [one for one in problem.excluded if one.reason not in NOT_ASKED_FOR] or problem.excluded
    by_reason: dict[str, list[str]] = {}
    for one in asked[:_REASONS_MAX]:
        by_reason.setdefault(one.reason, []).append(problem.excluded_names.get(one.device_id, one.device_id))
    told = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    more = len(asked) - _REASONS_MAX
    return "; ".join([*told, f"and {more} more"] if more > 0 else told)


def _never(code: str, message: str) -> Refusal:
    return Refusal(status=422, code=code, message=f"{message}.")


def _contradiction(message: str) -> Refusal:
    return _never("contradictory_request", f"{message}; give up one of them")


def _unknown(code: str, message: str, name: str, known: Iterable[str]) -> Refusal:
    return Refusal(
        status=404,
        code=code,
        message=message,
        near_matches=_near(name, sorted(known)),
    )


def _near(name: str, known: Sequence[str]) -> tuple[str, ...]:
    return tuple(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
