"""What all shapes of the API have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """An answer. Every field is always there; what is not known is null."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_serialization_defaults_required=True
    )


class Wish(BaseModel):
    """A request's body on exo's own routes: right types, and no field that nobody reads."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, strict=True, extra="forbid")


class ClientWish(BaseModel):
    """A request's body in another project's dialect: right types, fields that are not known here are passed over."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, strict=True, extra="ignore")


Json = dict[str, Any]
