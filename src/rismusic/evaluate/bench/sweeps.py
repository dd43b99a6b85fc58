"""Sweeps: one setting of the system varied, all others as they are; and the cells that come of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rismusic.errors import InputError
from rismusic.spec import Spec, SystemSpec

Value = int | float | str

NONE = "none"
# The setting that each sweep changes, its values if none are given, and how plots name it.
SWEEPS: dict[str, tuple[str, tuple[Value, ...], str]] = {
    "separation": ("scene.separation_deg", (0.0, 4.0, 8.0, 16.0, 24.0), "least separation / deg"),
    "snapshots": ("codebook.snapshots", (4, 8, 16, 32, 64), "snapshots L"),
    "bits": ("codebook.bits", (1, 2, 3, 4, "continuous"), "bits of a phase shifter"),
    "power_spread": ("scene.power_spread_db", (0.0, 3.0, 6.0, 10.0, 15.0), "spread of powers / dB"),
    "symbols": ("scene.symbols", ("gaussian", "qpsk", "static"), "symbols"),
}
RANGE_EDGES = (0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
# Errors of the panel that the recording does not know of, one kind at a time.
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
AXES = {"range": "range of the sources / m", "hardware": "error of the panel"} | {
    name: axis for name, (_, _, axis) in SWEEPS.items()
}


@dataclass(frozen=True)
class Cell:
    """One system that all methods are tried on.

    Args:
        sweep: what is varied; ``none`` for the grid of K and SNR.
        point: the value that it takes here, as text.
        place: number of the point in its sweep, from 0.
        sources: K.
        snr_db: SNR in dB.
        system: the system.
    """

    sweep: str
    point: str
    place: int
    sources: int
    snr_db: float
    system: SystemSpec

    @property
    def name(self) -> str:
        """The cell in words, and the name of its folder."""
        return f"{self.sweep}_{self.place}_K{self.sources}_{self.snr_db:g}dB"


def sweep_cells(
    sweep: str,
    values: Sequence[Value],
    sources: Sequence[int],
    snr_db: Sequence[float],
    system: SystemSpec,
) -> list[Cell]:
    """A cell for each K, SNR and value.

    Args:
        sweep: one of ``NAMES``, or a setting such as ``scene.separation_deg``.
        values: what it takes (for ``range``: the edges of bins, metres); none: its own values.
        sources: K.
        snr_db: dB.
        system: what is not swept.

    Raises:
        InputError: an unknown sweep, values that it cannot take, or none where it has none of its own.
    """
    return [
        Cell(sweep, label, place, K, float(snr), _changed(system, {**change, "sources": K, "snr_db": snr}))
        for K in sources
        for snr in snr_db
        for place, (label, change) in enumerate(_points(sweep, values))
    ]


def _points(sweep: str, values: Sequence[Value]) -> list[tuple[str, dict[str, Value]]]:
    """Label and settings of each point."""
    if sweep in (NONE, "hardware"):
        if values:
            raise InputError("sweep_values", f"none with sweep {sweep}", " ".join(map(str, values)))
        return list(HARDWARE) if sweep == "hardware" else [("", {})]
    if sweep == "range":
        edges = [edge for edge in values or RANGE_EDGES if not isinstance(edge, str)]
        if len(edges) < max(2, len(values)) or sorted(set(edges)) != edges:
            raise InputError(
                "sweep_values", "two or more rising ranges in metres", " ".join(map(str, values))
            )
        return [
            (f"{low:g} to {high:g}", {"scene.range_min_m": low, "scene.range_max_m": high})
            for low, high in itertools.pairwise(edges)
        ]
    setting, own, _ = SWEEPS.get(sweep, (sweep, (), sweep))
    if "." not in setting:
        raise InputError(
            "sweep", f"some of {', '.join(NAMES)}, or a setting such as scene.power", repr(sweep)
        )
    values = values or own
    if not values:
        raise InputError("sweep_values", f"values of {sweep}", "none")
    return [(f"{value:g}" if not isinstance(value, str) else value, {setting: value}) for value in values]


def _changed(system: SystemSpec, settings: dict[str, Value]) -> SystemSpec:
    for name, value in settings.items():
        part, dot, leaf = name.rpartition(".")
        old = getattr(system, part, None) if dot else None
        if dot and not isinstance(old, Spec):
            raise InputError("sweep", "a setting of the system, such as scene.separation_deg", repr(name))
        system = system.replace(
            **({part: old.replace(**{leaf: value})} if isinstance(old, Spec) else {name: value})
        )
    return system
