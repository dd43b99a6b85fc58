"""What all settings have in common: frozen pydantic models whose errors are one sentence, and TOML files.

The module does not import torch.

The configuration of a system, as frozen pydantic models.

The command line, the TOML files and the Python calls all speak through these models; nothing else in the
package holds a default of the physics. The module does not import torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from tomlkit.exceptions import TOMLKitError

from rismusic.errors import InputError
from rismusic.registry import check_method, load_plugins

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


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as one dictionary with dotted names."""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


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


WEIGHTS = Path(__file__).parent / "weights"
"""Where the weights are that come with the package."""

SymbolKind = Literal["gaussian", "qpsk", "static"]


def _check_ranges(section: str, low: float, high: float) -> None:
    if high < low:
        raise InputError(f"{section}range_max_m", f"at least range_min_m = {low:g}", f"{high:g}")


class PanelSpec(Spec):
    """A uniform planar panel, centred on the origin of its frame."""

    section: ClassVar[str] = "panel"

    rows: Count = 12
    """Elements along y (vertical)."""
    columns: Count = 12
    """Elements along x (horizontal)."""
    spacing_wavelengths: Positive = 0.5
    """Distance between neighbouring elements, in wavelengths."""
    wavelength_m: Positive = 0.3
    """Wavelength in metres."""


class ChannelSpec(Spec):
    """The channel H from the panel to the base station, or no channel at all ('direct')."""

    section: ClassVar[str] = "channel"

    kind: Literal["rician", "rayleigh", "direct"] = "rician"
    """'rician': line of sight from geometry plus scatter; 'rayleigh': i.i.d. scatter; 'direct': the
    panel itself is sampled, M = N."""
    antennas: Count = 16
    """Antennas of the base station, M (a uniform line parallel to x)."""
    antenna_spacing_wavelengths: Positive = 0.5
    """Distance between neighbouring antennas, in wavelengths."""
    distance_m: Positive = 100.0
    """Distance from the panel to the middle of the base station, in metres."""
    azimuth_max_deg: Annotated[float, Field(ge=0, lt=90)] = 60.0
    """The base station stands within this azimuth to either side."""
    elevation_max_deg: Annotated[float, Field(ge=0, lt=90)] = 30.0
    """The base station stands within this elevation up or down."""
    rician_factor_db: Finite | tuple[Finite, Finite] = (-3.0, 10.0)
    """Energy ratio of line of sight to scatter, in dB: one value, or the limits of a uniform draw."""


class CodebookSpec(Spec):
    """The codes c_l that the panel wears, one for each snapshot."""

    section: ClassVar[str] = "codebook"

    kind: Literal["random", "dft", "hadamard"] = "random"
    """'random': independent phases; 'dft': beams of the 2-D DFT; 'hadamard': rows of +1 and -1."""
    snapshots: Count = 16
    """Snapshots of a scene, L."""
    bits: Annotated[int, Field(ge=1, le=16)] | Literal["continuous"] = 3
    """Resolution of the phase shifters in bits, or 'continuous'."""


class HardwareSpec(Spec):
    """How the panel that acts differs from the panel that the recording describes."""

    section: ClassVar[str] = "hardware"

    static_phase_rad: NonNegative = 0.0
    """Standard deviation of each element's constant phase error, in radians."""
    code_phase_rad: NonNegative = 0.0
    """Standard deviation of the phase error drawn anew for each element and code, in radians."""
    gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Gains are uniform between 1 - gain and 1 + gain."""
    dead_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that an element does not reflect at all."""
    position_wavelengths: NonNegative = 0.0
    """Elements are displaced by up to this many wavelengths along each axis."""

    @property
    def response_error(self) -> float:
        """Root mean square of the relative error of an element's response, for small errors of phase."""
        phase = self.static_phase_rad**2 + self.code_phase_rad**2
        # A displacement counts along the ray, which is a unit vector.
        place = (2 * math.pi * self.position_wavelengths) ** 2 / 3
        return math.sqrt(phase + place + self.gain**2 / 3 + self.dead_fraction)


