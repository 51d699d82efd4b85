"""How routes answer: JSON from msgspec in one step, and what the documentation says of errors."""

from typing import Any

import msgspec
from fastapi import Response

from exo.api.schemas.problems import OpenAIError, Problem

Responses = dict[int | str, dict[str, Any]]

_MEANINGS = {
    400: "The request cannot be carried out as it is",
    404: "There is no such thing; near matches are named",
    409: "In conflict with the present state; it would be possible later",
    422: "The request cannot be read, or can never be met here; sizes say by how much",
    429: "The queue is full; try again after `Retry-After` seconds",
    503: "No master, or the model cannot be served now; try again after `Retry-After` seconds",
    504: "Not ready within the time given",
}


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a value of structs, dictionaries and lists as JSON."""
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


def problems(*statuses: int) -> Responses:
    """Describe errors of exo's own routes."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}


def openai_errors(*statuses: int) -> Responses:
    """Describe errors of the OpenAI dialect."""
    return {status: {"model": OpenAIError, "description": _MEANINGS[status]} for status in statuses}
