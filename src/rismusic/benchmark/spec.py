"""Settings of a benchmark: the systems to simulate, the methods to compare, and how the work is divided.

This module does not import torch.

**Systems.** A *cell* is one system: a number of sources, an SNR and, in a sweep, one value of the setting
that varies, or the values of several settings that change together. A *unit* is one method on one block of
scenes of one cell.

**Methods.** A name is ``[oracle:]base[:variant]``:

* ``base``: a method of :class:`~rismusic.spec.LocateSpec`, here with the unconditional likelihood; also the
  name of a registered estimator or spectrum (:mod:`rismusic.registry`);
* ``:conditional``: with the conditional one;
* ``:raw``: the peaks of a spectrum, without maximum likelihood;
* ``hybrid:...``: the hybrid estimator without one of its parts, see :data:`ABLATIONS`. Without its network it
  is ``music``;
* ``oracle:``: uses the truth, and is no method. ``oracle:music`` works on the true covariance,
  ``oracle:truth`` is maximum likelihood started from the truth, and ``oracle:best`` is the most likely result
  of OMP, SBL and ``oracle:truth``: what a perfect search under that likelihood would return.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rismusic.errors import InputError
from rismusic.nn.spec import weights_path
from rismusic.registry import ESTIMATORS, SPECTRA, method_names
from rismusic.spec import (
    ChannelSpec,
    CodebookSpec,
    Count,
    Decibels,
    HardwareSpec,
    LinkBudgetSpec,
    LocateSpec,
    PanelSpec,
    SceneSpec,
    Spec,
    SystemSpec,
)

Value = int | float | str


@dataclass(frozen=True)
class SweepPoint:
    """The settings at one point of a sweep, with the swept values as text."""

    label: str
    system: SystemSpec
    budget: LinkBudgetSpec


def sweep_points(
    sweep: Mapping[str, Sequence[Value]], system: SystemSpec, budget: LinkBudgetSpec | None = None
) -> list[SweepPoint]:
    """Systems of a sweep; the system itself if the sweep is empty.

    ``sweep`` has the values of each swept setting, such as ``{"panel.rows": (8, 12)}``; those of several
    settings are paired in order. Settings of the link budget are named as in ``budget.bandwidth_hz``.
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
    for index in range(lengths.get(first, 1)):
        values = {name: of_setting[index] for name, of_setting in sweep.items()}
        of_budget = {
            name.partition(".")[2]: value for name, value in values.items() if name.startswith("budget.")
        }
        of_system = {name: value for name, value in values.items() if not name.startswith("budget.")}
        label = ", ".join(map(label_of, values.values()))
        points.append(SweepPoint(label, system.changed(of_system), budget.replace(**of_budget)))
    return points


def label_of(value: Value) -> str:
    """A value as text."""
    return value if isinstance(value, str) else f"{value:g}"


ORACLES = ("music", "truth", "best")
# These fit the snapshots themselves, so there is no variant without maximum likelihood.
_ALWAYS_POLISHED = ("omp", "relax", "sbl", "best", "truth")
# oracle:best is the most likely of these fits.
STARTS = ("omp", "sbl", "oracle:truth")

_SURE: dict[str, object] = {"recheck_p_value": 0.0, "birth_death_min_sources": 0}
ABLATIONS: dict[str, dict[str, object]] = {
    "beta0": {"beta": 0.0},
    "sure": _SURE,
    "music": {"network_sources": False, **_SURE},
    "untrained": {"untrained": True, **_SURE},
    "untrained_music": {"untrained": True, "network_sources": False, **_SURE},
    "likelihood": {"model_order": "likelihood"},
    "network": {"model_order": "network"},
}
"""Variants of the hybrid estimator, as changes of :class:`~rismusic.spec.HybridSpec`.

* ``beta0``: R_blend without R_samp;
* ``sure``: no SBL where the p-value is low, and no birth-death search;
* ``music``: ``sure``, and without the network's source list and heat map: all fits start at MUSIC on R_blend;
* ``untrained``, ``untrained_music``: ``sure`` and ``music`` with an untrained network;
* ``likelihood``, ``network``: the number of sources by likelihood or network alone.
"""

DEFAULT_METHODS = (
    *("music:raw", "music", "soft_music", "mvdr", "bartlett"),
    *("omp:conditional", "omp", "relax", "sbl:conditional", "sbl", "best", "hybrid:raw", "hybrid"),
    *("oracle:music:raw", "oracle:music", "oracle:best:conditional", "oracle:best", "oracle:truth"),
)


