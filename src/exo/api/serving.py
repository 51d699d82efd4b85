"""From a model's name to an instance that can serve: one that is ready, one that is loading, or a new one."""

import uuid

import anyio

from exo.api import present
from exo.api.access_callers import Caller
from exo.api.access_devices import may_use, narrowed, require_instance
from exo.api.context import ApiContext
from exo.api.errors import ApiError, from_refusal
from exo.api.readiness import is_on_its_way, settled_instance
from exo.shared.near_matches import near_matches, unknown_model_sentence
from exo.shared.serving import are_nodes_connected, instance_status, is_being_replaced
from exo.shared.types.commands import Placed, PlaceInstance, Refusal
from exo.shared.types.ids import CommandId, InstanceId, ModelId
from exo.shared.types.instances import Instance, PlacementRequest
from exo.shared.types.state import State

READY_TIMEOUT_S = 600.0
"""A large model takes minutes to load from a slow disk."""
PLACE_TIMEOUT_S = 30.0
REPLACE_TIMEOUT_S = 20.0
"""How long a master is waited for that is to have an instance of a lost node go on elsewhere, or to say that it cannot:
a placement of its own would then be in that one's way."""


async def ready_instance(context: ApiContext, model_id: ModelId, caller: Caller) -> Instance:
    """Return an instance of the model that is ready; waits for one that is loading, places the model if allowed.

    Of several that the caller may use the one with the fewest requests from this node.

    Raises:
        ApiError: The model is unknown, not placed, cannot be placed, fails to load, or takes too long.
        AccessRefused: It runs on devices that the caller may not use, and is not to be placed on others.
        NoMasterError: It would have to be placed, and there is no master.
    """
    with anyio.move_on_after(READY_TIMEOUT_S):
        return await _ready_instance(context, model_id, caller)
    raise ApiError(
        503,
        "model_loading",
        f"{model_id} is not ready after {READY_TIMEOUT_S:g} s; `exo status` shows how far it is",
        param="model",
    )


async def _ready_instance(context: ApiContext, model_id: ModelId, caller: Caller) -> Instance:
    awaited: InstanceId | None = None
    given_up: set[InstanceId] = set()
    while True:
        state = context.coordinator.state
        placed = [value for value in state.instances.values() if value.model.model_id == model_id]
        found = [value for value in placed if may_use(caller, value)]
        ready = [value for value in found if instance_status(state, value)[0] == "ready"]
        if ready:
            in_flight = context.requests_in_flight
            return min(ready, key=lambda value: (in_flight[value.instance_id], value.instance_id))
        # One that waits for its master comes last: others may be ready sooner.
        coming = sorted(
            (is_being_replaced(state, value), value.instance_id)
            for value in found
            if is_on_its_way(state, value) and value.instance_id not in given_up
        )
        if coming and coming[0][0]:
            with anyio.move_on_after(REPLACE_TIMEOUT_S):
                await _replaced(context, coming[0][1])
                continue
            given_up.add(coming[0][1])
            continue
        if coming:
            awaited = coming[0][1]
        elif awaited is not None and awaited not in state.instances:
            raise ApiError(
                503, "instance_deleted", f"{model_id} was deleted while it was loading", param="model"
            )
        else:
            _raise_if_broken(state, found)
            _require_known(state, model_id)
            if placed and not found and not context.settings.is_auto_place_enabled:
                require_instance(caller, placed[0])
            awaited = await _place(context, model_id, caller)
        await settled_instance(context.coordinator, awaited)


async def _replaced(context: ApiContext, instance_id: InstanceId) -> None:
    """Return once it is decided what becomes of an instance whose node is lost."""
    async for state in context.coordinator.changes():
        instance = state.instances.get(instance_id)
        if instance is None or not is_being_replaced(state, instance):
            return


def _raise_if_broken(state: State, found: list[Instance]) -> None:
    """Do not place a model again that its own stages failed to load: it would fail again, once per request.

    An instance with a node that is away counts as absent: its stages failed for want of that node, and elsewhere
    the model may well run.
    """
    for value in found:
        status, reason = instance_status(state, value)
        if status == "failed" and are_nodes_connected(state, value):
            step = f"; mend that, then `exo delete {value.instance_id}` and ask again"
            raise ApiError(
                503,
                "instance_failed",
                f"{value.model.model_id} cannot be served: {reason}{'' if value.stranded_reason else step}",
                param="model",
            )


def _require_known(state: State, model_id: ModelId) -> None:
    known = sorted(present.known_cards(state))
    if model_id not in known:
        raise unknown_model(model_id, known)


def unknown_model(model_id: str, known: list[ModelId]) -> ApiError:
    """Return the answer for a model that no node has, naming those that are written nearly the same."""
    return ApiError(
        404,
        "model_not_found",
        unknown_model_sentence(model_id, known),
        param="model",
        extra={"near_matches": near_matches(model_id, known)},
    )


async def _place(context: ApiContext, model_id: ModelId, caller: Caller) -> InstanceId:
    if not context.settings.is_auto_place_enabled:
        raise ApiError(
            409,
            "model_not_placed",
            f"{model_id} is not placed, and this node does not place models by itself; place it with: "
            f"exo place {model_id}",
            param="model",
        )
    command = PlaceInstance(
        command_id=CommandId(uuid.uuid4().hex),
        request=narrowed(caller, context.coordinator.state, PlacementRequest(model_id=model_id)),
        reuse_existing=True,
    )
    reply = await context.desk.send(command, timeout_s=PLACE_TIMEOUT_S)
    if isinstance(reply, Refusal):
        raise from_refusal(reply)
    if not isinstance(reply, Placed):
        raise RuntimeError(f"PlaceInstance was answered with {type(reply).__name__}")
    require_instance(caller, reply.instance)
    return reply.instance.instance_id
