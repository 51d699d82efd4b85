"""Asking placement without deciding anything: ways side by side, what-if, and why an instance is where it is."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from msgspec.structs import replace

from exo.api import present, present_planning
from exo.api.access_callers import present_caller
from exo.api.access_devices import require_instance, with_own_remedy
from exo.api.context import Context
from exo.api.routes.answers import json_answer, problems
from exo.api.routes.instances import (
    InstanceIdPath,
    new_command_id,
    placement_request,
    send_command,
    unexpected,
)
from exo.api.schemas.instances import PreviewList, PreviewWish
from exo.api.schemas.planning import KnownDeviceList, PlannedView, PlanWish, WhyView, WishedMachineWish
from exo.shared.device_figures import catalogue
from exo.shared.types.commands import (
    ExplainInstance,
    Planned,
    PlanPlacement,
    PreviewPlacements,
    Previews,
    Why,
)
from exo.shared.types.ids import InstanceId
from exo.shared.types.what_if import Change, WishedDevice, WishedMachine

router = APIRouter(tags=["instances"])

INDEX_MAX = 2**63 - 1


@router.get(
    "/instance/previews",
    operation_id="preview_placements",
    response_model=PreviewList,
    responses=problems(403, 404, 422, 503),
)
async def preview_placements(wish: Annotated[PreviewWish, Query()], context: Context) -> Response:
    """Several ways to place a model side by side, each with its plan or its refusal. Decides nothing.

    Ways that come to the same plan are one, with all their titles.
    """
    command = PreviewPlacements(command_id=new_command_id(), request=placement_request(wish, context))
    reply = await send_command(context, command)
    if not isinstance(reply, Previews):
        unexpected(command, reply)
    previews = [
        with_own_remedy(present_caller(), value, context.coordinator.state) for value in reply.previews
    ]
    return json_answer({"previews": [present.preview(value) for value in previews]})


@router.post(
    "/instance/plan",
    operation_id="plan_instance",
    response_model=PlannedView,
    responses=problems(403, 404, 422, 503),
)
async def plan_instance(wish: PlanWish, context: Context) -> Response:
    """What `POST /instance` would decide, without deciding it: the plan or the refusal that it would answer with.

    With `without`, `machines` or `instead`: on the cluster as it would be, compared with the cluster as it is. Only
    where the question itself makes no sense (an unknown node, a device that nobody knows) is the answer an error.
    """
    command = PlanPlacement(
        command_id=new_command_id(),
        request=placement_request(wish, context),
        change=Change(
            without=tuple(wish.without),
            machines=tuple(_machine(one) for one in wish.machines),
            instead=tuple(wish.instead),
        ),
    )
    reply = await send_command(context, command)
    if not isinstance(reply, Planned):
        unexpected(command, reply)
    answer = with_own_remedy(present_caller(), reply.answer, context.coordinator.state)
    return json_answer(present_planning.planned(replace(reply, answer=answer)))


@router.get("/devices/known", operation_id="list_known_devices", response_model=KnownDeviceList)
async def list_known_devices() -> Response:
    """The devices whose figures are known by their names, for `machines` of `POST /instance/plan`."""
    return json_answer({"devices": present_planning.known_devices(catalogue())})


@router.get(
    "/instance/{instance_id}/why",
    operation_id="explain_instance",
    response_model=WhyView,
    responses=problems(403, 404, 422, 503),
)
async def explain_instance(
    instance_id: InstanceIdPath,
    context: Context,
    decision: Annotated[
        int | None, Query(ge=1, le=INDEX_MAX, description="Index of an earlier decision; the last otherwise")
    ] = None,
) -> Response:
    """Why an instance is where it is: the decision made again on what it was made on, and the alternatives.

    Each decision keeps what placement read of the cluster, telemetry included. Moved and deleted instances are
    explained as far back as the log reaches.
    """
    value = context.coordinator.state.instances.get(InstanceId(instance_id))
    if value is not None:
        require_instance(present_caller(), value)
    command = ExplainInstance(
        command_id=new_command_id(), instance_id=InstanceId(instance_id), decision_index=decision
    )
    reply = await send_command(context, command)
    if not isinstance(reply, Why):
        unexpected(command, reply)
    return json_answer(present_planning.why(reply))


def _machine(wish: WishedMachineWish) -> WishedMachine:
    return WishedMachine(
        name=wish.name,
        devices=tuple(
            WishedDevice(
                name=one.name,
                kind=one.kind,
                vendor=one.vendor,
                memory_kind=one.memory_kind,
                memory_total_bytes=one.memory_total_bytes,
                memory_bandwidth_bytes_per_s=one.memory_bandwidth_bytes_per_s,
                flops_per_s=one.flops_per_s,
                compute_units=one.compute_units,
            )
            for one in wish.devices
        ),
        zone=wish.zone,
        link_mbps=wish.link_mbps,
        link_latency_ms=wish.link_latency_ms,
    )
