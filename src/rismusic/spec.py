"""Settings: frozen pydantic models whose errors are one sentence, in TOML; and records in JSON.

The command line, the TOML files and the Python API share these models; no other module holds a default of
the physics. The module does not import torch.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tomlkit
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from rismusic.errors import InputError, renamed_setting
from rismusic.files import RECORDING_ENDINGS, read_text
from rismusic.registry import check_method, load_plugins
from rismusic.text import any_of


def _of_usual_size(value: float) -> float:
    """Refuse numbers that under- or overflow in products with others."""
    if not 1e-15 <= value <= 1e15:
        raise ValueError("must be 1e-15 to 1e+15")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_of_usual_size)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Decibels = Annotated[float, Field(ge=-300, le=300, allow_inf_nan=False)]
"""A level whose linear value single precision holds."""
Spread = Annotated[float, Field(ge=0, le=300, allow_inf_nan=False)]
"""A range of levels, in dB."""
# JSON has no infinity.
_AsText = PlainSerializer(lambda value: "inf" if value == math.inf else value, when_used="json")
Count = Annotated[int, Field(ge=1, lt=2**63)]


Natural = Annotated[int, Field(ge=0, lt=2**63)]
JsonNumber = float | Literal["nan", "inf", "-inf"] | None
"""A number of a JSON file, in which non-finite ones are text; none where there is no value."""


def check_figure_width(width_mm: float) -> float:
    """The printed width of a figure."""
    if not 40.0 <= width_mm <= 1000.0:
        raise InputError(
            "figure_width",
            f"the width of a figure must be 40 to 1000 mm (a column is 88.9 mm); got {width_mm:g}",
        )
    return width_mm


FigureWidth = Annotated[float, AfterValidator(check_figure_width)]
MAX_PATTERN_EXPONENT = 100.0
"""Largest exponent of an element pattern. Those of narrower ones are too small for computations."""
MAX_POSE_STD_DEG, MAX_POSE_STD_M = 20.0, 1.0
"""Largest standard deviations of poses. The derivatives by errors of a pose hold for small ones."""
MAX_PANEL_ERROR = 10.0
"""Largest RMS relative error of the element responses that can be set."""
S = TypeVar("S", bound="Spec")
R = TypeVar("R", bound="Record")
# Files of settings have a few kilobytes; the time of the parser grows faster than their size.
_LARGEST_TOML = 2**16
# Numbers of the largest array of one scene: one gigabyte in single precision.
_LARGEST_SCENE = 2**27
Number = TypeVar("Number", int, float)


class Spec(BaseModel):
    """A frozen group of settings. Unknown names are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    section: ClassVar[str] = ""

    # The instance is positional only, so that a TOML key `self` is an unknown setting like any other.
    def __init__(_spec, /, **values: object) -> None:  # noqa: N805
        try:
            super(Spec, _spec).__init__(**values)
        except ValidationError as error:
            raise _input_error(error, type(_spec)) from None

    def replace(self: S, **settings: object) -> S:
        """A copy with some settings changed. All settings are validated again.

        Raises:
            InputError: a setting is unknown or invalid.
        """
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**kept, **settings})

    def changed(self: S, settings: Mapping[str, object]) -> S:
        """The same for settings with dotted names, such as ``{"panel.rows": 8}``, all validated together."""
        return type(self)(**merged(self.model_dump(), nested(settings)))


class Record(BaseModel):
    """One record of a file. Further names are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def parse_record(kind: type[R], content: str | bytes, source: str, expected: str) -> R:
    """Parse a record from the JSON text of a source, which should be what is ``expected``, as "a checkpoint".

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
    """What pydantic expected of a value, without names of Python's types, as the end of "expected ..."."""
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


