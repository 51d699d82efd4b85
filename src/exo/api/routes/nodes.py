"""Members of the cluster and those who want to become some; and this node's own wish to join another cluster."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query, Response
from pydantic import Field

from exo.api import present_access
from exo.api.access_callers import present_caller
from exo.api.access_join import PendingJoin, reason_not_to_join, write_pending_join
from exo.api.context import ApiContext, Context
from exo.api.errors import ApiError, from_refusal
from exo.api.routes.answers import decided_index, json_answer, problems
from exo.api.routes.instances import new_command_id
from exo.api.schemas.access import (
    ApprovalWish,
    Decided,
    DeclineWish,
    ForgetWish,
    JoinNoted,
    JoinWish,
    NodeList,
)
from exo.cluster.trust.errors import TokenError
from exo.cluster.trust.token import parse_token
from exo.settings import CLUSTER_PORT
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.forgetting import decide_forgetting
from exo.shared.types.commands import ApproveNode, DeclineNode, Done, ForgetNode, RemoveNode
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

router = APIRouter(tags=["access"])

NodeIdPath = Annotated[str, Field(description="Id of a node")]


@router.get("/nodes", operation_id="list_nodes", response_model=NodeList)
async def list_nodes(context: Context) -> Response:
    """Members, and nodes that want to join."""
    coordinator = context.coordinator
    return json_answer(present_access.members(coordinator.state, coordinator.leadership.master_node_id))


@router.post(
    "/nodes/{node_id}/approve",
    operation_id="approve_node",
    response_model=Decided,
    responses=problems(404, 409, 422, 503),
)
async def approve_node(node_id: NodeIdPath, wish: ApprovalWish, context: Context) -> Response:
    """Let a node join that wants to. It comes in when it asks again, within seconds if it runs."""
    command = ApproveNode(
        command_id=new_command_id(),
        node_id=NodeId(node_id),
        fingerprint=wish.fingerprint,
        approved_by=present_caller().label,
    )
    return json_answer({"index": await decided_index(context, command)})


@router.post(
    "/nodes/{node_id}/decline",
    operation_id="decline_node",
    response_model=Decided,
    responses=problems(404, 409, 422, 503),
)
async def decline_node(node_id: NodeIdPath, wish: DeclineWish, context: Context) -> Response:
    """Refuse a node that wants to join; for an hour it is not shown again."""
    command = DeclineNode(command_id=new_command_id(), node_id=NodeId(node_id), reason=wish.reason)
    return json_answer({"index": await decided_index(context, command)})


@router.delete(
    "/nodes/{node_id}",
    operation_id="remove_node",
    response_model=Decided,
    responses=problems(404, 409, 422, 503),
)
async def remove_node(
    node_id: NodeIdPath,
    context: Context,
    reason: Annotated[str, Query(max_length=128, description="Shown to the node")] = "",
) -> Response:
    """End a node's membership and revoke its certificates. What is placed on it fails."""
    command = RemoveNode(command_id=new_command_id(), node_id=NodeId(node_id), reason=reason)
    return json_answer({"index": await decided_index(context, command)})


@router.post(
    "/nodes/forget",
    operation_id="forget_nodes",
    response_model=Decided,
    responses=problems(404, 409, 422, 503),
)
async def forget_nodes(wish: ForgetWish, context: Context) -> Response:
    """Give up voters that are lost for good, so that this node goes on alone. What only they had is lost.

    Only without a master: with one, nothing has to be given up, and nodes are removed.
    """
    command = ForgetNode(
        command_id=new_command_id(), node_ids=tuple(NodeId(node_id) for node_id in wish.node_ids)
    )
    coordinator = context.coordinator
    refusal_or_voters = decide_forgetting(
        coordinator.state,
        command,
        own_node_id=coordinator.node_id,
        has_master=coordinator.leadership.master_node_id is not None,
    )
    if not isinstance(refusal_or_voters, tuple):
        await context.desk.note(command, present_caller(), refusal_or_voters)
        raise from_refusal(refusal_or_voters)
    try:
        index = await coordinator.forget(refusal_or_voters)
    except ExoError as error:
        code = "no_master" if isinstance(error, NoMasterError) else "not_possible_here"
        await context.desk.note(command, present_caller(), None, code=code)
        raise ApiError(503 if code == "no_master" else 409, code, error.message) from error
    await context.desk.note(command, present_caller(), Done(index=index))
    return json_answer({"index": index})


@router.post(
    "/access/join", operation_id="join_cluster", response_model=JoinNoted, responses=problems(409, 422)
)
async def join_cluster(wish: JoinWish, context: Context) -> Response:
    """Have this node join the cluster that a token is for, or ask one to let it in."""
    try:
        token = None if wish.token is None else parse_token(wish.token)
        address = None if wish.address is None else str(HostPort.parse(wish.address, CLUSTER_PORT))
    except TokenError as error:
        raise ApiError(422, "token_malformed", error.message, param="token") from error
    except ValueError as error:
        raise ApiError(422, "address_malformed", str(error), param="address") from error
    coordinator = context.coordinator
    has_master = coordinator.leadership.master_node_id is not None
    authority_hash = None if token is None else token.authority_hash
    reason = reason_not_to_join(coordinator.state, authority_hash, has_master=has_master)
    noted = {"authority_hash": authority_hash, "cluster_address": address}
    if reason is not None:
        await context.desk.note_action("JoinCluster", noted, code="cannot_join")
        raise ApiError(409, "cannot_join", reason)
    await _leave_token(context, PendingJoin(token=None if token is None else token.reveal(), address=address))
    await context.desk.note_action("JoinCluster", noted)
    wanted = context.actions.join_wanted
    if wanted is not None:
        wanted()
    return json_answer({"authority_hash": authority_hash, "is_used_now": wanted is not None})


async def _leave_token(context: ApiContext, pending: PendingJoin) -> None:
    await anyio.to_thread.run_sync(write_pending_join, context.settings.home, pending)
