"""API keys: made, listed, deleted."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from exo.api import present_access
from exo.api.access_callers import present_caller
from exo.api.access_keys import create_key as new_key
from exo.api.context import Context
from exo.api.routes.answers import decided_index, json_answer, problems
from exo.api.routes.instances import new_command_id
from exo.api.schemas.access import Decided, KeyList, KeyMade, KeyWish
from exo.shared.types.access import KeyId, KeyLimits
from exo.shared.types.commands import CreateKey, DeleteKey
from exo.shared.types.ids import DeviceId

router = APIRouter(tags=["access"])

KeyIdPath = Annotated[str, Field(description="Id of a key; not the key itself")]


@router.post(
    "/keys",
    operation_id="create_key",
    status_code=201,
    response_model=KeyMade,
    responses=problems(409, 422, 503),
)
async def create_key(wish: KeyWish, context: Context) -> Response:
    """Make an API key. The key is in this answer and nowhere else."""
    made = new_key()
    command = CreateKey(
        command_id=new_command_id(),
        key_id=made.key_id,
        hash=made.hash,
        name=wish.name,
        scopes=tuple(wish.scopes),
        lifetime_s=wish.lifetime_s,
        created_by=present_caller().label,
        limits=KeyLimits(
            requests_per_minute=wish.requests_per_minute,
            tokens_per_day=wish.tokens_per_day,
            device_ids=tuple(DeviceId(device_id) for device_id in wish.device_ids),
        ),
    )
    index = await decided_index(context, command)
    value = context.coordinator.state.access.keys[made.key_id]
    view = present_access.key(made.key_id, value, context.now_s())
    return json_answer({**view, "key": made.reveal(), "index": index}, 201, {"Cache-Control": "no-store"})


@router.get("/keys", operation_id="list_keys", response_model=KeyList)
async def list_keys(context: Context) -> Response:
    """All API keys, newest last, without what makes them keys."""
    keys = sorted(context.coordinator.state.access.keys.items(), key=lambda one: one[1].created_at_s)
    now_s = context.now_s()
    return json_answer({"keys": [present_access.key(key_id, value, now_s) for key_id, value in keys]})


@router.delete(
    "/keys/{key_id}", operation_id="delete_key", response_model=Decided, responses=problems(404, 503)
)
async def delete_key(key_id: KeyIdPath, context: Context) -> Response:
    """Delete a key: it lets nobody in any more."""
    command = DeleteKey(command_id=new_command_id(), key_id=KeyId(key_id))
    return json_answer({"index": await decided_index(context, command)})
