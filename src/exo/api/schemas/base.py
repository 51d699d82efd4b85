"""What all shapes of the API have in common."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


def _require_encodable(value: Any) -> Any:
    """Refuse half a surrogate pair: JSON can spell it, but nothing behind the API can be told it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PydanticCustomError(
                "text_not_encodable",
                "the character at position {position} is half of a surrogate pair; send whole characters",
                {"position": error.start},
            ) from None
    return value


Text = Annotated[str, BeforeValidator(_require_encodable)]
"""What every text of a request is: one that can be written as UTF-8."""


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
