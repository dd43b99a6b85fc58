"""Planting a mistake: names in the code under test are replaced temporarily."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from rismusic.nn.spec import NetworkSpec, ScheduleSpec, TrainSpec
from rismusic.spec import ChannelSpec, CodebookSpec, PanelSpec, SystemSpec

Plant = Callable[[TrainSpec], AbstractContextManager[TrainSpec]]


@dataclass(frozen=True)
class Fault:
    """A mistake to plant.

    Args:
        number: number in the list of known mistakes (DESIGN.md, section 5); 0 for one that is not on it.
        name: short name.
        mistake: description in a sentence.
        words: phrases that the text of a finding must all contain to name the cause; of a tuple, one of them.
        plant: plants the mistake into a training with given settings, and returns the settings to diagnose.
    """

    number: int
    name: str
    mistake: str
    words: tuple[str | tuple[str, ...], ...]
    plant: Plant


def healthy(seed: int = 0) -> TrainSpec:
    """Settings of a small training without mistakes."""
    return TrainSpec(
        system=SystemSpec(
            panel=PanelSpec(rows=6, columns=6),
            channel=ChannelSpec(antennas=8),
            codebook=CodebookSpec(snapshots=8),
            sources=(1, 2),
            snr_db=(5.0, 20.0),
        ),
        network=NetworkSpec(sources_max=2, oversampling=1.3, stages=2, depth=1, width=16, kernel=3, heads=2),
        schedule=ScheduleSpec(epochs=4),
        scenes_per_epoch=256,
        batch=32,
        validation_scenes=64,
        scored_scenes=16,
        average_decay=0.9,
        backbone_learning_rate=2e-3,
        head_learning_rate=8e-3,
        seed=seed,
    )


@contextmanager
def attribute(holder: Any, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a class, a module or an object temporarily."""
    own = name in vars(holder)
    before = vars(holder).get(name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if own:
            setattr(holder, name, before)
        else:
            delattr(holder, name)


@contextmanager
def everywhere(original: object, substitute: object) -> Iterator[None]:
    """Replace a function in every module of the package except the doctor."""
    held = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.startswith("rismusic.") and not key.startswith("rismusic.doctor")
        for name, value in list(vars(module).items())
        if value is original
    ]
    for module, name in held:
        setattr(module, name, substitute)
    try:
        yield
    finally:
        for module, name in held:
            setattr(module, name, original)


def _in_place_of(original: Callable[..., Any], wrong: Callable[..., Any]) -> Callable[..., Any]:
    """``wrong(original, *arguments)`` with name and parameters of a function, which the doctor looks at."""
    own = inspect.unwrap(original)
    parameters = inspect.signature(own).parameters.values()

    def call(given: dict[str, Any]) -> Any:
        told = [one for one in parameters if one.default is one.empty or given[one.name] is not one.default]
        named = {one.name: given[one.name] for one in told if one.kind is one.KEYWORD_ONLY}
        return wrong(original, *(given[one.name] for one in told if one.name not in named), **named)

    heads = [
        one.name + ("" if one.default is one.empty else f"=_defaults[{one.name!r}]") for one in parameters
    ]
    kinds = [one.kind for one in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        heads.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    space = {"_call": call, "_defaults": {one.name: one.default for one in parameters}}
    exec(f"def {own.__name__}({', '.join(heads)}):\n    return _call(locals())", space)
    return space[own.__name__]


def function(original: Callable[..., Any], wrong: Callable[..., Any]) -> Plant:
    """Replace a function by ``wrong(original, *arguments)``."""
    call = _in_place_of(original, wrong)

    @contextmanager
    def plant(spec: TrainSpec) -> Iterator[TrainSpec]:
        with everywhere(original, call):
            yield spec

    return plant


def method(holder: type, name: str, wrong: Callable[..., Any]) -> Plant:
    """Replace a method by ``wrong(original, self, *arguments)``."""
    kind = vars(holder)[name]
    original = kind.__func__ if isinstance(kind, classmethod) else kind
    call = _in_place_of(original, wrong)

    @contextmanager
    def plant(spec: TrainSpec) -> Iterator[TrainSpec]:
        with attribute(holder, name, classmethod(call) if isinstance(kind, classmethod) else call):
            yield spec

    return plant


def settings(**changed: object) -> Plant:
    """Change settings only."""

    @contextmanager
    def plant(spec: TrainSpec) -> Iterator[TrainSpec]:
        yield spec.replace(**changed)

    return plant