def limits(value: Number | tuple[Number, Number]) -> tuple[Number, Number]:
    """Lower and upper limit of a setting that is one value or a pair."""
    return value if isinstance(value, tuple) else (value, value)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Contents of a TOML file.

    Raises:
        InputError: the file cannot be read, is not valid TOML, or is named as a recording.
    """
    path = Path(path)
    if path.suffix.lower() in RECORDING_ENDINGS:  # an empty one is valid TOML
        raise InputError(
            str(path), f"is named as a recording ({path.suffix}), not as a TOML file of settings"
        )
    text = read_text(path, limit=_LARGEST_TOML)
    try:
        return tomlkit.parse(text).unwrap()
    except Exception as error:  # on broken files the parser raises more than its own exceptions
        raise InputError(str(path), f"is not a valid TOML file: {error}") from None


def read_spec(kind: type[S], path: str | Path) -> S:
    """Settings of one kind from a TOML file. Settings that are not in the file keep their defaults.

    Raises:
        InputError: the file cannot be read, is not valid TOML, or has an unknown or invalid setting.
    """
    try:
        return kind(**read_toml(path))
    except InputError as error:
        raise error if error.field == str(path) else InputError(str(path), str(error)) from None


def dump_spec(spec: Spec) -> str:
    """The settings as TOML text, from which equal settings can be made."""
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


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables in place of dotted names."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one; where both have a value, that of the second."""
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both


def _input_error(error: ValidationError, kind: type[Spec]) -> InputError:
    """The first complaint of pydantic as one sentence."""
    errors = error.errors(include_url=False)
    # A pair is tried as one value first; what is wrong with its own values says more.
    within = [one for one in errors if isinstance(one["loc"][-1], int)] if len(errors) > 1 else []
    first = within[0] if within and isinstance(errors[0]["input"], (list, tuple)) else errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    names = _field_names(first["loc"])
    field = ".".join(name for name in [kind.section, *names] if name)
    if first["type"] == "extra_forbidden":
        changed = renamed_setting(field)
        if changed is not None:
            return InputError(field, changed)
        known = setting_names(kind)
        close = [
            ".".join((kind.section, name)).lstrip(".")
            for name in difflib.get_close_matches(".".join(names), known, n=1)
        ]
        return InputError(field, "unknown setting" + (f"; did you mean {close[0]}?" if close else ""))
    found = _shown(first["input"])
    if first["type"] in ("model_type", "dict_type"):
        return InputError(field, f"expected a table of settings, found {found}")
    if isinstance(first["input"], (list, tuple)) and {"missing", "too_long"} & {
        one["type"] for one in errors
    }:
        return InputError(field, f"expected one value or two limits, found {found}")
    if first["type"] == "missing":
        return InputError(field, "is required")
    if isinstance(cause, ValueError):
        return InputError(field, f"{cause}; got {found}")
    # Text that is none of several types gets one error for each of them.
    others = ("tuple_type", "too_short")
    alike = [one for one in errors if _field_names(one["loc"]) == names and one["type"] not in others]
    several = isinstance(first["input"], str) and len(alike) > 1
    wanted = dict.fromkeys(expected(one) for one in (alike if several else [first]))
    # Each of the texts may name several values.
    words = re.split(", | or ", " or ".join(wanted)) if several else [*wanted]
    return InputError(field, f"expected {any_of(words)}, found {found}")


def _field_names(location: Sequence[int | str]) -> list[str]:
    """Where pydantic found an error, without the types of a union that it tried there."""
    types = re.compile(r"[\[(]|^(constrained-.*|int|float|tuple|literal|none)$")
    return [part for part in location if isinstance(part, str) and not types.search(part)]


def _shown(value: object) -> str:
    """A value of a setting, as a TOML file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, bytes, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return "a table" if isinstance(value, dict) else "nothing" if value is None else str(value)


def setting_names(kind: type[Spec], prefix: str = "") -> list[str]:
    """Dotted names of all settings of a kind."""
    names = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Spec):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that come with the package."""

SymbolKind = Literal["gaussian", "qpsk", "constant", "pilots"]

