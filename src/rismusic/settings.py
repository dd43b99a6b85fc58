"""What all settings have in common: frozen pydantic models whose errors are one sentence, and TOML files.

The module does not import torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tomlkit.exceptions import TOMLKitError

from rismusic.errors import InputError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
S = TypeVar("S", bound="Spec")
Number = TypeVar("Number", int, float)


class Spec(BaseModel):
    """A frozen part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    section: ClassVar[str] = ""

    def __init__(self, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _input_error(error, self.section) from None

    def replace(self: S, **settings: object) -> S:
        """The same settings but for those named, checked anew.

        Raises:
            InputError: a setting is unknown or impossible.
        """
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**kept, **settings})


def limits(value: Number | tuple[Number, Number]) -> tuple[Number, Number]:
    """The two limits of a setting that is one value or a pair."""
    return value if isinstance(value, tuple) else (value, value)


def read_toml(path: str | Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        InputError: the file is missing or is no TOML.
    """
    path = Path(path)
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except OSError as error:
        reason = (error.strerror or "an unreadable one").lower()
        raise InputError(str(path), "a readable TOML file", reason) from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise InputError(str(path), "a TOML file", f"a file that does not parse ({error})") from None


def dump_spec(spec: Spec) -> str:
    """The spec as TOML text, from which an equal spec can be made."""
    return tomlkit.dumps(spec.model_dump(mode="json"))


def _input_error(error: ValidationError, section: str) -> InputError:
    """The first complaint of pydantic as one sentence."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    # A setting that takes a value or a pair reports both attempts; the names of the types are no part of it.
    types = re.compile(r"[\[(]|^(constrained-.*|int|float|tuple|literal)$")
    names = [section, *(part for part in first["loc"] if isinstance(part, str) and not types.search(part))]
    field = ".".join(name for name in names if name)
    if first["type"] == "extra_forbidden":
        return InputError(field, "a known setting", "an unknown one")
    expected = first["msg"].removeprefix("Input should be ").replace("greater than or equal to", "at least")
    return InputError(field, expected.replace("greater than", "more than"), repr(first["input"]))
