"""Reading the cluster: its state, its devices, its models."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from exo.api import present
from exo.api.context import Context
from exo.api.errors import ApiError
from exo.api.routes.answers import json_answer, problems
from exo.api.schemas.cluster import ClusterStateView, GpuInfoView, PeerList
from exo.api.schemas.models import ModelList
from exo.shared.errors import NoMasterError

router = APIRouter(tags=["cluster"])


CONFIRM_TIMEOUT_S = 5.0
"""Longer than an election takes, so that a read is not refused while a master is replaced."""


@router.get("/state", operation_id="get_state", response_model=ClusterStateView, responses=problems(503))
async def get_state(
    context: Context,
    confirm: Annotated[
        bool,
        Query(
            description="Have a majority confirm first that there is a master, so that the answer holds everything "
            "that anybody was told was decided before the request; 503 where that cannot be had."
        ),
    ] = False,
) -> Response:
    """The whole state, as folded on this node. At equal `index` the decided part is equal on every node."""
    coordinator = context.coordinator
    if confirm:
        try:
            await coordinator.confirm(timeout_s=CONFIRM_TIMEOUT_S)
        except NoMasterError as error:
            raise ApiError(503, "no_master", error.message) from error
    encoded = context.state_cache.encode(coordinator.state, coordinator.leadership.master_node_id)
    return Response(encoded, media_type="application/json")


@router.get("/gpu/info", operation_id="get_gpu_info", response_model=GpuInfoView)
async def get_gpu_info(context: Context) -> Response:
    """Every node's devices with telemetry, health, what instances hold of them, and heat."""
    return json_answer(present.gpu_info(context.coordinator.state))


@router.get("/models", operation_id="list_models", response_model=ModelList)
async def list_models(context: Context) -> Response:
    """Every model that any node has on its disk, with its problem where it cannot be loaded."""
    return json_answer({"models": present.models(context.coordinator.state)})


@router.get("/peers", operation_id="list_peers", response_model=PeerList)
async def list_peers(context: Context) -> Response:
    """Other nodes that this one has noticed, and for those that are not members: why not, and what to do."""
    return json_answer({"peers": context.coordinator.peers_seen})
