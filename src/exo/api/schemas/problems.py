"""Shapes of what goes wrong: Problem Details (RFC 9457) on exo's own routes, OpenAI's errors under /v1."""

from pydantic import ConfigDict

from exo.api.schemas.base import Shape


class NodeMemoryView(Shape):
    """One row of a refusal for want of memory."""

    node_id: str
    name: str
    free_bytes: int | None
    needed_bytes: int


class RefusalView(Shape):
    """Why something is not done."""

    status: int
    code: str
    """Constant, for programs."""
    message: str
    """One sentence, with the next step in it."""
    near_matches: list[str]
    needed_bytes: int | None
    missing_bytes: int | None
    nodes: list[NodeMemoryView]


class FieldProblem(Shape):
    """One field that cannot be read."""

    field: str
    """Path of the field, such as `layer_split.0`."""
    message: str


class Problem(Shape):
    """Problem Details (RFC 9457). The fields after `code` are there only where they apply."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "there is no model 'exo-tny'; did you mean exo-tiny?",
                    "code": "model_not_found",
                    "near_matches": ["exo-tiny"],
                }
            ]
        },
        json_schema_serialization_defaults_required=False,
    )

    type: str
    title: str
    status: int
    detail: str
    """One sentence, with the next step in it."""
    code: str
    """Constant, for programs."""
    near_matches: list[str] = []
    needed_bytes: int | None = None
    missing_bytes: int | None = None
    nodes: list[NodeMemoryView] = []
    errors: list[FieldProblem] = []
    loaded_layers: int | None = None
    """How far an instance is that was not ready in time."""
    layer_count: int | None = None


class OpenAIErrorDetail(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Shape):
    """An error in the shape that OpenAI's client libraries expect."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "there is no model 'exo-tny'; did you mean exo-tiny?",
                        "type": "invalid_request_error",
                        "param": "model",
                        "code": "model_not_found",
                    }
                }
            ]
        }
    )

    error: OpenAIErrorDetail
