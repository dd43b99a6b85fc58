"""Sweeps: several values of one setting, or of several settings that change together.

On the command line a setting with several values makes a sweep: ``--panel.rows 8 12 16``. The values of
several such settings are paired in order, as in ``--panel.rows 8 12 16 --panel.columns 8 12 16``.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rismusic.errors import InputError
from rismusic.spec import LinkBudgetSpec, Spec, SystemSpec

Value = int | float | str


@dataclass(frozen=True)
class SweepPoint:
    """The settings at one point of a sweep.

    Args:
        label: the values as text; empty without a sweep.
        system: the system.
        budget: its link budget.
    """

    label: str
    system: SystemSpec
    budget: LinkBudgetSpec


def sweep_points(
    sweep: Mapping[str, Sequence[Value]], system: SystemSpec, budget: LinkBudgetSpec | None = None
) -> list[SweepPoint]:
    """Systems of a sweep; the system itself if the sweep is empty.

    Args:
        sweep: values of each swept setting, such as ``{"panel.rows": (8, 12)}``; those of several settings
            are paired in order. Settings of the link budget are named as in ``budget.bandwidth_hz``.
        system: the settings that stay fixed.
        budget: link budget; the default one if omitted.

    Raises:
        InputError: an unknown setting, an invalid value, or settings with different numbers of values.
    """
    budget = budget or LinkBudgetSpec()
    lengths = {name: len(values) for name, values in sweep.items()}
    first, *others = lengths or {"": 1}
    for name in others:
        if lengths[name] != lengths[first]:
            raise InputError(
                name,
                f"settings that are swept together need equally many values; got {lengths[name]}, and "
                f"{lengths[first]} of {first}",
            )
    points = []
    for place in range(lengths.get(first, 1)):
        values = {name: of_setting[place] for name, of_setting in sweep.items()}
        of_budget = {
            name.partition(".")[2]: value for name, value in values.items() if name.startswith("budget.")
        }
        of_system = {name: value for name, value in values.items() if not name.startswith("budget.")}
        label = ", ".join(map(label_of, values.values()))
        points.append(SweepPoint(label, changed_system(system, of_system), budget.replace(**of_budget)))
    return points


def changed_system(system: SystemSpec, settings: Mapping[str, Value]) -> SystemSpec:
    """A copy of a system with some settings changed, given by their dotted names.

    Raises:
        InputError: an unknown setting, or an invalid value.
    """
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        part, dot, leaf = name.rpartition(".")
        if not dot:
            changes[name] = value
        elif isinstance(getattr(system, part, None), Spec):
            changes.setdefault(part, {})[leaf] = value
        else:
            raise InputError(
                "sweep", f"{name!r} is not a setting of the system, such as scene.separation_deg"
            )
    # All settings of a table at once: two limits may move past each other's old value.
    tables = {
        name: getattr(system, name).replace(**value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return system.replace(**tables)


def label_of(value: Value) -> str:
    """A value as text."""
    return value if isinstance(value, str) else f"{value:g}"
