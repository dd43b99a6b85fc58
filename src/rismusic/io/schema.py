"""Schema of a recording: names, types, shapes and axes of its fields, and the checks of shapes and values.

It is that of every format and of recordings in memory. Values must be finite, non-zero and in plausible
units, and a pose rigid.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, Panel, faces_forward, without_axes
from rismusic.errors import InputError, check_choice
from rismusic.sources import Sources, check_sources
from rismusic.spec import MAX_RANGE_M, SymbolModel

FORMAT = "rismusic/1"
ATTRIBUTES = ("format", "wavelength", "wave", "pattern_exponent", "symbols")


@dataclass(frozen=True)
class Field:
    """One array of a recording.

    Args:
        name: as in ``.h5``; ``truth/x`` is ``truth_x`` in the flat formats.
        kind: ``real`` or ``complex``.
        axes: one letter per axis: scenes S, subcarriers F, snapshots L, antennas M, elements N, sources K; 3
            and 4 are lengths.
        shared: whether the scene axis may be absent (one value for all scenes).
    """

    name: str
    kind: Literal["real", "complex"]
    axes: str
    shared: bool = False

    def per_scene(self, rank: int) -> bool:
        """Whether an array with ``rank`` axes has a scene axis."""
        return self.axes.startswith("S") and rank == len(self.axes)

    @property
    def flat_name(self) -> str:
        """The name in ``.npz`` and ``.mat``."""
        return self.name.replace("/", "_")


FIELDS = {
    field.name: field
    for field in (
        Field("elements", "real", "N3"),
        Field("snapshots", "complex", "SLM"),
        Field("channel", "complex", "SMN", shared=True),
        Field("codes", "complex", "SLN", shared=True),
        Field("noise_variance", "real", "S"),
        Field("noise_covariance", "complex", "SMM", shared=True),
        Field("pilots", "complex", "SLK", shared=True),
        Field("times", "real", "S"),
        Field("frequencies", "real", "F"),
        Field("pose", "real", "44"),
        Field("truth/azimuth", "real", "SK"),
        Field("truth/elevation", "real", "SK"),
        Field("truth/range", "real", "SK"),
        Field("truth/power", "real", "SK"),
        Field("truth/symbols", "complex", "SKL"),
    )
}
WIDEBAND = FIELDS | {
    field.name: field
    for field in (
        Field("snapshots", "complex", "SFLM"),
        Field("channel", "complex", "SFMN", shared=True),
        Field("truth/symbols", "complex", "SKX"),
    )
}
"""The fields of a recording with subcarriers F; X = F L."""


def fields_of(names: Collection[str]) -> Mapping[str, Field]:
    """The fields of a recording that has fields of these names: narrowband or wideband."""
    return WIDEBAND if "frequencies" in names else FIELDS


TRUTH = ("truth/azimuth", "truth/elevation", "truth/range")
AXES = {
    "S": "scene",
    "L": "snapshot",
    "M": "antenna",
    "N": "element",
    "F": "subcarrier",
    "X": "subcarrier and snapshot",
    "K": "source",
    "3": "coordinate",
    "4": "row or column",
}

_FROM_FLAT = {field.flat_name: field.name for field in FIELDS.values()}


def from_flat(name: str) -> str:
    """The name in ``.h5`` of a field called ``name`` in ``.npz`` or ``.mat``; unknown names stay."""
    return _FROM_FLAT.get(name, name)


def to_flat(name: str) -> str:
    """The name in ``.npz`` and ``.mat`` of a field or attribute."""
    return FIELDS[name].flat_name if name in FIELDS else name


class Description(NamedTuple):
    """Shape and NumPy type name (such as ``complex64``) of an array."""

    shape: tuple[int, ...]
    dtype: str


class Placement(NamedTuple):
    """Full shape of an array, and the axis of the stored one that counts scenes; none if all share it."""

    shape: tuple[int, ...]
    scene_axis: int | None


@dataclass(frozen=True)
class Structure:
    """Sizes of a recording, S, L, M, N and K_max (none without truth), and the placement of each field."""

    scenes: int
    snapshots: int
    antennas: int
    size: int
    sources_max: int | None
    placements: Mapping[str, Placement]

    def per_scene(self, name: str) -> bool:
        """Whether a field is present with a scene axis."""
        return name in self.placements and self.placements[name].scene_axis is not None


def check_structure(
    found: Mapping[str, Description], *, matlab: bool = False, single: bool = False
) -> Structure:
    """Check that fields are present and consistent, and derive the sizes.

    ``matlab`` accepts MATLAB's shapes: trailing axes of length 1 removed, vectors as rows or columns.
    ``single``: the snapshots were given as one scene [L, M]; error messages omit the scene axis.
    """
    fields = fields_of(found)
    for name in ("elements", "snapshots"):
        if name not in found:
            raise InputError(name, f"missing; a recording needs {name}, {_axes(fields[name])}")
    for name, other in (("channel", "codes"), ("codes", "channel")):
        if name in found and other not in found:
            raise InputError(
                other,
                f"missing. A RIS needs {other}, {_axes(FIELDS[other])}, to go with {name}; a directly "
                "sampled array has neither",
            )
    truth = [name for name in found if name.startswith("truth/")]
    for name in TRUTH:
        if truth and name not in found:
            raise InputError(name, f"missing; needed, {_axes(FIELDS[name])}, to go with {truth[0]}")
    for name, description in found.items():
        _check_type(fields[name], description)

    sizes = {"3": 3, "4": 4}
    _measure(fields["elements"], found["elements"], sizes, matlab=matlab)
    if "frequencies" in found:
        shape, dtype = found["frequencies"]
        if matlab and len(shape) == 2 and 1 in shape:
            shape = (max(shape),)
        _measure(fields["frequencies"], Description(shape, dtype), sizes, matlab=matlab)
        found = {**found, "frequencies": Description(shape, dtype)}
    axes, (shape, dtype) = fields["snapshots"].axes, found["snapshots"]
    as_one = {**found, "snapshots": Description((1, *shape), dtype)}
    one_scene = len(shape) == len(axes) - 1 and _is_one_scene(found, sizes, matlab=matlab)
    if one_scene:
        found = as_one
    elif len(shape) == len(axes) - 1 > 1 and not matlab:
        _check_orientation(as_one, sizes, axes, single=True)
    _check_orientation(found, sizes, axes, single=single)
    _measure(fields["snapshots"], found["snapshots"], sizes, matlab=matlab)
    sizes["X"] = sizes["L"] * sizes.get("F", 1)
    if "channel" not in found and sizes["M"] != sizes["N"]:
        hint = "For a RIS, give channel and codes"
        if len(found["snapshots"].shape) == 2 and found["snapshots"].shape[0] == sizes["N"]:
            hint = f"The matrix {list(found['snapshots'].shape)} looks like M x L: store snapshots.'"
        raise InputError(
            "snapshots",
            f"a directly sampled array (no channel, no codes) needs M = N = {sizes['N']} outputs, one per "
            f"element; got M = {sizes['M']}. {hint}",
        )
    if truth:
        # A row [1, S] of MATLAB's is one source in each of S scenes.
        row = matlab and sizes["S"] > 1 and found["truth/azimuth"].shape == (1, sizes["S"])
        shape = (sizes["S"], 1) if row else found["truth/azimuth"].shape
        _measure(
            fields["truth/azimuth"], Description(shape, found["truth/azimuth"].dtype), sizes, matlab=matlab
        )
    if "pilots" in found and len(found["pilots"].shape) < 2:
        got = list(found["pilots"].shape)
        hint = ". Those of one source are [L, 1]: pass pilots[:, None]" if got == [sizes["L"]] else ""
        raise InputError("pilots", f"must be {_axes(fields['pilots'])}; got shape {got}{hint}")
    if "pilots" in found and "K" not in sizes:
        *_, rows, columns = found["pilots"].shape
        sizes["K"] = rows if columns == sizes["L"] != rows else columns  # transposed, if they are the rows
        if sizes["K"] < 1:
            got = list(found["pilots"].shape)
            raise InputError("pilots", f"needs at least one {AXES['K']}; got shape {got}")
    placements = {
        name: _place(fields[name], description.shape, sizes, matlab=matlab)
        for name, description in found.items()
    }
    if one_scene:
        placements["snapshots"] = Placement(placements["snapshots"].shape, None)
    return Structure(
        scenes=sizes["S"],
        snapshots=sizes["L"],
        antennas=sizes["M"],
        size=sizes["N"],
        sources_max=sizes.get("K") if truth else None,
        placements=placements,
    )


def _outputs_and_snapshots(
    found: Mapping[str, Description], sizes: Mapping[str, int]
) -> tuple[int, int | None] | None:
    """M and L as the other fields have them, L if they have it; none if these are wrong themselves."""
    if "channel" not in found:
        return sizes["N"], None
    H, c = found["channel"].shape, found["codes"].shape
    if len(H) < 2 or len(c) < 2 or H[-1] != sizes["N"] or c[-1] != sizes["N"]:
        return None
    return H[-2], c[-2]


def _fits(shape: Sequence[int], M: int, L: int | None, F: int | None) -> bool:
    """Whether snapshots of this shape fit M outputs, L snapshots and F subcarriers, where these are known."""
    fits = shape[-1] == M and (L is None or shape[-2] == L)
    return fits and (F is None or shape[-3] == F)


def _is_one_scene(found: Mapping[str, Description], sizes: Mapping[str, int], *, matlab: bool) -> bool:
    """Whether snapshots are one scene, [L, M] or [F, L, M], and not MATLAB's [S, L] without the last axis."""
    shape, other = found["snapshots"].shape, _outputs_and_snapshots(found, sizes)
    if other is None or (matlab and (len(shape) != 2 or sizes["N"] == 1)):
        return False
    fields = fields_of(found)
    several = (
        fields[name].axes[:1] == "S" and len(one.shape) == len(fields[name].axes) and one.shape[0] > 1
        for name, one in found.items()
        if not matlab
    )
    return _fits(shape, *other, sizes.get("F")) and not any(several)