SymbolModel = Literal["independent", "correlated", "constant", "known"]
"""What is known of the symbols; see :class:`rismusic.Recording`."""

Wave = Literal["spherical", "uniform", "fresnel", "paraxial"]
"""Form of the wave; see :mod:`rismusic.array`."""


MIN_RANGE_M, MAX_RANGE_M = 1e-6, 1e12
"""Least and largest range of a source; the largest one is that of coordinates in a room, too."""


def _check_ranges(section: str, low: float, high: float) -> None:
    for name, value in (("min", low), ("max", high)):
        if not MIN_RANGE_M <= value <= MAX_RANGE_M and not math.isinf(value):
            raise InputError(
                f"{section}range_{name}_m", f"expected {MIN_RANGE_M:g} to {MAX_RANGE_M:g} m, found {value:g}"
            )
    if high < low:
        raise InputError(f"{section}range_max_m", f"expected at least range_min_m = {low:g}, found {high:g}")


class PanelSpec(Spec):
    """A uniform panel or circular array, centred on the origin of the panel frame."""

    section: ClassVar[str] = "panel"

    kind: Literal["planar", "circular"] = "planar"
    """Shape. 'planar': rows x columns in the x-y plane; 'circular': horizontal circles of 'columns' elements,
    'rows' of them one above another. A circular array tells azimuths all round, up to 180 deg."""
    rows: Count = 12
    """Number of elements along y (vertical)."""
    columns: Count = 12
    """Number of elements along x (horizontal)."""
    spacing_wavelengths: Positive = 0.5
    """Element spacing, in wavelengths."""
    wavelength_m: Positive = 0.3
    """Wavelength in metres."""
    wave: Wave = "spherical"
    """Form of the wave on the panel. 'spherical': exact phases and amplitudes r / d_n; 'uniform': the same
    phases, equal amplitudes; 'fresnel' and 'paraxial': second-order phases, equal amplitudes."""
    pattern_exponent: Annotated[float, Field(ge=0, le=MAX_PATTERN_EXPONENT)] = 0.0
    """Exponent q of the element pattern cos^q (amplitude); 0: isotropic."""

    @model_validator(mode="after")
    def _isotropic(self) -> PanelSpec:
        if self.kind == "circular" and self.pattern_exponent:
            raise InputError(
                "panel.pattern_exponent",
                "must be 0 for a circular array, whose elements have different normals; got "
                f"{self.pattern_exponent:g}",
            )
        return self


class ChannelSpec(Spec):
    """The channel H from the panel to the base station, or direct sampling of the panel."""

    section: ClassVar[str] = "channel"

    kind: Literal["rician", "rayleigh", "direct"] = "rician"
    """Channel model. 'rician': geometric line of sight plus scatter; 'rayleigh': i.i.d. scatter; 'direct': no
    channel, each element of the panel is sampled (M = N)."""
    antennas: Count = 16
    """Number of base station antennas, M (a uniform linear array parallel to x)."""
    antenna_spacing_wavelengths: Positive = 0.5
    """Antenna spacing of the base station, in wavelengths."""
    distance_m: Positive = 100.0
    """Distance from the panel to the centre of the base station array, in metres."""
    azimuth_max_deg: Annotated[float, Field(ge=0, lt=90)] = 60.0
    """Maximum absolute azimuth of the base station, in degrees (drawn uniformly)."""
    elevation_max_deg: Annotated[float, Field(ge=0, lt=90)] = 30.0
    """Maximum absolute elevation of the base station, in degrees (drawn uniformly)."""
    rician_factor_db: Decibels | tuple[Decibels, Decibels] = (-3.0, 10.0)
    """Rician K-factor in dB: one value, or the limits of a uniform distribution."""