@dataclass(frozen=True)
class Method:
    """The parts of a name; see the docstring of this module."""

    name: str
    base: str
    uses_truth: bool
    polish: bool
    criterion: Literal["conditional", "unconditional"]
    variant: str

    def beside(self, name: str) -> str:
        """The name of another method under the same likelihood."""
        return name if self.criterion == "unconditional" else f"{name}:conditional"


def parse_method(name: str) -> Method:
    """Split a name into its parts."""
    bare = name.removeprefix("oracle:")
    uses_truth = bare != name
    base, _, variant = bare.partition(":")
    known = ORACLES if uses_truth else method_names()
    if base not in known:
        names = ", ".join("oracle:" * uses_truth + one for one in known)
        raise InputError(
            "methods",
            f"no method is named {name!r}; known are {names}. Name the module that registers your own "
            "method with --locate.plugins",
        )
    variants: tuple[str, ...] = ("", "conditional", "raw")
    if base in _ALWAYS_POLISHED:
        variants = variants[:2]
    elif base == "hybrid":
        variants = ("", "raw", *ABLATIONS)
    elif base not in SPECTRA and base in ESTIMATORS:
        variants = ("",)  # variants are settings that a user's estimator need not have
    if variant not in variants or bare.endswith(":"):
        names = " or ".join(f"{name.partition(bare)[0]}{base}:{one}".rstrip(":") for one in variants)
        raise InputError("methods", f"{name!r} is not a variant of {base}; use {names}")
    criterion: Literal["conditional", "unconditional"] = (
        "conditional" if variant == "conditional" else "unconditional"
    )
    return Method(name, base, uses_truth, variant != "raw", criterion, variant)