def _check_orientation(
    found: Mapping[str, Description], sizes: Mapping[str, int], axes: str, *, single: bool
) -> None:
    """Refuse snapshots that fit the other fields only with their axes in another order."""
    shape, other = found["snapshots"].shape, _outputs_and_snapshots(found, sizes)
    F = sizes.get("F")
    if len(shape) != len(axes) or other is None or _fits(shape, *other, F):
        return
    (M, L), N = other, sizes["N"]
    given, letters = (list(shape[1:]), axes[1:]) if single else (list(shape), axes)
    for order in permutations(range(len(given))):
        if not _fits([given[axis] for axis in order], M, L, F):
            continue
        seen = ["?"] * len(letters)
        for letter, axis in zip(letters, order, strict=True):
            seen[axis] = letter
        turn = f"snapshots.transpose({', '.join(map(str, order))})"
        advice = f"looks like [{', '.join(seen)}]: pass {turn} (for tensors .permute)"
        if len(letters) == 2:
            advice = (
                "looks like M x L, one scene: pass snapshots.T (for tensors snapshots.mT). If MATLAB's ' "
                "made it, which also conjugates, pass snapshots.conj().T"
            )
        reason = (
            f"M = N = {N} of a directly sampled array"
            if L is None
            else f"L = {L} of codes, M = {M} of channel"
        )
        if F is not None:
            reason += f", F = {F} of frequencies"
        raise InputError(
            "snapshots",
            f"shape {given} does not fit [{', '.join(letters)}] with {reason}. It {advice}",
        )