class SceneSpec(Spec):
    """Where the sources are, how strong they are, and what they send."""

    section: ClassVar[str] = "scene"

    azimuth_max_deg: Annotated[float, Field(gt=0, lt=90)] = 60.0
    """Azimuths are uniform within this limit to either side."""
    elevation_max_deg: Annotated[float, Field(gt=0, lt=90)] = 30.0
    """Elevations are uniform within this limit up or down."""
    range_min_m: Positive = 0.5
    """Nearest range in metres."""
    range_max_m: Positive = 10.0
    """Farthest range in metres."""
    separation_deg: NonNegative = 8.0
    """Least separation of two sources: the larger of their azimuth and elevation differences."""
    power: Literal["equal", "path_loss"] = "equal"
    """'equal', or 'path_loss': power proportional to 1 / range^2. The mean power of a scene is 1."""
    power_spread_db: NonNegative = 0.0
    """On top of it, powers are drawn uniformly within a band of this width, in dB."""
    symbols: SymbolKind = "gaussian"
    """'gaussian' and 'qpsk' change with every snapshot; 'static' is one symbol held throughout."""

    @model_validator(mode="after")
    def _limits(self) -> SceneSpec:
        _check_ranges("scene.", self.range_min_m, self.range_max_m)
        return self


class SystemSpec(Spec):
    """A whole system: panel, channel, codes, hardware errors, sources and noise."""

    sources: Count | tuple[Count, Count] = (1, 5)
    """Number of sources K: one value, or the limits of a uniform draw."""
    snr_db: Finite | tuple[Finite, Finite] = (-5.0, 20.0)
    """Signal to noise ratio in dB, exact in every scene: one value, or the limits of a uniform draw."""
    one_link: bool = False
    """One channel, one codebook and one set of hardware errors for all scenes; else new ones in each."""
    scene: SceneSpec = SceneSpec()
    panel: PanelSpec = PanelSpec()
    channel: ChannelSpec = ChannelSpec()
    codebook: CodebookSpec = CodebookSpec()
    hardware: HardwareSpec = HardwareSpec()

    @model_validator(mode="after")
    def _consistent(self) -> SystemSpec:
        for name, pair in (
            ("sources", self.sources),
            ("snr_db", self.snr_db),
            ("channel.rician_factor_db", self.channel.rician_factor_db),
        ):
            if isinstance(pair, tuple) and pair[1] < pair[0]:
                raise InputError(name, "the lower limit first", f"{pair[0]:g}, {pair[1]:g}")
        if self.channel.kind == "direct" and self.hardware.code_phase_rad > 0:
            raise InputError(
                "hardware.code_phase_rad",
                "0 where the panel is sampled directly (there are no codes)",
                f"{self.hardware.code_phase_rad:g}",
            )
        return self


