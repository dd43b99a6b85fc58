"""Typed records of files that this package writes and reads again, checked by pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

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
    """The first complaint of pydantic in plain words, with the name of the field."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] in ("json_invalid", "value_error"):
        text = first["msg"].removeprefix("Value error, ").replace("Invalid JSON", "no JSON")
    else:
        text = f"expected {expected(first)}"
    return f"{where}: {text}" if where else text


def expected(error: Mapping[str, Any]) -> str:
    """What pydantic expected of a value, without the names of Python's types, as the end of "expected ...".

    Args:
        error: one of ``ValidationError.errors()``.
    """
    words, limits = _WORDS.get(error["type"]), error.get("ctx", {})
    if words is not None:
        return words
    for bound, name in (("at least", "min_length"), ("at most", "max_length")):
        if error["type"] in ("too_short", "too_long") and name in limits:
            count = limits[name]
            return f"{bound} {'one value' if count == 1 else f'{count} values'}"
    text: str = error["msg"].removeprefix("Input should be ")
    for long, short in (
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
        ("greater than", "more than"),
    ):
        text = text.replace(long, short)
    return text


_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "an integer"),
    "int_parsing_size": "an integer with fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "text"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list of values"),
    **dict.fromkeys(("dict_type", "model_type"), "values with names"),
    "path_type": "the name of a file or folder",
    "string_pattern_mismatch": "a name of another form",
    "extra_forbidden": "no value of this name",
}