def _check_type(field: Field, description: Description) -> None:
    prefix = {"real": "float", "complex": "complex"}[field.kind]
    if description.dtype.startswith(prefix):
        return
    hint = ""
    if field.kind == "complex" and description.dtype.startswith("float"):
        hint = " (real numbers). If the imaginary part is 0, convert to complex64"
    if description.dtype == "object":
        hint = " (text or Python objects, which are never unpickled)"
    raise InputError(
        field.name, f"must hold {field.kind} floating-point numbers; got {description.dtype}{hint}"
    )


def _measure(field: Field, description: Description, sizes: dict[str, int], *, matlab: bool) -> None:
    """Set the sizes that are not known yet from the shape of this field."""
    name, axes, shape = field.name, field.axes, description.shape
    if matlab and len(shape) == 2:
        shape = shape + (1,) * (len(axes) - 2)
    if len(shape) != len(axes):
        hint = ""
        if name == "snapshots" and len(shape) == 1:
            hint = ". One scene of a single antenna is [L, 1]: pass snapshots.reshape(-1, 1)"
        if name == "snapshots" and len(shape) == 2:
            hint = ". Store one scene as [1, L, M]"
            if "F" in axes:
                hint = ". One scene is [F, L, M]; if L = 1, pass snapshots[:, None, :]"
        if name == "elements":
            hint = without_axes(shape)
        if name == "snapshots" and len(shape) == 4:
            hint = ". Snapshots [S, F, L, M] of F subcarriers need frequencies, [F] in hertz"
        raise InputError(name, f"must be {_axes(field)}; got shape {list(description.shape)}{hint}")
    for axis, length in zip(axes, shape, strict=True):
        if axis == "3" and length != 3:
            hint = " (transposed?)" if shape[0] == 3 else without_axes(shape) if name == "elements" else ""
            raise InputError(name, f"must be {_axes(field)}; got shape {list(description.shape)}{hint}")
        if length < 1:
            raise InputError(name, f"needs at least one {AXES[axis]}; got shape {list(description.shape)}")
        if axis == "F" and sizes.get("F", length) != length:
            raise InputError(
                name,
                f"must have F = {sizes['F']} subcarriers, one for each of frequencies; got {length}. "
                "The axes are [S, F, L, M], for one scene [F, L, M]",
            )
        sizes.setdefault(axis, length)


