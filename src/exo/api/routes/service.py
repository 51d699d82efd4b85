"""The service's own routes: is it there, can it work, how is it doing."""

import anyio.to_thread
from fastapi import APIRouter, Response

from exo.api.context import Context
from exo.api.errors import ApiError
from exo.api.metrics import CONTENT_TYPE
from exo.api.routes.answers import json_answer, problems
from exo.api.schemas.service import Health, Readiness

router = APIRouter(tags=["service"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", operation_id="get_health", response_model=Health)
async def get_health(context: Context) -> Response:
    """The process answers."""
    started = context.started
    return json_answer(
        {
            "status": "ok",
            "node_id": started.node_id,
            "exo_version": started.exo_version,
            "started_at": started.started_at,
        }
    )


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", operation_id="get_readiness", response_model=Readiness, responses=problems(503))
async def get_readiness(context: Context) -> Response:
    """Whether this node is a member of a cluster whose state it knows."""
    state = context.coordinator.state
    node_id = context.started.node_id
    if node_id not in state.nodes:
        raise ApiError(
            503, "not_ready", "this node is not a member of a cluster yet; it is looking for a master"
        )
    return json_answer(
        {
            "status": "ready",
            "node_id": node_id,
            "index": state.index,
            "master_node_id": context.coordinator.leadership.master_node_id,
        }
    )


@router.get(
    "/metrics",
    operation_id="get_metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(context: Context) -> Response:
    """Prometheus's text format. Values that are not known are absent."""
    body = await anyio.to_thread.run_sync(context.metrics.render, context.coordinator.peers_seen)
    return Response(body, headers={"Content-Type": CONTENT_TYPE})