def with_starts(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, followed by the methods that they are compared with.

    ``oracle:best`` is chosen among other rows, and a miss is attributed to the search or to the likelihood
    by comparison with ``oracle:truth``.
    """
    needed = dict.fromkeys(names)
    for name in names:
        method = parse_method(name)
        starts = STARTS if (method.uses_truth, method.base) == (True, "best") else STARTS[-1:]
        needed.update(dict.fromkeys(method.beside(start) for start in starts))
    return tuple(needed)


NONE = "none"
# The setting that each sweep changes, its default values, and the label of its axis.
SWEEPS: dict[str, tuple[str, tuple[Value, ...], str]] = {
    "separation": ("scene.separation_deg", (0.0, 4.0, 8.0, 16.0, 24.0), "minimum separation / deg"),
    "snapshots": ("codebook.snapshots", (4, 8, 16, 32, 64), "snapshots L"),
    "bits": ("codebook.bits", (1, 2, 3, 4, "continuous"), "bits of the phase shifters"),
    "power_spread": ("scene.power_spread_db", (0.0, 3.0, 6.0, 10.0, 15.0), "power spread / dB"),
    "symbols": ("scene.symbols", ("gaussian", "qpsk", "constant"), "symbols"),
}
RANGE_EDGES = (0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
# Hardware impairments that the recording does not show, one kind at a time.
HARDWARE: tuple[tuple[str, dict[str, Value]], ...] = (
    ("none", {}),
    ("static phase 0.1 rad", {"hardware.static_phase_rad": 0.1}),
    ("static phase 0.3 rad", {"hardware.static_phase_rad": 0.3}),
    ("code phase 0.3 rad", {"hardware.code_phase_rad": 0.3}),
    ("gain ±0.3", {"hardware.gain": 0.3}),
    ("dead 0.1", {"hardware.dead_fraction": 0.1}),
    ("moved 0.05 wavelengths", {"hardware.position_wavelengths": 0.05}),
)
NAMES = (NONE, "range", *SWEEPS, "hardware")
_AXES = {"range": "range of the sources / m", "hardware": "hardware impairment"} | {
    name: axis for sweep, (setting, _, axis) in SWEEPS.items() for name in (sweep, setting)
}
# Units at the end of the names of settings.
_UNITS = {"m": "m", "m2": "m$^2$", "deg": "deg", "rad": "rad", "db": "dB", "dbi": "dBi", "hz": "Hz", "k": "K"}


def axis_label(sweep: str) -> str:
    """Label of the axis of a sweep: its own one, or the names of its settings with their unit."""
    if sweep in _AXES:
        return _AXES[sweep]
    labels = []
    for setting in sweep.split(", "):
        name, _, unit = setting.replace(".", "_").rpartition("_")
        named = f"{name} / {_UNITS[unit]}" if unit in _UNITS else f"{name} {unit}"
        labels.append(named.replace("_", " "))
    return ", ".join(labels)


@dataclass(frozen=True)
class Cell:
    """One system on which all methods are compared: a K, an SNR and a point of a sweep.

    The sweep is ``none`` for the grid of K and SNR.
    """

    sweep: str
    point: str
    index: int
    sources: int
    snr_db: float
    system: SystemSpec

    @property
    def name(self) -> str:
        """Name of the cell and of its folder."""
        return f"{self.sweep}_{self.index}_K{self.sources}_{self.snr_db:g}dB"


def sweep_cells(
    sweep: str, values: Sequence[Value], sources: Sequence[int], snr_db: Sequence[float], system: SystemSpec
) -> list[Cell]:
    """A cell for each K, SNR and value.

    ``sweep`` is one of ``NAMES``, or a setting such as ``scene.separation_deg``. Without values it has its
    default ones; those of ``range`` are bin edges in metres.
    """
    return [
        Cell(sweep, label, index, K, float(snr), system.changed({**change, "sources": K, "snr_db": snr}))
        for K in sources
        for snr in snr_db
        for index, (label, change) in enumerate(_points(sweep, values))
    ]


def _points(sweep: str, values: Sequence[Value]) -> list[tuple[str, dict[str, Value]]]:
    """Label and settings of each point."""
    if sweep in (NONE, "hardware"):
        if values:
            raise InputError(
                "sweep_values", f"the sweep {sweep} takes no values; got {' '.join(map(str, values))}"
            )
        return list(HARDWARE) if sweep == "hardware" else [("", {})]
    if sweep == "range":
        edges = [edge for edge in values or RANGE_EDGES if not isinstance(edge, str)]
        if len(edges) < max(2, len(values)) or sorted(set(edges)) != edges:
            raise InputError(
                "sweep_values",
                f"give two or more increasing ranges in metres; got {' '.join(map(str, values))}",
            )
        return [
            (f"{low:g} to {high:g}", {"scene.range_min_m": low, "scene.range_max_m": high})
            for low, high in itertools.pairwise(edges)
        ]
    setting, own, _ = SWEEPS.get(sweep, (sweep, (), sweep))
    if "." not in setting:
        raise InputError(
            "sweep",
            f"unknown sweep {sweep!r}; choose from {', '.join(NAMES)}, or name a setting such as scene.power",
        )
    values = values or own
    if not values:
        raise InputError("sweep_values", f"give the values of {sweep}; it has no default values")
    return [(label_of(value), {setting: value}) for value in values]


GRID = ((1, 2, 3, 5), (0.0, 5.0, 10.0, 20.0))
# With a sweep: a case in which the methods differ, yet all of them work.
SWEPT = ((3,), (5.0,))


class BenchSpec(Spec):
    """A benchmark: methods compared on the same scenes of one or more systems."""

    methods: tuple[str, ...] = ()
    """Methods to compare: those of locate; ':raw' without polishing, ':conditional' with the conditional
    likelihood, 'hybrid:music' and so on for ablations. 'oracle:music', 'oracle:truth' and 'oracle:best' use
    the true sources. Default: all (hybrid only where its weights exist)."""
    sources: tuple[Count, ...] = ()
    """Numbers of sources, K. Default: 1 2 3 5, or 3 in a sweep."""
    snr_db: tuple[Decibels, ...] = ()
    """SNRs in dB. Default: 0 5 10 20, or 5 in a sweep."""
    scenes: Annotated[int, Field(ge=1, le=10**7)] = 200
    """Number of scenes of each system, up to ten million."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the scenes."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the scenes. Different splits of one seed share no scene."""
    count: Literal["known", "auto"] = "known"
    """Whether the number of sources is given or estimated."""
    noise: Literal["hidden", "known"] = "hidden"
    """Whether the noise variance is given or estimated."""
    sweep: tuple[str, ...] = (NONE,)
    """Settings to vary, one at a time: none (K and SNR only), range, separation, snapshots, bits,
    power_spread, symbols, hardware, or a setting such as scene.separation_deg."""
    sweep_values: tuple[float | str, ...] = ()
    """Values of the swept setting (range: bin edges in metres). Default: those of the sweep."""
    block: Count = 50
    """Scenes processed and stored at a time. An interrupted run loses at most one block per worker."""
    one_link: bool = False
    """Use one channel, codebook and set of hardware impairments for all scenes, not new ones for each."""
    scene: SceneSpec = SceneSpec()
    panel: PanelSpec = PanelSpec()
    channel: ChannelSpec = ChannelSpec()
    codebook: CodebookSpec = CodebookSpec()
    hardware: HardwareSpec = HardwareSpec()
    locate: LocateSpec = LocateSpec()
    """Settings of the search. Method, polishing and number of sources follow from the fields above."""

    @model_validator(mode="after")
    def _consistent(self) -> BenchSpec:
        for names, field in ((self.methods, "methods"), (self.sweep, "sweep")):
            if len(set(names)) < len(names):
                raise InputError(field, f"each name may occur once; got {' '.join(names)}")
        if not self.sweep or (self.sweep_values and len(self.sweep) > 1):
            raise InputError(
                "sweep",
                "give one sweep, or several without sweep_values; got " + (" ".join(self.sweep) or "none"),
            )
        for name in ("method", "sources", "polish", "criterion"):
            value = getattr(self.locate, name)
            if value != LocateSpec.model_fields[name].default:
                other = "count" if name == "sources" else "methods"
                raise InputError(
                    f"locate.{name}", f"a benchmark sets this through {other}; remove {name} = {value!r}"
                )
        for method in map(parse_method, self.methods):
            if self.count == "auto" and method.uses_truth and method.base == "best":
                raise InputError(
                    "methods",
                    f"{method.name} needs a known number of sources: leave it out, or set count to known",
                )
        for cell in self.cells():
            self._check_volume(cell.system.scene)
        return self

    def _check_volume(self, scene: SceneSpec) -> None:
        for name, inside in (
            ("azimuth_max_deg", self.locate.azimuth_max_deg >= scene.azimuth_max_deg),
            ("elevation_max_deg", self.locate.elevation_max_deg >= scene.elevation_max_deg),
            ("range_min_m", self.locate.range_min_m <= scene.range_min_m),
            ("range_max_m", self.locate.range_max_m >= scene.range_max_m),
        ):
            if not inside:
                raise InputError(
                    f"locate.{name}",
                    f"the search volume must contain all sources (scene.{name} {getattr(scene, name):g}); "
                    f"got {getattr(self.locate, name):g}",
                )

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the methods that are compared."""
        if self.methods:
            return self.methods
        left_out: tuple[str, ...] = () if self.count == "known" else ("oracle:best",)
        if not weights_path(self.locate.weights).exists():
            left_out = (*left_out, "hybrid")
        return tuple(name for name in DEFAULT_METHODS if not name.startswith(left_out))

    def cells(self) -> list[Cell]:
        """All systems on which the methods are compared."""
        system = SystemSpec(
            sources=1,  # each cell has its own
            one_link=self.one_link,
            scene=self.scene,
            panel=self.panel,
            channel=self.channel,
            codebook=self.codebook,
            hardware=self.hardware,
        )
        cells = []
        for sweep in self.sweep:
            sources, snr_db = GRID if sweep == NONE else SWEPT
            cells += sweep_cells(
                sweep, self.sweep_values, self.sources or sources, self.snr_db or snr_db, system
            )
        return cells

    def search(self, name: str) -> LocateSpec:
        """The settings of :func:`rismusic.locate` for a method that is no oracle."""
        method = parse_method(name)
        hybrid = self.locate.hybrid.replace(**ABLATIONS.get(method.variant, {}))
        return self.locate.replace(
            method=method.base, polish=method.polish, criterion=method.criterion, hybrid=hybrid
        )


RESULTS, TIMINGS = "results.csv", "timings.csv"
"""Tables in the folder of a benchmark."""

SCENES = "scenes"
"""Pseudo-method that stands for the truth and the bound of the scenes."""


@dataclass(frozen=True)
class Unit:
    """One piece of work: scenes ``start`` to ``stop - 1`` of a cell with one method (or ``scenes``)."""

    cell: Cell
    method: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.method} in {self.cell.name}, scenes {self.start} to {self.stop - 1}"


def blocks(spec: BenchSpec) -> list[tuple[int, int]]:
    """First scene of each block, and the scene after its last."""
    return [(start, min(start + spec.block, spec.scenes)) for start in range(0, spec.scenes, spec.block)]


def all_units(spec: BenchSpec) -> list[Unit]:
    """All units, in a fixed random order.

    It mixes fast and slow methods, so that the remaining time can be estimated, alike on every machine.
    """
    methods = (SCENES, *(name for name in with_starts(spec.rows) if not name.startswith("oracle:best")))
    units = [
        Unit(cell, method, start, stop)
        for cell in spec.cells()
        for method in methods
        for start, stop in blocks(spec)
    ]
    random.Random(0).shuffle(units)
    return units
