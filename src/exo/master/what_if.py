"""The cluster as it would be with other machines, and what a model would do there. Pure."""

from msgspec.structs import replace

from exo.master.placement.asked import is_known_to_run
from exo.master.placement.machines import as_added, link_of, node_of, telemetry_of
from exo.master.placement.place import find_model, place_instance
from exo.master.placement.previews import Share
from exo.master.placement.words import milliseconds, rate
from exo.master.recovery_ladder import without as freed_of
from exo.master.remedy import called, remedy_for
from exo.shared.near_matches import near_matches
from exo.shared.types.commands import Planned, Preview, Refusal, Remedy
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ENGINES_BY_FORMAT
from exo.shared.types.state import NodeTelemetry, State
from exo.shared.types.what_if import AddedNode, Change

NODE_ID_PREFIX = "wished-"
"""Of the ids of nodes that are not there."""
_TIMES_FROM = 1.5
"""Smaller changes are told in percent."""
_SAME = 0.005
"""Speeds that differ by less are told as equal."""


def changed(
    state: State, request: PlacementRequest, change: Change
) -> tuple[State, tuple[AddedNode, ...]] | Refusal:
    """Return the state as it would be, with the nodes that were added, or why it cannot be imagined."""
    model = find_model(state, request.model_id)
    if isinstance(model, Refusal):
        return model
    for one in change.instead:
        if one not in state.instances:
            return _unknown("instance", one, tuple(state.instances))
        state = freed_of(state, InstanceId(one))
    for one in change.without:
        taken = _without(state, one)
        if isinstance(taken, Refusal):
            return taken
        state = taken
    added: list[AddedNode] = []
    for number, machine in enumerate(change.machines, start=1):
        node_id = NodeId(f"{NODE_ID_PREFIX}{number}")
        node = node_of(machine, node_id, model, ENGINES_BY_FORMAT.get(model.format, ()))
        if isinstance(node, Refusal):
            return node
        telemetry = telemetry_of(machine, node, sorted(state.nodes))
        live = dict(state.live)
        for other in state.nodes:
            link = link_of(machine, other, node_id)
            if link is not None:
                known = live.get(other, NodeTelemetry())
                live[other] = replace(known, links={**known.links, node_id: link})
        live[node_id] = telemetry
        state = replace(state, nodes={**state.nodes, node_id: node}, live=live)
        added.append(as_added(machine, node, telemetry))
    return state, tuple(added)


def imagine(
    state: State,
    request: PlacementRequest,
    change: Change,
    *,
    share: Share,
    has_constraint_layer: bool = True,
) -> Planned | Refusal:
    """Solve a request on the cluster as it is and, where a change is asked for, as it would be.

    Returns:
        A refusal where the change itself cannot be imagined: an unknown node, a device that nobody knows.
    """

    def solved(title: str, on: State, left: int, wish: PlacementRequest = request) -> Preview:
        answer = place_instance(on, wish, should_stop=share(left), has_constraint_layer=has_constraint_layer)
        if isinstance(answer, Plan):
            return Preview(title=title, request=request, plan=answer)
        return Preview(title=title, request=request, refusal=answer)

    def helped(answer: Preview, on: State, wish: PlacementRequest) -> Remedy | None:
        if answer.plan is not None:
            return None
        return remedy_for(
            on,
            wish,
            change,
            should_stop=share(1),
            has_constraint_layer=has_constraint_layer,
            names=called(state),
        )

    def kept() -> Remedy | None:
        """Return the first of what is taken to be gone with which it would fit."""
        for one in change.without:
            less = replace(change, without=tuple(name for name in change.without if name != one))
            there = changed(state, request, less)
            if not isinstance(there, Refusal) and solved("", there[0], 1).plan is not None:
                words = f"Keep {called(state).get(one, one)}"
                return Remedy(words=words, request=request, without=less.without, instead=less.instead)
        return None

    if change.is_none:
        answer = solved("As it is", state, 1)
        return Planned(answer=replace(answer, remedy=helped(answer, state, request)))
    imagined = changed(state, request, change)
    if isinstance(imagined, Refusal):
        return imagined
    other, added = imagined
    before = solved("As it is", state, 2)
    how = _how(state, added, change)
    missed = _missed(state, other, request, how)
    wanted = _left_of(request, state, other)
    after = Preview(title=how, request=request, refusal=missed)
    if missed is None:
        after = solved(how, other, 1, wanted)
    remedy = helped(after, other, wanted) or (kept() if after.plan is None else None)
    told = verdict(after, before, how, added)
    return Planned(answer=replace(after, remedy=remedy), before=before, added=added, verdict=told)


