"""What is searched, as data: dotted names of settings, each with its limits or its choices.

::

    [training."network.width"]
    choices = [24, 32, 48]

    [training."loss.subspace"]
    low = 0.01
    high = 0.2
    log = true
    also = ["loss.subspace_last"]

    [locate."hybrid.beta"]
    low = 0.0
    high = 0.6

Limits that are both whole numbers make whole numbers. ``also`` names settings that get the same value; a
setting that is a pair gets it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.spec import LocateSpec, Spec, read_toml

Value: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr
Values: TypeAlias = Mapping[str, Any]
S = TypeVar("S", bound=Spec)

SHIPPED = Path(__file__).parent / "spaces"


class Knob(Spec):
    """One setting that is searched: between limits, or among choices."""

    low: StrictInt | StrictFloat | None = None
    """Least value."""
    high: StrictInt | StrictFloat | None = None
    """Greatest value."""
    log: bool = False
    """Whether equal ratios are equally likely, in place of equal differences."""
    step: StrictInt | StrictFloat | None = None
    """Distance between two values; any if none (1 for whole numbers)."""
    choices: tuple[Value, ...] = ()
    """The values, in place of limits."""
    also: tuple[str, ...] = ()
    """Settings that get the same value."""

    @model_validator(mode="after")
    def _one_kind(self) -> Knob:
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise InputError("choices", "no limits beside them", "some")
            return self
        if self.low is None or self.high is None:
            raise InputError("low, high", "both limits, or choices", "fewer")
        if self.high < self.low:
            raise InputError("high", f"at least low = {self.low:g}", f"{self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise InputError("log", "a positive low and no step", f"low = {self.low:g}, step = {self.step}")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, or both limits."""
        return self.choices or (self.low, self.high)


class Space(Spec):
    """Everything that is searched."""

    training: dict[str, Knob] = Field(default_factory=dict)
    """Settings of :class:`~rismusic.nn.spec.TrainSpec`, one value for each training."""
    locate: dict[str, Knob] = Field(default_factory=dict)
    """Settings of :class:`~rismusic.spec.LocateSpec`, tried on each trained network."""

    def check(self, training: TrainSpec, locate: LocateSpec) -> None:
        """Refuse a space with a name or a limit that is none of the settings'.

        Raises:
            InputError: the name of the knob, and what is wrong with it.
        """
        parts: list[tuple[str, dict[str, Knob], Spec]] = [
            ("training", self.training, training),
            ("locate", self.locate, locate),
        ]
        if not self.training:
            raise InputError("space", "at least one setting of the training", "none")
        for part, knobs, spec in parts:
            for name, knob in knobs.items():
                for end in knob.ends:
                    try:
                        apply(spec, knobs, {name: end})
                    except InputError as error:
                        raise InputError(f"space.{part}.{name}", error.problem) from None


def load_space(name: str) -> Space:
    """A space that is shipped (``narrow``, ``wide``), or that of a TOML file.

    Raises:
        InputError: no such file, or no space in it.
    """
    path = Path(name)
    if path.suffix != ".toml":
        shipped = sorted(one.stem for one in SHIPPED.glob("*.toml"))
        if name not in shipped:
            raise InputError("space", f"{', '.join(shipped)} or a .toml file", repr(name))
        path = SHIPPED / f"{name}.toml"
    return Space(**read_toml(path))


def apply(spec: S, knobs: Mapping[str, Knob], values: Values) -> S:
    """Settings with the values of some knobs.

    Raises:
        InputError: an unknown setting, or an impossible one.
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        for each in (name, *knobs[name].also):
            *parents, last = each.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = value
    return _changed(spec, tree, "")


def _changed(spec: S, tree: Mapping[str, Any], prefix: str) -> S:
    """All settings of one part at once, so that those that bear on each other fit."""
    changes: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in type(spec).model_fields:
            raise InputError(prefix + name, "a known setting", "an unknown one")
        now = getattr(spec, name)
        if isinstance(value, Mapping):
            if not isinstance(now, Spec):
                raise InputError(prefix + name, "a setting without parts", "parts")
            changes[name] = _changed(now, value, f"{prefix}{name}.")
        elif isinstance(now, Spec):
            raise InputError(prefix + name, "the name of one setting", "a group of them")
        else:
            changes[name] = (value, value) if isinstance(now, tuple) else value
    return spec.replace(**changes)