def _place(field: Field, shape: tuple[int, ...], sizes: Mapping[str, int], *, matlab: bool) -> Placement:
    options = [field.axes[1:], field.axes] if field.shared else [field.axes]
    for axes in options:
        target = tuple(sizes[axis] for axis in axes)
        scene_axis = 0 if axes.startswith("S") else None
        if shape == target or (matlab and _stripped(shape) == _stripped(target)):
            return Placement(target, scene_axis)
        if matlab and scene_axis == 0 and shape == (1, sizes["S"]) and _stripped(target) == (sizes["S"],):
            return Placement(target, 1)
    targets = [tuple(sizes[axis] for axis in axes) for axes in options]
    shapes = " or ".join(str(list(target)) for target in targets)
    turned = len(shape) > 1 and (*shape[:-2], shape[-1], shape[-2]) in targets
    hint = " (transposed?)" if turned else ""
    why = "" if field.axes.isdigit() else f" ({_axes(field)}, with the sizes of the other fields)"
    raise InputError(field.name, f"must have shape {shapes}{why}; got {list(shape)}{hint}")


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _axes(field: Field) -> str:
    options = [field.axes[1:], field.axes] if field.shared else [field.axes]
    letters = " or ".join(f"[{', '.join(axes)}]".replace("K", "K_max") for axes in options)
    return f"{field.kind} {letters}"


