"""Placing models: instances, waiting for them, deleting them."""

import uuid
from typing import Annotated, NoReturn

import anyio
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from exo.api import present
from exo.api.access_callers import present_caller
from exo.api.access_devices import narrowed, require_instance
from exo.api.context import ApiContext, Context
from exo.api.disconnect import CLIENT_GONE_STATUS, ClientGoneError, while_connected
from exo.api.errors import ApiError, from_refusal
from exo.api.readiness import is_on_its_way, settled_instance
from exo.api.routes.answers import json_answer, problems
from exo.api.schemas.instances import (
    InstanceDeleted,
    InstanceList,
    InstancePlaced,
    InstanceView,
    InstanceWish,
)
from exo.shared.types.commands import (
    Command,
    Deleted,
    DeleteInstance,
    Placed,
    PlaceInstance,
    Refusal,
    Reply,
)
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest

router = APIRouter(tags=["instances"])

COMMAND_TIMEOUT_S = 30.0
WAIT_TIMEOUT_MAX_S = 3600.0

InstanceIdPath = Annotated[str, Field(description="Id of an instance")]


def new_command_id() -> CommandId:
    """Return a fresh id; what the command leads to carries it as its cause."""
    return CommandId(uuid.uuid4().hex)


def placement_request(wish: InstanceWish, context: ApiContext) -> PlacementRequest:
    """Return the body of `POST /instance` as the internal value, for devices that the caller may use.

    Raises:
        AccessRefused: It names others.
    """
    request = PlacementRequest(
        model_id=ModelId(wish.model_id),
        sharding=wish.sharding,
        engine=wish.engine,
        min_nodes=wish.min_nodes,
        prefer_gpu=wish.prefer_gpu,
        node_ids=tuple(NodeId(node_id) for node_id in wish.node_ids),
        device_ids=tuple(DeviceId(device_id) for device_id in wish.device_ids),
        exclude=tuple(wish.exclude),
        context_length=wish.context_length,
        concurrency=wish.concurrency,
        objective=wish.objective,
        layer_split=tuple(wish.layer_split),
        must_use=tuple(wish.must_use),
        apart_from=tuple(wish.apart_from),
        zones=tuple(wish.zones),
        min_zones=wish.min_zones,
    )
    return narrowed(present_caller(), context.coordinator.state, request)


async def send_command(context: ApiContext, command: Command) -> Reply:
    """Have the master carry out a command.

    Raises:
        ApiError: It refuses.
    """
    reply = await context.desk.send(command, timeout_s=COMMAND_TIMEOUT_S)
    if isinstance(reply, Refusal):
        raise from_refusal(reply)
    return reply


def unexpected(command: Command, reply: Reply) -> NoReturn:
    """Raise for a reply of another kind than the command has."""
    raise RuntimeError(f"{type(command).__name__} was answered with {type(reply).__name__}")


@router.post(
    "/instance",
    operation_id="place_instance",
    status_code=201,
    response_model=InstancePlaced,
    responses=problems(403, 404, 409, 422, 503),
)
async def place_instance(wish: InstanceWish, context: Context) -> Response:
    """Place a model. Answers when the decision is committed, or with the reason why it cannot be."""
    command = PlaceInstance(command_id=new_command_id(), request=placement_request(wish, context))
    reply = await send_command(context, command)
    if not isinstance(reply, Placed):
        unexpected(command, reply)
    state = context.coordinator.state
    placed = state.instances.get(reply.instance.instance_id, reply.instance)
    return json_answer(
        {**present.instance(state, placed), "index": reply.index},
        201,
        {"Location": f"/instance/{placed.instance_id}"},
    )


@router.get("/instance", operation_id="list_instances", response_model=InstanceList)
async def list_instances(context: Context) -> Response:
    """All placed instances."""
    state = context.coordinator.state
    views = [present.instance(state, value) for _, value in sorted(state.instances.items())]
    return json_answer({"instances": views})


@router.get(
    "/instance/{instance_id}",
    operation_id="get_instance",
    response_model=InstanceView,
    responses=problems(404),
)
async def get_instance(instance_id: InstanceIdPath, context: Context) -> Response:
    """One instance with its plan and how its stages are."""
    state = context.coordinator.state
    value = state.instances.get(InstanceId(instance_id))
    if value is None:
        raise _not_found(instance_id)
    return json_answer(present.instance(state, value))


@router.get(
    "/instance/{instance_id}/wait",
    operation_id="wait_for_instance",
    response_model=InstanceView,
    responses=problems(404, 422, 504),
)
async def wait_for_instance(
    request: Request,
    instance_id: InstanceIdPath,
    context: Context,
    timeout_s: Annotated[float, Query(ge=0, le=WAIT_TIMEOUT_MAX_S, allow_inf_nan=False)] = 60.0,
) -> Response:
    """Answer when the instance is ready or has failed; 504 with its progress when it is neither in time."""
    wanted = InstanceId(instance_id)
    try:
        with anyio.move_on_after(timeout_s):
            await while_connected(
                request.receive, context.closing, lambda: settled_instance(context.coordinator, wanted)
            )
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE_STATUS)
    state = context.coordinator.state
    value = state.instances.get(wanted)
    if value is None:
        raise _not_found(instance_id)
    view = present.instance(state, value)
    if is_on_its_way(state, value):
        raise ApiError(
            504,
            "not_ready",
            f"instance {instance_id} is {view['status']} after {timeout_s:g} s with {view['loaded_layers']} of "
            f"{view['layer_count']} layers loaded; wait again, or see GET /instance/{instance_id}",
            extra={"loaded_layers": view["loaded_layers"], "layer_count": view["layer_count"]},
        )
    return json_answer(view)


@router.delete(
    "/instance/{instance_id}",
    operation_id="delete_instance",
    response_model=InstanceDeleted,
    responses=problems(403, 404, 503),
)
async def delete_instance(instance_id: InstanceIdPath, context: Context) -> Response:
    """Stop an instance and forget it."""
    value = context.coordinator.state.instances.get(InstanceId(instance_id))
    if value is not None:
        require_instance(present_caller(), value)
    command = DeleteInstance(command_id=new_command_id(), instance_id=InstanceId(instance_id))
    reply = await send_command(context, command)
    if not isinstance(reply, Deleted):
        unexpected(command, reply)
    return json_answer({"index": reply.index, "instance_id": reply.instance_id})


def _not_found(instance_id: str) -> ApiError:
    return ApiError(
        404,
        "instance_not_found",
        f"there is no instance {instance_id!r}; GET /instance lists those there are",
    )