class CodebookSpec(Spec):
    """The RIS configurations c_l, one for each snapshot."""

    section: ClassVar[str] = "codebook"

    kind: Literal["random", "dft", "hadamard"] = "random"
    """Codebook. 'random': independent phases; 'dft': beams of the 2-D DFT; 'hadamard': rows of +1 and -1."""
    snapshots: Count = 16
    """Number of snapshots of a scene, L."""
    bits: Annotated[int, Field(ge=1, le=16)] | Literal["continuous"] = 3
    """Phase resolution of the RIS elements in bits, or 'continuous'."""


class ImpulseSpec(Spec):
    """Impulsive noise: some samples at the receiver have additional noise."""

    section: ClassVar[str] = "impulses"

    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a sample holds an impulse; 0: Gaussian noise alone."""
    power_db: Decibels = 30.0
    """Mean power of an impulse over the noise variance, in dB."""


class HardwareSpec(Spec):
    """Hardware impairments: differences between the real panel and the one that the recording describes."""

    section: ClassVar[str] = "hardware"

    static_phase_rad: NonNegative = 0.0
    """Standard deviation of the constant phase error of each element, in radians."""
    code_phase_rad: NonNegative = 0.0
    """Standard deviation of the phase error drawn for each element and RIS configuration, in radians."""
    gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Element gains are uniform between 1 - gain and 1 + gain."""
    dead_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that an element is dead (does not reflect)."""
    position_wavelengths: NonNegative = 0.0
    """Maximum displacement of an element along each axis, in wavelengths."""

    @property
    def response_error(self) -> float:
        """RMS relative error of the element responses, for small phase errors."""
        phase = self.static_phase_rad**2 + self.code_phase_rad**2
        # Only the displacement along the ray, a unit vector, changes the phase.
        position = (2 * math.pi * self.position_wavelengths) ** 2 / 3
        return math.sqrt(phase + position + self.gain**2 / 3 + self.dead_fraction)


class SceneSpec(Spec):
    """Positions, powers and symbols of the sources."""

    section: ClassVar[str] = "scene"

    azimuth_max_deg: Annotated[float, Field(gt=0, le=180)] = 60.0
    """Maximum absolute azimuth, in degrees (drawn uniformly); below 90 for planar arrays."""
    elevation_max_deg: Annotated[float, Field(gt=0, lt=90)] = 30.0
    """Maximum absolute elevation, in degrees (drawn uniformly)."""
    range_min_m: Positive = 0.5
    """Minimum range, in metres."""
    range_max_m: Positive = 10.0
    """Maximum range, in metres."""
    separation_deg: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)] = 8.0
    """Minimum separation of two sources in degrees: the larger of their azimuth and elevation differences."""
    power: Literal["equal", "path_loss"] = "equal"
    """Source powers: 'equal', or 'path_loss' (proportional to 1 / range^2). Their mean in a scene is 1."""
    power_spread_db: Spread = 0.0
    """Width of an additional uniform random power variation, in dB."""
    symbols: SymbolKind = "gaussian"
    """Symbols: 'gaussian' and 'qpsk' change with every snapshot; 'constant' is one symbol for all snapshots;
    'pilots' are known QPSK symbols times one unknown phase per source."""
    correlation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Correlation coefficient of the 'gaussian' symbols of any two sources; 1: all sources send the same."""

    @model_validator(mode="after")
    def _limits(self) -> SceneSpec:
        _check_ranges("scene.", self.range_min_m, self.range_max_m)
        if self.correlation and self.symbols != "gaussian":
            raise InputError("scene.correlation", f"must be 0 for {self.symbols} symbols")
        return self


class WidebandSpec(Spec):
    """Subcarriers of a wideband signal (OFDM), evenly spaced around the carrier."""

    section: ClassVar[str] = "wideband"

    subcarriers: Count = 1
    """Number of subcarriers, F; 1: a narrowband signal."""
    bandwidth_hz: Positive = 100e6
    """Bandwidth in hertz; the spacing of the subcarriers is this over their number."""


