"""Join tokens: made, listed, deleted."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from exo.api import present_access
from exo.api.access_callers import present_caller
from exo.api.context import Context
from exo.api.routes.answers import decided_index, json_answer, problems
from exo.api.routes.instances import new_command_id
from exo.api.schemas.access import Decided, TokenList, TokenMade, TokenWish
from exo.cluster.trust.certificates import to_der
from exo.cluster.trust.token import SECRET_BYTES, PlainToken, authority_hash, token_id, token_verifier
from exo.shared.types.access import TokenId
from exo.shared.types.commands import CreateToken, DeleteToken

router = APIRouter(tags=["access"])

TokenIdPath = Annotated[str, Field(description="Id of a token; not the token itself")]


@router.post(
    "/tokens",
    operation_id="create_token",
    status_code=201,
    response_model=TokenMade,
    responses=problems(409, 422, 503),
)
async def create_token(wish: TokenWish, context: Context) -> Response:
    """Make a token with which a node may join (`exo join TOKEN`). The token is in this answer and nowhere else."""
    secret = secrets.token_bytes(SECRET_BYTES)
    verifier = token_verifier(secret)
    new_id = TokenId(token_id(verifier))
    command = CreateToken(
        command_id=new_command_id(),
        token_id=new_id,
        verifier=verifier.hex(),
        lifetime_s=wish.lifetime_s,
        uses=wish.uses,
        created_by=present_caller().label,
    )
    index = await decided_index(context, command)
    access = context.coordinator.state.access
    assert access.authority_pem is not None, "a token was made without an authority"
    text = PlainToken(authority_hash(to_der(access.authority_pem)), secret).reveal()
    view = present_access.token(new_id, access.tokens[new_id])
    return json_answer({**view, "token": text, "index": index}, 201, {"Cache-Control": "no-store"})


@router.get("/tokens", operation_id="list_tokens", response_model=TokenList)
async def list_tokens(context: Context) -> Response:
    """All tokens, newest last, without what makes them tokens."""
    tokens = sorted(context.coordinator.state.access.tokens.items(), key=lambda one: one[1].created_at_s)
    return json_answer({"tokens": [present_access.token(key, value) for key, value in tokens]})


@router.delete(
    "/tokens/{token_id}", operation_id="delete_token", response_model=Decided, responses=problems(404, 503)
)
async def delete_token(token_id: TokenIdPath, context: Context) -> Response:
    """Delete a token: nobody joins with it any more. Who did stays."""
    command = DeleteToken(command_id=new_command_id(), token_id=TokenId(token_id))
    return json_answer({"index": await decided_index(context, command)})
