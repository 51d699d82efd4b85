"""How routes answer: JSON from msgspec in one step, and what the documentation says of errors."""

from typing import Any

import msgspec
from fastapi import Response

from exo.api.context import ApiContext
from exo.api.errors import from_refusal
from exo.api.schemas.problems import OpenAIError, Problem
from exo.shared.types.commands import AccessCommand, Done, Refusal

ACCESS_TIMEOUT_S = 30.0

Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "The request cannot be carried out as it is",
    403: "The key is not for these devices",
    404: "There is no such thing; near matches are named",
    409: "In conflict with the present state; it would be possible later",
    422: "The request cannot be read, or can never be met here; sizes say by how much",
    429: "The queue is full, or a quota of the key is used up; try again after `Retry-After` seconds",
    501: "What keeps this cluster's decisions cannot do that",
    503: "No master, or the model cannot be served now; try again after `Retry-After` seconds",
    504: "Not ready within the time given",
}


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a value of structs, dictionaries and lists as JSON."""
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


async def decided_index(context: ApiContext, command: AccessCommand) -> int:
    """Have the master carry out a command about access; return the index of the decision.

    Raises:
        ApiError: It is refused.
        NoMasterError: There is no master.
    """
    reply = await context.desk.send(command, timeout_s=ACCESS_TIMEOUT_S)
    if isinstance(reply, Refusal):
        raise from_refusal(reply)
    if not isinstance(reply, Done):
        raise RuntimeError(f"{type(command).__name__} was answered with {type(reply).__name__}")
    return reply.index


def problems(*statuses: int) -> Responses:
    """Describe errors of exo's own routes."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}


def openai_errors(*statuses: int) -> Responses:
    """Describe errors of the OpenAI dialect."""
    return {status: {"model": OpenAIError, "description": _MEANINGS[status]} for status in statuses}
