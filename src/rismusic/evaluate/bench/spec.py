"""Settings of a benchmark. The module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rismusic.errors import InputError
from rismusic.evaluate.bench.methods import ABLATIONS, DEFAULT_METHODS, parse_method
from rismusic.evaluate.bench.sweeps import NONE, Cell, sweep_cells
from rismusic.nn.spec import weights_path
from rismusic.spec import (
    ChannelSpec,
    CodebookSpec,
    Count,
    Finite,
    HardwareSpec,
    LocateSpec,
    PanelSpec,
    SceneSpec,
    Spec,
    SystemSpec,
)

GRID = ((1, 2, 3, 5), (0.0, 5.0, 10.0, 20.0))
# With a sweep: where methods differ, and none of them is lost.
SWEPT = ((3,), (5.0,))


class BenchSpec(Spec):
    """A benchmark: methods times systems, on the same scenes."""

    methods: tuple[str, ...] = ()
    """What is compared: methods of locate, ':raw' without polish, ':conditional' with the other likelihood,
    'hybrid:music' and so on without a part of it, 'oracle:music', 'oracle:truth' and 'oracle:best' having
    peeked. None: all of them (the hybrid where its weights are)."""
    sources: tuple[Count, ...] = ()
    """Numbers of sources, K. None: 1 2 3 5, and 3 where something else is swept."""
    snr_db: tuple[Finite, ...] = ()
    """Signal to noise ratios in dB. None: 0 5 10 20, and 5 where something else is swept."""
    scenes: Count = 200
    """Scenes of each system."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of the scenes."""
    split: Literal["train", "validation", "test"] = "test"
    """Splits of one seed share no scene."""
    count: Literal["known", "auto"] = "known"
    """Whether the methods are told the number of sources."""
    noise: Literal["hidden", "known"] = "hidden"
    """Whether the methods are told the noise variance."""
    sweep: tuple[str, ...] = (NONE,)
    """What is varied, one at a time: none (K and SNR alone), range, separation, snapshots, bits,
    power_spread, symbols, hardware, or a setting such as scene.separation_deg."""
    sweep_values: tuple[float | str, ...] = ()
    """The values that it takes (range: edges of bins in metres). None: its own."""
    block: Count = 50
    """Scenes of one part: what is done at a time, and lost if the run is cut short."""
    one_link: bool = False
    """One channel, one codebook and one set of hardware errors for all scenes; else new ones in each."""
    scene: SceneSpec = SceneSpec()
    panel: PanelSpec = PanelSpec()
    channel: ChannelSpec = ChannelSpec()
    codebook: CodebookSpec = CodebookSpec()
    hardware: HardwareSpec = HardwareSpec()
    locate: LocateSpec = LocateSpec()
    """Where and how finely the methods search; methods and count say the rest."""

    @model_validator(mode="after")
    def _consistent(self) -> BenchSpec:
        for names, field in ((self.methods, "methods"), (self.sweep, "sweep")):
            if len(set(names)) < len(names):
                raise InputError(field, "each name once", " ".join(names))
        if not self.sweep or (self.sweep_values and len(self.sweep) > 1):
            raise InputError(
                "sweep", "one name, or several without sweep_values", " ".join(self.sweep) or "none"
            )
        for name in ("method", "sources", "polish", "criterion"):
            value = getattr(self.locate, name)
            if value != LocateSpec.model_fields[name].default:
                said = "count" if name == "sources" else "methods"
                raise InputError(f"locate.{name}", f"its default ({said} says it)", repr(value))
        for method in map(parse_method, self.methods):
            if self.count == "auto" and method.peeked and method.base == "best":
                raise InputError(
                    "methods", "no oracle:best with count auto (it compares fits of K sources)", method.name
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
                    f"a searched volume that holds all sources ({getattr(scene, name):g})",
                    f"{getattr(self.locate, name):g}",
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
        """All systems that the methods are tried on."""
        system = SystemSpec(
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
        """The settings of :func:`rismusic.locate` for a method that has not peeked."""
        method = parse_method(name)
        hybrid = self.locate.hybrid.replace(**ABLATIONS.get(method.variant, {}))
        return self.locate.replace(
            method=method.base, polish=method.polish, criterion=method.criterion, hybrid=hybrid
        )