class SystemSpec(Spec):
    """A system: panel, channel, RIS configurations, hardware impairments, sources and noise."""

    sources: Count | tuple[Count, Count] = (1, 5)
    """Number of sources K: one value, or the limits of a uniform distribution."""
    snr_db: Decibels | tuple[Decibels, Decibels] = (-5.0, 20.0)
    """SNR in dB, realised exactly in every scene: one value, or the limits of a uniform distribution."""
    one_link: bool = False
    """Use one channel, codebook and set of hardware impairments for all scenes, not new ones for each."""
    one_panel: bool = False
    """Use one panel for all scenes: the same element gains, phases, dead elements and displacements. Channel,
    codebook and the phase errors of each configuration are new in every scene."""
    scene: SceneSpec = SceneSpec()
    panel: PanelSpec = PanelSpec()
    channel: ChannelSpec = ChannelSpec()
    codebook: CodebookSpec = CodebookSpec()
    hardware: HardwareSpec = HardwareSpec()
    wideband: WidebandSpec = WidebandSpec()
    impulses: ImpulseSpec = ImpulseSpec()

    @model_validator(mode="after")
    def _consistent(self) -> SystemSpec:
        for name, pair in (
            ("sources", self.sources),
            ("snr_db", self.snr_db),
            ("channel.rician_factor_db", self.channel.rician_factor_db),
        ):
            if isinstance(pair, tuple) and pair[1] < pair[0]:
                raise InputError(name, f"give the lower limit first; got {pair[0]:g}, {pair[1]:g}")
        if self.scene.symbols == "pilots" and isinstance(self.sources, tuple):
            low, high = self.sources
            if low != high:
                raise InputError(
                    "sources", f"pilots need one number of sources, the same in all scenes; got {low}, {high}"
                )
        if self.scene.symbols == "pilots" and self.wideband.subcarriers > 1:
            raise InputError("scene.symbols", "pilots are simulated for one subcarrier only")
        N, L, K = self.panel.rows * self.panel.columns, self.codebook.snapshots, limits(self.sources)[1]
        M = N if self.channel.kind == "direct" else self.channel.antennas
        links = 0 if self.channel.kind == "direct" else M * N
        F = self.wideband.subcarriers
        if (largest := F * max(links, L * N, L * M, K * N, K * K, K * L)) > _LARGEST_SCENE:
            raise InputError(
                "system",
                f"a scene of {N:,} elements, {M:,} antennas, {L:,} snapshots and {K:,} sources has an array "
                f"of {largest:,} numbers; the limit is {_LARGEST_SCENE:,}",
            )
        if self.channel.kind == "direct" and self.hardware.code_phase_rad > 0:
            raise InputError(
                "hardware.code_phase_rad",
                "must be 0 if the panel is sampled directly (there are no RIS configurations); "
                f"got {self.hardware.code_phase_rad:g}",
            )
        return self


class LinkBudgetSpec(Spec):
    """Receiver, antennas and elements of a link budget; see :mod:`rismusic.link_budget`.

    Distances, number of elements and wavelength are those of the system.
    """

    section: ClassVar[str] = "budget"

    bandwidth_hz: Positive = 1e6
    """Noise bandwidth of the receiver in hertz: the reciprocal of the integration time of a snapshot."""
    noise_figure_db: Spread = 5.0
    """Noise figure of the receiver, in dB."""
    temperature_k: NonNegative = 290.0
    """Noise temperature of the receiving antenna, in kelvins."""
    transmit_gain_dbi: Decibels = 0.0
    """Antenna gain of a source towards the panel, in dBi."""
    receive_gain_dbi: Decibels = 0.0
    """Gain of a base station antenna towards the panel, in dBi. Not used with direct sampling."""
    element_area_m2: Positive | None = None
    """Area of a RIS element, in square metres. Default: (wavelength / 2)^2, or the square of the element
    spacing if that is smaller."""
    element_gain_dbi: Decibels | None = None
    """Peak gain of an element, in dBi. Default: that of its area, 4 pi area / wavelength^2."""


