"""Errors as answers: Problem Details on exo's own routes, OpenAI's shape under /v1, always before a body starts."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.responses import Response

from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Refusal

RETRY_AFTER_S = 1

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Raised when a request is answered with an error.

    Args:
        status: The HTTP status.
        code: Constant, for programs.
        message: One sentence for people, with the next step in it.
        param: The field that is wrong, where it is one.
        extra: Further members of the Problem Details.
        headers: Of the answer, beside the usual ones.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})


def from_refusal(refusal: Refusal) -> ApiError:
    """Return a refusal of the master as an answer, with its numbers."""
    extra: dict[str, Any] = {}
    if refusal.near_matches:
        extra["near_matches"] = refusal.near_matches
    if refusal.needed_bytes is not None:
        extra["needed_bytes"] = refusal.needed_bytes
    if refusal.missing_bytes is not None:
        extra["missing_bytes"] = refusal.missing_bytes
    if refusal.nodes:
        extra["nodes"] = refusal.nodes
    param = "model" if refusal.code == "model_not_found" else None
    return ApiError(refusal.status, refusal.code, refusal.message, param=param, extra=extra)


def is_openai_path(path: str) -> bool:
    """Say whether a path speaks OpenAI's dialect."""
    return path == "/v1" or path.startswith("/v1/")


def error_response(path: str, error: ApiError) -> Response:
    """Return the error in the dialect of the path it happened on."""
    retry = {"Retry-After": str(RETRY_AFTER_S)} if error.status in (429, 503) else {}
    headers = {**retry, **error.headers}
    if is_openai_path(path):
        return Response(
            openai_error_body(error), error.status, headers=headers, media_type="application/json"
        )
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _title(error.status),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        **error.extra,
    }
    return Response(
        msgspec.json.encode(body), error.status, headers=headers, media_type="application/problem+json"
    )


def openai_error_body(error: ApiError) -> bytes:
    """Return `{"error": {...}}` as OpenAI's client libraries expect it."""
    usual = "invalid_request_error" if error.status < 500 else "server_error"
    kind = _OPENAI_TYPES.get(error.status, usual)
    detail = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": detail})


def add_error_handlers(app: FastAPI) -> None:
    """Teach the application to answer every error in the dialect of its path."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(NoMasterError, _on_no_master)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unexpected)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.url.path, error)


async def _on_no_master(request: Request, error: Exception) -> Response:
    assert isinstance(error, NoMasterError)
    return error_response(request.url.path, ApiError(503, "no_master", error.message))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    path = request.url.path
    found = [{"field": _field(item["loc"]), "message": str(item["msg"])} for item in error.errors()]
    first = found[0] if found else {"field": "", "message": "the request cannot be read"}
    message = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    if len(found) > 1:
        message += f" (and {len(found) - 1} more)"
    status = 400 if is_openai_path(path) else 422
    return error_response(
        path,
        ApiError(status, "invalid_request", message, param=first["field"] or None, extra={"errors": found}),
    )


def _field(location: Sequence[int | str]) -> str:
    """Return the path of a field for people; positions inside malformed JSON are left to the message."""
    parts = [str(part) for part in location if part not in ("body", "query", "path")]
    # Which form of a field was meant, such as `(text)`, is no part of its path.
    parts = [part for part in parts if not part.startswith("(")]
    return "" if len(parts) == 1 and parts[0].isdecimal() else ".".join(parts)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is no {request.url.path} here; all routes are listed at /docs",
        405: f"{request.method} is not possible on {request.url.path}; all routes are listed at /docs",
    }
    codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
    code = codes.get(error.status_code, "http_error")
    message = messages.get(error.status_code, str(error.detail))
    response = error_response(request.url.path, ApiError(error.status_code, code, message))
    for key, value in (error.headers or {}).items():
        response.headers[key] = value
    return response


async def _on_unexpected(request: Request, error: Exception) -> Response:
    logger.opt(exception=error).error("{} {} failed", request.method, request.url.path)
    message = "something went wrong inside exo; its log has the details"
    return error_response(request.url.path, ApiError(500, "internal_error", message))