def verdict(after: Preview, before: Preview, how: str, added: tuple[AddedNode, ...]) -> str:
    """Say in one sentence what a change would bring."""
    if after.plan is None:
        if before.plan is None:
            return f"{how}, it does not fit either."
        return f"{how}, it would not fit any more; now it runs at {_speed(before.plan)}."
    unused = _unused(after.plan, added)
    if before.plan is None:
        return f"{how}, it would fit, at {_speed(after.plan)}; now it does not.{unused}"
    new, old = _tokens_per_s(after.plan), _tokens_per_s(before.plan)
    if new is None or not old:
        return f"{how}: {_speed(after.plan)}.{unused}"
    if abs(new / old - 1) < _SAME:
        return f"{how}, nothing changes: {_speed(after.plan)} either way.{unused}"
    return f"{how}: {_speed(after.plan)} instead of {rate(old)}, {_times(new / old)}.{unused}"


def _missed(state: State, other: State, request: PlacementRequest, how: str) -> Refusal | None:
    """Refuse a wish for what is taken to be gone, and a model that nobody else has."""
    model = find_model(other, request.model_id)
    if isinstance(model, Refusal):
        told = f"{how}, no node that is left has {request.model_id}; put its files on another one."
        return replace(model, message=told)
    zones, left = ({node.identity.zone for node in one.nodes.values()} for one in (state, other))
    gone = (_names(state) | zones) - _names(other) - left
    for key, names in (
        ("node_ids", request.node_ids),
        ("device_ids", request.device_ids),
        ("must_use", request.must_use),
        ("zones", request.zones),
    ):
        name = next((one for one in names if one in gone), None)
        if name is not None:
            told = f"{key} names {called(state).get(name, name)}, which is taken to be gone; give up one of them."
            return Refusal(status=422, code="contradictory_request", message=told)
    return None


def _left_of(request: PlacementRequest, state: State, other: State) -> PlacementRequest:
    """Return a request less what is gone and need not be left out, nor be kept apart from."""
    gone = _names(state) - _names(other)
    ended = {
        one for one in request.apart_from if is_known_to_run(state, one) and not is_known_to_run(other, one)
    }
    return replace(
        request,
        exclude=tuple(one for one in request.exclude if one not in gone),
        apart_from=tuple(one for one in request.apart_from if one not in ended),
    )


def _names(state: State) -> set[str]:
    return {str(one) for one in state.nodes} | {
        str(device.device_id) for node in state.nodes.values() for device in node.identity.devices
    }


def _without(state: State, name: str) -> State | Refusal:
    """Take a node or a device away."""
    if name in state.nodes:
        return replace(
            state,
            nodes={key: one for key, one in state.nodes.items() if key != name},
            live={key: one for key, one in state.live.items() if key != name},
        )
    for node_id, node in state.nodes.items():
        if any(one.device_id == name for one in node.identity.devices):
            left = tuple(one for one in node.identity.devices if one.device_id != name)
            less = replace(node, identity=replace(node.identity, devices=left))
            return replace(state, nodes={**state.nodes, node_id: less})
    devices = [one.device_id for node in state.nodes.values() for one in node.identity.devices]
    return _unknown("node or device", name, (*state.nodes, *devices))


def _unknown(kind: str, name: str, known: tuple[str, ...]) -> Refusal:
    return Refusal(
        status=404,
        code="unknown_instance" if kind == "instance" else "unknown_node_or_device",
        message=f"{name!r} is no {kind} of this cluster; `exo status` lists them.",
        near_matches=near_matches(name, known),
    )


def _how(state: State, added: tuple[AddedNode, ...], change: Change) -> str:
    names = called(state)
    parts: list[str] = []
    if added:
        parts.append(f"with {_listed([one.name for one in added])}")
    if change.without:
        parts.append(f"without {_listed([names.get(one, one) for one in change.without])}")
    if change.instead:
        parts.append(f"in the place of {_listed(change.instead)}")
    text = " and ".join(parts)
    return f"{text[:1].upper()}{text[1:]}"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _unused(plan: Plan, added: tuple[AddedNode, ...]) -> str:
    """Say of machines that would be there and do nothing why that is."""
    used = {stage.node_id for stage in plan.stages}
    excluded = {one.device_id: one for one in plan.excluded}
    told: list[str] = []
    for one in added:
        if one.node_id in used:
            continue
        why = next(
            (excluded[device.device_id] for device in one.devices if device.device_id in excluded), None
        )
        reason = "" if why is None else f": {why.reason}"
        if why is not None and why.forcing_ms:
            reason += f" (with it each token takes {milliseconds(why.forcing_ms)} more)"
        told.append(f" {one.name} would not be used{reason}.")
    return "".join(told)


def _speed(plan: Plan) -> str:
    told = _tokens_per_s(plan)
    return "an unknown speed" if told is None else f"{rate(told)} tokens/s"


def _times(ratio: float) -> str:
    if 1 / _TIMES_FROM < ratio < _TIMES_FROM:
        return f"{abs(ratio - 1):.1%} {'faster' if ratio > 1 else 'slower'}".replace("%", " %")
    return f"{ratio:.2g} times as fast" if ratio > 1 else f"{ratio:.0%} of the speed".replace("%", " %")


def _tokens_per_s(plan: Plan) -> float | None:
    return None if plan.prediction is None else plan.prediction.tokens_per_s