# Least and largest plausible distance between neighbouring elements.
_SPACING_WAVELENGTHS = (1 / 100, 10)
# Largest plausible extent of a panel.
_EXTENT_WAVELENGTHS = 1e6

# Limits of the largest modulus of a scene, since squares are computed in single precision.
_MAGNITUDE = (1e-15, 1e15)

# Largest factor between the standard deviation of the noise and the largest value of the snapshots.
_NOISE_RATIO = 1e20
# Largest ratio of the eigenvalues of a noise covariance, which double precision can whiten.
_NOISE_CONDITION = 1e14

# Largest deviation of a pose from a rigid transform.
_POSE_TOLERANCE = 1e-6


def check_panel(panel: Panel) -> None:
    """Refuse element spacings that suggest a wrong unit of the positions or of the wavelength."""
    if panel.size < 2:
        return
    extent = float((panel.elements.amax(-2) - panel.elements.amin(-2)).max()) / panel.wavelength
    if extent > _EXTENT_WAVELENGTHS:
        raise InputError(
            "elements",
            f"extend over {extent:.3g} wavelengths; at most {_EXTENT_WAVELENGTHS:g} are possible. Is a "
            "position wrong?",
        )
    spacing, (low, high) = panel.spacing / panel.wavelength, _SPACING_WAVELENGTHS
    if not low <= spacing <= high:
        raise InputError(
            "wavelength",
            f"elements are {spacing:.3g} wavelengths apart (wavelength {panel.wavelength:g}, least spacing "
            f"{panel.spacing:.3g}; is one of them in another unit?{_likely_unit(panel)}). Wavelength and "
            f"elements must be in metres, and neighbouring elements {low:g} to {high:g} wavelengths apart",
        )


def check_values(values: Mapping[str, Tensor], truth: Sources | None, *, first_scene: int = 0) -> None:
    """Check that values are finite, of positive power and physically possible.

    Error messages count scenes from ``first_scene``.
    """
    fields = fields_of(values)
    for name in (
        *("snapshots", "channel", "codes", "noise_variance", "noise_covariance", "pilots", "times"),
        "frequencies",
    ):
        if name in values:
            _check_finite(fields[name], values[name], first_scene)
    for name in ("snapshots", "channel", "codes", "pilots"):
        if name in values:
            _check_magnitude(fields[name], values[name], first_scene)
    noise = values.get("noise_variance")
    if noise is not None and (noise <= 0).any():
        scene = int((noise <= 0).nonzero()[0])
        raise InputError(
            "noise_variance", f"must be positive; got {float(noise[scene]):g} in scene {first_scene + scene}"
        )
    _check_noise_level(values, first_scene)
    frequencies = values.get("frequencies")
    if frequencies is not None and (frequencies <= 0).any():
        raise InputError("frequencies", f"must be positive, in hertz; got {float(frequencies.min()):g}")
    if "noise_covariance" in values:
        _check_covariance(values["noise_covariance"], first_scene)
    if "pose" in values:
        check_pose(values["pose"])
    if truth is not None:
        check_sources(truth, behind="elements" in values and not faces_forward(values["elements"]))
        if truth.symbols is not None:
            _check_symbols(truth.symbols, truth.active, first_scene)


def _check_noise_level(values: Mapping[str, Tensor], first_scene: int) -> None:
    """Refuse noise that is so far from the power of the data that one of them has another unit."""
    if "snapshots" not in values:
        return
    y = values["snapshots"].flatten(1)
    largest = torch.view_as_real(y).abs().amax((1, 2)).double()
    for name in ("noise_variance", "noise_covariance"):
        if name not in values:
            continue
        noise = values[name]
        if noise.is_complex():
            noise = noise.diagonal(dim1=-2, dim2=-1).real.mean(-1)
        ratio = noise.double().sqrt() / largest
        # Scenes without any power have been refused.
        off = ((ratio < 1 / _NOISE_RATIO) | (ratio > _NOISE_RATIO)).expand(len(y))
        if not off.any():
            continue
        scene = int(off.nonzero()[0])
        raise InputError(
            name,
            f"{float(noise.expand(len(y))[scene]):g} and snapshots of up to {float(largest[scene]):g} in "
            f"scene {first_scene + scene} cannot have the same unit",
        )


