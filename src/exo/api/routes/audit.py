"""The audit log of the node that is asked: its newest lines, and whether all of them are there."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from exo.api.context import Context
from exo.api.routes.answers import json_answer, problems
from exo.api.schemas.access import AuditList, AuditVerification

router = APIRouter(tags=["access"])

LINES_MAX = 1000
NUMBER_MAX = 2**63 - 1


@router.get("/audit", operation_id="list_audit", response_model=AuditList, responses=problems(422))
async def list_audit(
    context: Context,
    limit: Annotated[int, Query(ge=1, le=LINES_MAX)] = 100,
    after: Annotated[
        int | None, Query(ge=0, le=NUMBER_MAX, description="Only lines behind this number, the oldest first")
    ] = None,
) -> Response:
    """The last lines of this node's audit log, oldest first: commands that it took, and requests it refused."""
    return json_answer({"entries": await context.audit.entries(limit=limit, after=after)})


@router.get("/audit/verification", operation_id="verify_audit", response_model=AuditVerification)
async def verify_audit(context: Context) -> Response:
    """Whether every line of this node's audit log follows the one before it."""
    found = await context.audit.verify()
    return json_answer(
        {
            "is_whole": not found.problems,
            "line_count": found.line_count,
            "first_seq": found.first_seq,
            "last_seq": found.last_seq,
            "problems": found.problems,
        }
    )
