"""Mistakes in panel, steering vectors, labels and splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from faults.plant import Fault, Plant, attribute, everywhere, function, method
from rismusic.array import Panel, steering
from rismusic.estimation.grid import SearchGrid, Volume, from_cosines, to_cosines
from rismusic.nn import network as network_module
from rismusic.nn.data import TrainingScenes
from rismusic.nn.spec import TrainSpec
from rismusic.simulation import scene
from rismusic.simulation.scene import draw_channel, spread_order
from rismusic.simulation.simulator import Simulator
from rismusic.sources import Sources


def _labels(change: Callable[[Sources], Sources]) -> Plant:
    """Change the positions in the labels only."""

    def wrong(original: Callable[..., Any], self: Simulator, scenes: Tensor) -> Any:
        recording = original(self, scenes)
        return replace(recording, truth=change(recording.truth))

    return method(Simulator, "__call__", wrong)


def _drawn(change: Callable[[Sources], Sources]) -> Plant:
    """Change the positions in the signals and the labels alike."""
    return function(scene.draw_sources, lambda original, *given, **named: change(original(*given, **named)))


def _angles(change: Callable[[Tensor], Tensor]) -> Callable[[Sources], Sources]:
    return lambda truth: replace(truth, azimuth=change(truth.azimuth), elevation=change(truth.elevation))


def _noisy(truth: Sources) -> Sources:
    generator = torch.Generator().manual_seed(0)

    def near(angle: Tensor) -> Tensor:
        return angle + math.radians(5.0) * torch.randn(angle.shape, generator=generator)

    return replace(
        truth,
        azimuth=near(truth.azimuth).clamp(-1.04, 1.04),
        elevation=near(truth.elevation).clamp(-0.52, 0.52),
    )


@contextmanager
def _one_copy(module: Any, change: Callable[[Tensor], Tensor], spec: TrainSpec) -> Iterator[TrainSpec]:
    with attribute(module, "steering", lambda *given, **named: change(steering(*given, **named))):
        yield spec


def _x_slowest(A: Tensor) -> Tensor:
    side = math.isqrt(A.shape[-2])
    return A.unflatten(-2, (side, side)).transpose(-3, -2).flatten(-3, -2)


def _panel(change: Callable[[Tensor, float], tuple[Tensor, float]]) -> Plant:
    def wrong(original: Callable[..., Panel], cls: type, spec: Any) -> Panel:
        sound = original(cls, spec)
        return Panel(*change(sound.elements, sound.wavelength))

    return method(Panel, "from_spec", wrong)


def _static(original: Callable[..., Tensor], *given: Any, **named: Any) -> Tensor:
    return original("constant", *given[1:], **named)


def _scattered(original: Callable[..., Any], panel: Any, spec: Any, *given: Any, **named: Any) -> Any:
    """Scatter a hundred times stronger than the line of sight, whatever the nominal factor."""
    return original(panel, spec.replace(rician_factor_db=-20.0), *given, **named)


@contextmanager
def _stride(spec: TrainSpec) -> Iterator[TrainSpec]:
    system = spec.system.replace(codebook=spec.system.codebook.replace(kind="dft"))

    def quarter(total: int, device: Any = "cpu") -> Tensor:
        return torch.arange(total, device=device) * 4 % total

    with everywhere(spread_order, quarter):
        yield spec.replace(system=system)


@contextmanager
def _on_the_grid(spec: TrainSpec) -> Iterator[TrainSpec]:
    volume = Volume.from_spec(spec.system.scene)
    grid = SearchGrid.cover(Panel.from_spec(spec.system.panel), volume, spec.network.oversampling)

    def snapped(truth: Sources) -> Sources:
        places = []
        for value, axis in zip(
            to_cosines(truth.azimuth, truth.elevation, truth.range), (grid.u_x, grid.u_y, grid.q), strict=True
        ):
            nearest = (value.nan_to_num()[..., None] - axis.to(value.dtype)).abs().argmin(-1)
            places.append(torch.where(value.isnan(), value, axis.to(value.dtype)[nearest]))
        azimuth, elevation, distance = from_cosines(*places)
        return replace(truth, azimuth=azimuth, elevation=elevation, range=distance)

    with _drawn(snapped)(spec):
        yield spec


def _same_split(original: Callable[..., None], self: TrainingScenes, *given: Any, **named: Any) -> None:
    original(self, *given, **named)
    self._validation = self._train


def _shuffled(truth: Sources) -> Sources:
    order = torch.randperm(len(truth.azimuth), generator=torch.Generator().manual_seed(0))
    return truth[order]


FAULTS = (
    Fault(
        2,
        "degrees for radians",
        "Angles of the scenes are drawn in degrees where radians are expected.",
        ("degrees taken for radians",),
        _drawn(_angles(torch.rad2deg)),
    ),
    Fault(
        2,
        "converted twice",
        "Angles are converted to radians twice, so that steering is nearly constant.",
        ("converted to radians twice",),
        _drawn(_angles(torch.deg2rad)),
    ),
    Fault(
        4,
        "one steering conjugated",
        "The steering vector of the network is the conjugate of all others.",
        ("conjugated",),
        lambda spec: _one_copy(network_module, torch.conj_physical, spec),
    ),
    Fault(
        4,
        "one steering in another order",
        "The steering vector of labels and simulator has its elements x slowest.",
        ("another order",),
        lambda spec: _one_copy(scene, _x_slowest, spec),
    ),
    Fault(
        5,
        "wavelength counted twice",
        "The spacing is multiplied by the wavelength twice.",
        ("wavelength squared",),
        _panel(lambda elements, wavelength: (elements * wavelength, wavelength)),
    ),
    Fault(
        5,
        "panel off centre",
        "The index grid is off centre by half an element.",
        ("off centre",),
        _panel(lambda elements, wavelength: (elements + wavelength / 4, wavelength)),
    ),
    Fault(
        8,
        "symbols held",
        "Symbols are held constant over the snapshots.",
        ("symbols are held constant",),
        function(scene.draw_symbols, _static),
    ),
    Fault(
        20,
        "overlapping seeds",
        "Validation scenes are those of the training.",
        ("overlapping seeds",),
        method(TrainingScenes, "__init__", _same_split),
    ),
    Fault(
        23,
        "Rician factor undone",
        "Scatter is a hundred times stronger than the line of sight.",
        ("Rician factor",),
        function(draw_channel, _scattered),
    ),
    Fault(
        24,
        "beams left out",
        "A stride of 4 lets the DFT codebook visit a quarter of its beams.",
        ("part of its beams", "stride"),
        _stride,
    ),
    Fault(
        28,
        "truth on the grid",
        "The truth is drawn on the points of the search grid.",
        ("grid that is searched",),
        _on_the_grid,
    ),
    Fault(
        0,
        "wrong wavelength",
        "The panel has twice the wavelength of the settings.",
        ("wavelength is 0.6 m",),
        _panel(lambda elements, wavelength: (elements, 2 * wavelength)),
    ),
    Fault(
        0,
        "azimuth and elevation exchanged",
        "Labels have azimuth and elevation exchanged.",
        ("azimuth and elevation are exchanged",),
        _labels(lambda truth: replace(truth, azimuth=truth.elevation, elevation=truth.azimuth)),
    ),
    Fault(
        0,
        "labels shuffled",
        "Labels belong to other scenes of the batch.",
        ("labels do not explain", "shuffled"),
        _labels(_shuffled),
    ),
    Fault(
        0,
        "labels noisy",
        "Labels are 5 deg off at random.",
        ("labels do not explain", "noisy"),
        _labels(_noisy),
    ),
)
