"""A decision made again on what it was made on: is the answer the same, what else was possible, what changed since.

Pure.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from exo.master.errors import BasisUnreadableError
from exo.master.placement.basis import unpack
from exo.master.placement.costs import cost_rounds
from exo.master.placement.filters import also_apart_from
from exo.master.placement.place import find_model, place_instance
from exo.master.placement.previews import Share, folded, preview_placements, without_each
from exo.master.placement.problem import build_problem
from exo.master.placement.weigh import weigh_given
from exo.master.recovery_ladder import without as freed_of
from exo.master.replacement_job import METHOD as KEPT_METHOD
from exo.shared.types.commands import Decided, Explained, Preview, Refusal
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

CHANGES_MAX = 20
"""Sentences about what changed; the rest is counted."""
_SAME_SHARE = 1e-9


def explain_decision(
    decision: Decided, instance_id: InstanceId, asked: PlacementRequest, now: State, *, share: Share
) -> tuple[Explained, tuple[str, ...]]:
    """Return a decision made again with its alternatives, and what is different in the cluster now.

    A move takes, of plans nearly as fast as the fastest, the one that moves the fewest weights. That choice needs what
    the nodes held then, which no basis has: such a plan is not looked for again but weighed again.
    """
    kept = replace(decision, basis=b"")
    if not decision.basis:
        told = "the release that decided it did not keep what it was decided on"
        return Explained(decision=kept, request=asked, omitted=told), ()
    try:
        basis = unpack(decision.basis)
    except BasisUnreadableError as error:
        return Explained(decision=kept, request=asked, omitted=error.message), ()
    if basis.state is None:
        return Explained(decision=kept, request=basis.request, omitted=basis.omitted), ()
    state, request, layer = basis.state, basis.request, basis.has_constraint_layer
    answer: Plan | Refusal | None = None
    if decision.plan.method == KEPT_METHOD:
        answer = weighed_again(state, request, decision.plan)
    title = "Made again" if answer is None else "Weighed again"
    if answer is None:
        answer = place_instance(state, request, should_stop=share(2), has_constraint_layer=layer)
    again = _preview(title, request, answer)
    previews = list(
        preview_placements(state, request, share=lambda left: share(left + 4), has_constraint_layer=layer)
    )
    others = list(without_each(decision.plan, request, lambda node_id: _name(state, node_id)))[:8]
    for place, (title, free) in enumerate(others):
        stop = share(len(others) - place)
        found = place_instance(state, free, should_stop=stop, has_constraint_layer=layer)
        previews.append(_preview(title, free, found))
    explained = Explained(
        decision=kept,
        request=request,
        again=again,
        differences=tuple(differences(decision.plan, answer)),
        alternatives=folded(previews),
    )
    return explained, tuple(_shortened(list(changes(state, now, decision.plan, instance_id))))


def weighed_again(state: State, request: PlacementRequest, plan: Plan) -> Plan | None:
    """Return a plan with what it is predicted to do on a state; None where it cannot be weighed there."""
    model = find_model(state, request.model_id)
    if isinstance(model, Refusal):
        return None
    problem = build_problem(state, model, request, plan.engine)
    used = {one for stage in plan.stages for one in stage.device_ids}
    if any(one.device.device_id in used for one in problem.spare):
        problem = problem.with_offload()
    if not used <= {one.device.device_id for one in problem.candidates}:
        return None
    told = weigh_given(cost_rounds(state, problem), plan.stages, plan.method).prediction
    return None if told is None else replace(plan, prediction=told)


def place_today(
    now: State,
    instance_id: InstanceId,
    request: PlacementRequest,
    *,
    share: Share,
    has_constraint_layer: bool,
) -> Preview:
    """Return where an instance would be placed now, as the person asked for it, if its own memory were free."""
    state = freed_of(now, instance_id) if instance_id in now.instances else now
    names = dict.fromkeys((*request.apart_from, *also_apart_from(state, instance_id)))
    asked = replace(request, apart_from=tuple(names))
    answer = place_instance(state, asked, should_stop=share(1), has_constraint_layer=has_constraint_layer)
    return _preview("Placed now", request, answer)


def differences(recorded: Plan, again: Plan | Refusal) -> Iterator[str]:
    """Say in words how an answer differs from the recorded one; nothing where they are the same."""
    if isinstance(again, Refusal):
        yield f"this release refuses it: {again.message}"
        return
    if _stages(recorded) != _stages(again):
        yield f"its stages are {_listed(again)} instead of {_listed(recorded)}"
    if again.is_truncated and not recorded.is_truncated:
        yield "this time the deadline ended the search"
    old, new = recorded.prediction, again.prediction
    if old is not None and new is not None and _differs(old.ms_per_token, new.ms_per_token):
        yield f"it is predicted to take {_ms(new.ms_per_token)} for each token instead of {_ms(old.ms_per_token)}"
    if recorded.method != again.method:
        yield f"it was found by {again.method} instead of {recorded.method}"
    elif recorded.explanation != again.explanation and _stages(recorded) == _stages(again):
        yield "its explanation is worded differently"


def changes(then: State, now: State, plan: Plan, own: InstanceId) -> Iterator[str]:
    """Say what is different in the cluster between two states; what the plan uses comes first."""
    used = [stage.node_id for stage in plan.stages]
    order = [*dict.fromkeys(used), *sorted({*then.nodes, *now.nodes}.difference(used))]
    for node_id in order:
        before, after = then.nodes.get(node_id), now.nodes.get(node_id)
        if before is None and after is not None:
            yield f"{after.identity.name} has joined"
        elif before is not None and after is None:
            yield f"{before.identity.name} is no longer a member"
        elif before is not None and after is not None:
            yield from _changes_of_node(before, after, then, now)
    gone = sorted(set(then.instances) - set(now.instances))
    added = sorted(set(now.instances) - set(then.instances) - {own})
    yield from (f"the instance {one} ({then.instances[one].model.model_id}) has ended" for one in gone)
    yield from (f"the instance {one} ({now.instances[one].model.model_id}) was placed" for one in added)


def _changes_of_node(before: Node, after: Node, then: State, now: State) -> Iterator[str]:
    name = after.identity.name
    if before.is_connected != after.is_connected:
        why = "" if after.left_reason is None else f" ({after.left_reason})"
        yield f"{name} is back" if after.is_connected else f"{name} is not connected{why}"
    old = {one.device_id: one for one in before.identity.devices}
    new = {one.device_id: one for one in after.identity.devices}
    yield from (f"{old[key].local_alias} of {name} is gone" for key in sorted(old.keys() - new.keys()))
    yield from (f"{new[key].local_alias} of {name} was added" for key in sorted(new.keys() - old.keys()))
    for key in sorted(old.keys() & new.keys()):
        was, reading = _health(then, before, key), _health(now, after, key)
        if was != reading:
            yield f"{new[key].local_alias} of {name} is {reading}; it was {was}"
    if {one.model_id: one.fingerprint for one in before.identity.models} != {
        one.model_id: one.fingerprint for one in after.identity.models
    }:
        yield f"{name} has another copy of the model, or none"
    if before.identity.zone != after.identity.zone:
        yield f"{name} is in the zone {after.identity.zone!r}; it was in {before.identity.zone!r}"


def _health(state: State, node: Node, device_id: str) -> str:
    live = state.live.get(node.identity.node_id)
    reading = (
        None if live is None else next((one for key, one in live.devices.items() if key == device_id), None)
    )
    return "healthy" if reading is None else reading.health


def _preview(title: str, request: PlacementRequest, answer: Plan | Refusal) -> Preview:
    if isinstance(answer, Plan):
        return Preview(title=title, request=request, plan=answer)
    return Preview(title=title, request=request, refusal=answer)


def _stages(plan: Plan) -> tuple[object, ...]:
    return tuple((one.device_ids, one.start_layer, one.end_layer) for one in plan.stages)


def _listed(plan: Plan) -> str:
    return ", ".join(
        f"{'+'.join(one.device_ids)} with {one.start_layer}-{one.end_layer - 1}" for one in plan.stages
    )


def _differs(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(old - new) > _SAME_SHARE * max(abs(old), abs(new))


def _ms(told: float | None) -> str:
    return "an unknown time" if told is None else f"{told:.4g} ms"


def _name(state: State, node_id: NodeId) -> str:
    node = state.nodes.get(node_id)
    return node_id if node is None else node.identity.name


def _shortened(sentences: list[str]) -> list[str]:
    more = len(sentences) - CHANGES_MAX
    return sentences if more <= 0 else [*sentences[:CHANGES_MAX], f"and {more} more changes"]