def check_frequencies(frequencies: Tensor, wavelength: float) -> None:
    """Check that subcarriers are near the frequency of the wavelength, and not offsets or in another unit."""
    ratio = frequencies.double() * wavelength / SPEED_OF_LIGHT
    if not ((ratio > 0) & ((ratio < 0.1) | (ratio > 10))).any():
        return
    low, high = float(ratio.min()), float(ratio.max())
    units = {"GHz": 1e9, "MHz": 1e6, "kHz": 1e3}
    near = [unit for unit, factor in units.items() if low * factor > 0.1 and high * factor < 10]
    raise InputError(
        "frequencies",
        f"must be those of the signal, in hertz; got {float(frequencies.min()):g} to "
        f"{float(frequencies.max()):g} Hz, while the wavelength {wavelength:g} m has "
        f"{SPEED_OF_LIGHT / wavelength:.4g} Hz. Are they {f'in {near[0]}' if near else 'offsets'}?",
    )


def check_symbols(symbols: SymbolModel, *, has_pilots: bool) -> None:
    """Check that the model of the symbols and the pilots go together."""
    check_choice("symbols", symbols, get_args(SymbolModel))
    if (symbols == "known") != has_pilots:
        missing = "pilots" if symbols == "known" else "symbols"
        raise InputError(missing, "symbols = known and pilots go together: give both, or neither of them")


def _check_covariance(value: Tensor, first_scene: int) -> None:
    """Refuse a noise covariance that is not Hermitian and positive definite."""
    scale = value.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    wide = value.to(torch.complex128)
    skew = (wide - wide.mH).abs().amax(dim=(-2, -1)) > 1e-5 * scale[..., 0, 0].abs()
    hermitian = torch.where(skew[..., None, None], 0, wide)
    _, failed = torch.linalg.cholesky_ex(hermitian)
    powers = torch.linalg.eigvalsh(torch.where(failed[..., None, None] > 0, 0, hermitian))
    singular = powers[..., 0] * _NOISE_CONDITION < powers[..., -1]
    for wrong, problem in (
        (skew, "it is not Hermitian"),
        (failed > 0, "it is not positive definite"),
        (singular, f"its eigenvalues differ by more than {_NOISE_CONDITION:.0e}"),
    ):
        if wrong.any():
            index = wrong.nonzero()[0]
            where = f" in scene {int(index[0]) + first_scene}" if len(index) else ""
            raise InputError("noise_covariance", f"must be Hermitian and positive definite; {problem}{where}")


def check_pose(pose: Tensor, *, field: str = "pose") -> None:
    """Check that [4, 4] values are a rigid transform: a rotation (to 1e-6) and a last row of 0 0 0 1."""
    if tuple(pose.shape) != (4, 4):
        raise InputError(field, f"must be a homogeneous transform of shape [4, 4]; got {list(pose.shape)}")
    if not torch.isfinite(pose).all():
        raise InputError(field, "must be finite; got a NaN or an infinity")
    pose = pose.detach().to(torch.float64).cpu()
    last = pose.new_tensor([0, 0, 0, 1])
    if not torch.allclose(pose[3], last, rtol=0, atol=_POSE_TOLERANCE):
        hint = ""
        if torch.allclose(pose[:, 3], last, rtol=0, atol=_POSE_TOLERANCE):
            hint = ". The last column is 0 0 0 1: pass the transpose"
        row = " ".join(f"{value:g}" for value in pose[3].tolist())
        raise InputError(field, f"the last row must be 0 0 0 1; got {row}{hint}")
    if float(pose[:3, 3].abs().max()) > MAX_RANGE_M:
        raise InputError(
            field,
            f"the panel is {float(pose[:3, 3].abs().max()):g} m away; at most {MAX_RANGE_M:g} m are possible",
        )
    R = pose[:3, :3]
    error = float((R.T @ R - torch.eye(3, dtype=R.dtype)).abs().max())
    if error > _POSE_TOLERANCE:
        raise InputError(
            field,
            f"the upper left 3 x 3 block must be a rotation (orthonormal columns); R^T R differs from the "
            f"identity by {error:.2g}",
        )
    if torch.linalg.det(R) < 0:
        raise InputError(
            field,
            "the upper left 3 x 3 block must be a rotation; its determinant is -1, a reflection. Is one axis "
            "flipped, or is the room frame left-handed?",
        )