class HybridSpec(Spec):
    """How the network's covariance is used."""

    section: ClassVar[str] = "hybrid"

    beta: Annotated[float, Field(ge=0, le=1)] | Literal["trained"] = "trained"
    """Share of the sample covariance in the blend that MUSIC searches; 'trained': as in the training."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far R_samp gives way to R_pred in noisy scenes: beta falls by this times the noise's share of the
    energy; 0: the same beta in every scene."""
    own_list: bool = True
    """Let the network's own list of sources stand beside MUSIC as a second start (the likelier end counts),
    and its map name the candidates of exchanges; else all comes from MUSIC on the blend."""
    count: Literal["both", "likelihood", "network"] = "both"
    """With sources 'auto', what tells their number: the network's logits, the likelihood, or both. Where the
    panel may err, 'both' is the network alone."""
    count_floor: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """With count 'both', numbers less probable than this times the most probable one are not tried."""
    exchanges: Annotated[int, Field(ge=0)] = 6
    """Sweeps in which each source is taken out and the best candidate put in its place, where that is
    likelier; 0: none."""
    candidates: Count = 60
    """Highest peaks of the network's map (or of MUSIC, without it), among which exchanges choose, beside
    places next to each source."""
    belief: NonNegative = 1.0
    """Weight of what the network's map says of places, beside the likelihood, where one set of places is
    chosen over another; 0: the likelihood alone. Without the own list it has none."""
    search_from: Annotated[int, Field(ge=0)] = 4
    """From so many sources on, sources are added from all points of the search grid in the end, and the least
    ones dropped, where that is likelier; 0: never."""
    search_below: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The same with fewer sources, where the network's map gives what was found a probability below this; 0:
    never. Without the own list it is not asked."""
    doubt: Annotated[float, Field(ge=0, le=1)] = 0.005
    """Scenes whose data what was found explains with a p value below this are located by 'sbl' too, and the
    better answer counts; 0: none."""
    newton_steps: Count = 1
    """Most steps of each climb of the MUSIC spectrum, where NF-MLE follows."""
    steps: Count = 60
    """Most evaluations of the likelihood from each start."""
    tolerance: Positive = 5e-3
    """A fit has converged when no unknown is predicted to move by more than this many error bars."""
    untrained: bool = False
    """Use the network as it was before it learned anything, to see what its weights are worth."""


class LocateSpec(Spec):
    """How sources are located, and where they are looked for."""

    section: ClassVar[str] = ""

    plugins: Annotated[tuple[str, ...], AfterValidator(load_plugins)] = ()
    """Python modules to import first, which register further methods (see docs: own estimators)."""
    method: Annotated[str, AfterValidator(check_method)] = (
        "hybrid" if (WEIGHTS / "ideal.safetensors").exists() else "sbl"
    )
    """MUSIC on a network's covariance ('hybrid'), spectra of the sample covariance ('music', 'soft_music',
    'mvdr', 'bartlett'), or searches that fit the snapshots themselves: 'omp' (greedy), 'relax' (cyclic),
    'sbl' (sparse Bayesian), 'best' (the likelier of two relaxed starts); or a registered name."""
    weights: str = "ideal"
    """The network of 'hybrid': 'ideal', 'robust' (trained with hardware errors), or a file of weights."""
    hybrid: HybridSpec = HybridSpec()
    sources: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of sources K of each scene, or 'auto'."""
    sources_max: Count = 5
    """With 'auto': the largest number that is tried."""
    panel_error: NonNegative | Literal["trained"] = "trained"
    """Root mean square of the relative error that an element's response may have (0.1: 10 % of amplitude, or
    0.1 rad): the elements' responses are then found along with the sources. 0: the panel is as recorded;
    'trained': with 'hybrid' the errors that its weights were trained with, else 0."""
    polish: bool = True
    """Refine the peaks of a spectrum by near-field maximum likelihood on the snapshots."""
    criterion: Literal["conditional", "unconditional"] = "unconditional"
    """The likelihood that is maximised: of unknown symbols, or of Gaussian ones (fewer misses)."""
    oversampling: Annotated[float, Field(ge=1)] = 2.51
    """Points of the search grid per beam width."""
    azimuth_max_deg: Annotated[float, Field(gt=0, lt=90)] = 60.0
    """Azimuths are searched within this limit to either side."""
    elevation_max_deg: Annotated[float, Field(gt=0, lt=90)] = 30.0
    """Elevations are searched within this limit up or down."""
    range_min_m: Positive = 0.5
    """Nearest range that is searched, in metres."""
    range_max_m: Positive = 10.0
    """Farthest range that is searched, in metres."""

    @property
    def allowed_error(self) -> float:
        """``panel_error`` as a number; 0 where no training has named one."""
        return 0.0 if self.panel_error == "trained" else self.panel_error

    @model_validator(mode="after")
    def _limits(self) -> LocateSpec:
        _check_ranges("", self.range_min_m, self.range_max_m)
        return self


def load_spec(path: str | Path) -> SystemSpec:
    """Read a :class:`SystemSpec` from a TOML file; what it does not name keeps its default.

    Raises:
        InputError: the file is missing, is no TOML, or holds an unknown or impossible setting.
    """
    return SystemSpec(**read_toml(path))


def load_locate_spec(path: str | Path) -> LocateSpec:
    """Read a :class:`LocateSpec` from a TOML file; what it does not name keeps its default.

    Raises:
        InputError: the file is missing, is no TOML, or holds an unknown or impossible setting.
    """
    return LocateSpec(**read_toml(path))