class HybridSpec(Spec):
    """Expert settings of the hybrid estimator."""

    section: ClassVar[str] = "hybrid"

    beta: Annotated[float, Field(ge=0, le=1)] | Literal["trained"] = "trained"
    """Weight of the sample covariance R_samp in the blend R_blend; 'trained': the value used in training."""
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Reduce beta in noisy scenes by this times the noise's share of the energy; 0 disables it."""
    network_sources: bool = True
    """Use the network's source list as a second starting point beside MUSIC on R_blend, and its heat map for
    the candidates of the RELAX sweeps."""
    model_order: Literal["both", "likelihood", "network"] = "both"
    """If the number of sources is 'auto': estimate it from the likelihood, the network's probabilities, or
    both. With hardware impairments (panel_error > 0), 'both' uses the network alone."""
    model_order_floor: Annotated[float, Field(ge=0, lt=1)] = 1e-2
    """With model_order 'both': skip numbers of sources whose network probability is below this times the
    highest one."""
    relax_sweeps: Annotated[int, Field(ge=0)] = 6
    """Maximum number of RELAX sweeps. Each sweep replaces every source by its best candidate if that
    increases the likelihood; 0 disables them."""
    candidates: Count = 60
    """Number of candidates of a RELAX sweep: peaks of the heat map, or of MUSIC without network_sources."""
    spatial_prior: NonNegative = 1.0
    """Weight of the heat map as a spatial prior beside the likelihood; 0: likelihood only."""
    birth_death_min_sources: Annotated[int, Field(ge=0)] = 4
    """Minimum number of sources for birth-death search over the whole grid; 0 disables it."""
    birth_death_prior_below: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Run birth-death search for fewer sources, too, if the heat map gives the estimate a probability below
    this; 0 disables it."""
    recheck_p_value: Annotated[float, Field(ge=0, le=1)] = 0.005
    """If the p-value of the fit is below this, SBL is run as well and the better fit is kept."""
    newton_steps: Count = 1
    """Maximum number of Newton steps from each peak of the MUSIC spectrum, before NF-MLE."""
    max_evaluations: Count = 60
    """Maximum number of likelihood evaluations from each starting point of NF-MLE."""
    tolerance: Positive = 5e-3
    """NF-MLE has converged when no parameter is predicted to move by more than this many error bars."""
    untrained: bool = False
    """Use the network with its initial random weights, for comparison."""


class LocateSpec(Spec):
    """The method, its settings and the search volume."""

    section: ClassVar[str] = ""

    plugins: Annotated[tuple[str, ...], AfterValidator(load_plugins)] = ()
    """Modules with methods of your own, on PYTHONPATH."""
    method: Annotated[str, AfterValidator(check_method)] = (
        "hybrid" if (WEIGHTS / "ideal.safetensors").exists() else "sbl"
    )
    """'hybrid' (MUSIC on a network's covariance, then NF-MLE); spectra of the sample covariance: 'music',
    'soft_music', 'mvdr', 'bartlett'; model-based searches: 'omp', 'relax', 'sbl' (sparse Bayesian learning),
    'best' (the likelier of RELAX from OMP and from SBL); or your own (--plugins)."""
    weights: str = "ideal"
    """Weights of 'hybrid': 'ideal', 'robust' (trained with hardware impairments), or a file."""
    hybrid: HybridSpec = HybridSpec()
    sources: Annotated[int, Field(ge=0, le=1000)] | Literal["auto"] = "auto"
    """Number of sources K of each scene, or 'auto' to estimate it."""
    sources_max: Annotated[int, Field(ge=1, le=1000)] = 5
    """Maximum number of sources, if it is estimated."""
    panel_error: Annotated[float, Field(ge=0, le=MAX_PANEL_ERROR)] | Literal["auto"] = "auto"
    """RMS relative error of the element responses (0.1: 10 %); 'auto': estimated, or that of the weights'
    training; 0: none."""
    wave: Wave | Literal["recorded", "auto"] = "recorded"
    """Form of the wave: 'spherical', 'uniform', 'fresnel', 'paraxial'; 'recorded': what the recording states;
    'auto': the most likely one."""
    symbols: SymbolModel | Literal["recorded", "auto"] = "recorded"
    """Symbols: 'independent' in every snapshot, 'correlated' (the same, but correlated between sources),
    'constant' over all snapshots, 'known' (the recording's pilots); 'recorded': what the recording states;
    'auto': the more probable of independent and constant."""
    noise: Literal["white", "per_output", "impulsive"] = "white"
    """Noise of the receiver: 'white' (unless the recording has a noise covariance); 'per_output': each
    receiver output has a noise variance of its own, estimated from the residual of a first fit; 'impulsive':
    samples with impulses are found and down-weighted."""
    polish: bool = True
    """Refine the peaks of a spectrum by near-field maximum likelihood (NF-MLE) on the snapshots."""
    criterion: Literal["conditional", "unconditional"] = "unconditional"
    """Likelihood to maximise: 'conditional' (deterministic symbols) or 'unconditional' (Gaussian symbols)."""
    oversampling: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.51
    """Search grid points per beam width."""
    azimuth_max_deg: Annotated[float, Field(gt=0, le=180)] = 60.0
    """Maximum absolute azimuth of the search, in degrees; below 90 for planar arrays."""
    elevation_max_deg: Annotated[float, Field(gt=0, lt=90)] = 30.0
    """Maximum absolute elevation of the search, in degrees."""
    range_min_m: Positive = 0.5
    """Minimum range of the search, in metres."""
    range_max_m: Annotated[float, Field(gt=0), _AsText] = 10.0
    """Maximum range of the search, in metres; inf includes sources in the far field."""
    unknowns: Annotated[tuple[Literal["azimuth", "elevation", "range"], ...], Field(min_length=1)] = (
        "azimuth",
        "elevation",
        "range",
    )
    """Coordinates that are estimated. An angle that is left out is taken to be 0 deg, the range range_max_m:
    estimate what is not known, even if it is not wanted. For a line one angle is left out by itself."""

    @property
    def allowed_error(self) -> float:
        """``panel_error`` as a number; 0 for 'auto' before the weights are known."""
        return 0.0 if self.panel_error == "auto" else self.panel_error

    @model_validator(mode="after")
    def _limits(self) -> LocateSpec:
        _check_ranges("", self.range_min_m, self.range_max_m)
        return self


class CalibrateSpec(Spec):
    """Calibration of a panel: prior errors, and how the sources are located."""

    section: ClassVar[str] = ""

    method: Annotated[str, AfterValidator(check_method)] = "best"
    """Method that locates the sources, as in 'locate'."""
    sources: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of sources K of each scene, or 'auto' to estimate it."""
    sources_max: Count = 5
    """Maximum number of sources, if it is estimated."""
    panel_error: Annotated[float, Field(gt=0, le=MAX_PANEL_ERROR)] = 0.2
    """Expected RMS relative error of the element responses (0.1: 10 % in amplitude, or 0.1 rad)."""
    position_error_wavelengths: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Expected RMS displacement of the elements along each axis, in wavelengths; 0: only the responses are
    estimated."""
    rounds: Count = 3
    """How often the sources are located and the panel is fitted."""
    azimuth_max_deg: Annotated[float, Field(gt=0, lt=90)] = 60.0
    """Maximum absolute azimuth of the search, in degrees."""
    elevation_max_deg: Annotated[float, Field(gt=0, lt=90)] = 30.0
    """Maximum absolute elevation of the search, in degrees."""
    range_min_m: Positive = 0.5
    """Minimum range of the search, in metres."""
    range_max_m: Positive = 10.0
    """Maximum range of the search, in metres."""

    @model_validator(mode="after")
    def _limits(self) -> CalibrateSpec:
        _check_ranges("", self.range_min_m, self.range_max_m)
        return self