def _likely_unit(panel: Panel) -> str:
    """The wrong unit that explains the spacing best, if one gives about half a wavelength."""
    p, w, c = panel.spacing, panel.wavelength, SPEED_OF_LIGHT
    spacings = {
        "elements in millimetres": p / 1e3 / w,
        "elements in centimetres": p / 1e2 / w,
        "elements in half wavelengths": p / 2,
        "a wavelength in millimetres": p / (w / 1e3),
        "a wavelength in centimetres": p / (w / 1e2),
        "2 pi / wavelength": p * w / (2 * math.pi),
        "a frequency in Hz": p * w / c,
        "a frequency in MHz": p * w * 1e6 / c,
        "a frequency in GHz": p * w * 1e9 / c,
    }
    name, spacing = min(spacings.items(), key=lambda item: abs(item[1] - 0.5))
    return f" {name} would be {spacing:.2g} apart" if abs(spacing - 0.5) < 0.25 else ""


def _check_finite(field: Field, value: Tensor, first_scene: int) -> None:
    wrong = ~torch.isfinite(value)
    if wrong.any():
        index = wrong.nonzero()[0]
        raise InputError(
            field.name,
            f"must be finite; got {value[tuple(index)].item()} in {_where(field, value, index, first_scene)}",
        )


def _check_magnitude(field: Field, value: Tensor, first_scene: int) -> None:
    """Refuse scenes without power, and values whose squares single precision cannot compute with."""
    peak = value.abs().amax(dim=(-2, -1))
    low, high = _MAGNITUDE
    wrong = ~((peak >= low) & (peak <= high))
    if wrong.any():
        index = wrong.nonzero()[0]
        where = f" in {_where(field, value, index, first_scene)}" if len(index) else ""
        largest = float(peak[tuple(index)])
        if largest == 0:
            remedy = "; leave it out" if where else ""
            raise InputError(field.name, f"has zero power (every value is 0){where}{remedy}")
        text = f"has a largest modulus of {largest:.3g}{where}; scale it to {low:g} to {high:g}"
        raise InputError(field.name, text)


def _check_symbols(symbols: Tensor, active: Tensor, first_scene: int) -> None:
    for wrong, found in (
        (~torch.isfinite(symbols) & active[..., None], "a NaN or an infinity"),
        (~symbols.isnan() & ~active[..., None], "a value in an unused slot"),
    ):
        if wrong.any():
            where = _where(FIELDS["truth/symbols"], symbols, wrong.nonzero()[0], first_scene)
            raise InputError(
                "truth/symbols",
                f"must be finite for each source and NaN in unused slots; got {found} in {where}",
            )


def _where(field: Field, value: Tensor, index: Tensor, first_scene: int) -> str:
    """Text such as ``scene 3, snapshot 2, antenna 5``; ``index`` may have fewer axes than the field."""
    axes = field.axes if field.per_scene(value.ndim) else field.axes.removeprefix("S")
    named = zip(axes, index.tolist(), strict=False)
    return ", ".join(f"{AXES[axis]} {i + first_scene if axis == 'S' else i}" for axis, i in named)
