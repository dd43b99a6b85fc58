"""Typed records of files that this package writes and reads again, checked by pydantic."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rismusic.errors import InputError

R = TypeVar("R", bound="Record")

Natural = Annotated[int, Field(ge=0, lt=2**63)]
Number = float | Literal["nan", "inf", "-inf"] | None
"""A number of a JSON file, in which non-finite ones are text; none where there is no value."""


class Record(BaseModel):
    """One record of a file. Further names are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def parse_record(kind: type[R], content: str | bytes, source: str, expected: str) -> R:
    """Parse a record from JSON.

    Args:
        kind: its type.
        content: the JSON text.
        source: the file, for the error message.
        expected: what the content should be, such as "a training checkpoint".

    Raises:
        InputError: the content is not JSON or has other fields.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise InputError(source, f"is not {expected}, or it is damaged ({complaint(error)})") from None


def complaint(error: ValidationError) -> str:
    """The first complaint of pydantic, with the name of the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
