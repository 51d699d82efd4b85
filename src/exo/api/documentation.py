"""The OpenAPI document: FastAPI's, with the shapes that only streams carry, and errors as what they are."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from exo.api.access_scopes import ROUTE_SCOPES, needed_scope
from exo.api.schemas.openai import ChatCompletionChunk, Completion
from exo.api.schemas.service import DecisionMessage, TelemetryMessage

_STREAMED = (ChatCompletionChunk, Completion, DecisionMessage, TelemetryMessage)
_PROBLEM = "#/components/schemas/Problem"
_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `exo-<id>-<secret>`."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the document of all routes."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        license_info=app.license_info,
    )
    schemas: dict[str, Any] = document["components"]["schemas"]
    _, streamed = models_json_schema(
        [(model, "serialization") for model in _STREAMED], ref_template="#/components/schemas/{model}"
    )
    for name, schema in streamed["$defs"].items():
        schemas.setdefault(name, schema)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _mend_errors(operation["responses"])
            _add_access(method, path, operation)
    document["components"]["securitySchemes"] = _SCHEMES
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _add_access(method: str, path: str, operation: dict[str, Any]) -> None:
    """Say which scope an operation needs. Programs on the node's own machine need no key."""
    # OpenAPI leaves the kind of a path's parameter out.
    templates = {template.replace(":path}", "}"): template for _, template in ROUTE_SCOPES}
    needed = needed_scope(method.upper(), templates.get(path, path))
    operation["x-exo-scope"] = needed
    if needed != "open":
        operation["security"] = [{}, {"bearer": []}, {"x-api-key": []}]


def _mend_errors(responses: dict[str, Any]) -> None:
    """Give Problem Details their own media type, and drop what FastAPI says of errors it does not make here."""
    for status, response in list(responses.items()):
        content = response.get("content", {})
        reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        if reference == _PROBLEM:
            content["application/problem+json"] = content.pop("application/json")
        elif reference.endswith("/HTTPValidationError"):
            del responses[status]
