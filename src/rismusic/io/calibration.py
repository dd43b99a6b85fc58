"""Calibration of a panel: the responses and positions of its elements, in memory and as a file.

The file is HDF5 with the attributes ``format`` (``rismusic-calibration/1``), ``wavelength`` and
``remaining_error``, and the datasets ``elements`` (nominal positions, [N, 3] metres), ``response`` ([N]
complex), ``response_std`` ([N]) and ``offsets`` ([N, 3] metres).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import Panel
from rismusic.errors import InputError
from rismusic.files import check_regular, replace_file
from rismusic.io.hdf5 import CarefulFile, attribute, dataset, members, open_hdf5
from rismusic.io.recording import Recording
from rismusic.io.store import Array, understood
from rismusic.spec import MAX_PANEL_ERROR

FORMAT = "rismusic-calibration/1"
DEAD_BELOW = 0.3
"""Elements whose response has a modulus below this are reported as dead."""

_SHAPES: Mapping[str, tuple[int, ...]] = {
    "elements": (3,),
    "response": (),
    "response_std": (),
    "offsets": (3,),
}
_ATTRIBUTES = ("format", "wavelength", "remaining_error")
# Wavelengths and nominal positions of calibration and recording agree to this share of a wavelength.
_SAME = 1e-4
# Largest modulus of a response, and largest offset.
_LARGEST_RESPONSE, _LARGEST_OFFSET_WAVELENGTHS = 1e3, 10.0
# Largest number of elements that is read.
_MOST_ELEMENTS = 2**20


@dataclass(frozen=True, eq=False, kw_only=True)
class PanelCalibration:
    """Responses and positions of the elements of one panel.

    Args:
        wavelength: in metres.
        elements: nominal positions in metres.
        response: complex response of each element relative to the nominal one; 0 for a dead element.
        response_std: standard deviation of each response.
        offsets: difference between actual and nominal positions, metres; 0 where they were not estimated.
        remaining_error: root mean square of the relative error of the responses that the calibration does not
            explain. ``locate`` takes it as ``panel_error``.
        used: scenes that the calibration used, [S]; none for one that was read from a file.

    Raises:
        InputError: wrong shapes, values that are not finite, a negative standard deviation, or responses,
            offsets or a remaining error that are too large for any panel.
    """

    wavelength: float
    elements: Float[Tensor, "N 3"]
    response: Complex[Tensor, "N"]
    response_std: Float[Tensor, "N"]
    offsets: Float[Tensor, "N 3"]
    remaining_error: float = 0.0
    used: Bool[Tensor, "S"] | None = None

    def __post_init__(self) -> None:
        _check({name: getattr(self, name) for name in _SHAPES})
        for name in ("wavelength", "remaining_error"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "wavelength" and value == 0):
                raise InputError(name, f"must be positive and finite; got {value:g}")
        if bool(self.dead.all()):
            raise InputError("response", "is 0 or nearly 0 for all elements; calibrate again")
        for name, value, limit in (
            ("remaining_error", self.remaining_error, MAX_PANEL_ERROR),
            ("response", float(self.response.abs().max()), _LARGEST_RESPONSE),
            ("offsets", float(self.offsets.abs().max()), _LARGEST_OFFSET_WAVELENGTHS * self.wavelength),
        ):
            if value > limit:
                raise InputError(name, f"must be at most {limit:g}; got {value:g}. Calibrate again")

    def __repr__(self) -> str:
        used = "" if self.used is None else f", {int(self.used.sum())} of {len(self.used)} scenes used"
        return (
            f"PanelCalibration({len(self.elements)} elements, {int(self.dead.sum())} dead, remaining error "
            f"{self.remaining_error:.2g}{used})"
        )

    @property
    def dead(self) -> Bool[Tensor, "N"]:
        """Elements that do not respond: a modulus below 0.3."""
        return self.response.abs() < DEAD_BELOW

    def apply(self, recording: Recording) -> Recording:
        """The recording as one of the calibrated panel.

        The responses multiply the codes, and the offsets are added to the elements. A directly sampled array
        gets the responses as codes.

        Args:
            recording: scenes of the same panel.

        Raises:
            InputError: the recording is of another panel or another wavelength.
        """
        self.check_panel(recording.panel)
        y = recording.snapshots
        response = self.response.to(y.device, y.dtype)
        if recording.codes is not None:
            codes = recording.codes * response
        else:
            codes = response.expand(y.shape[-2], -1)
        elements = recording.elements + self.offsets.to(recording.elements)
        return replace(recording, codes=codes, elements=elements)

    def check_panel(self, panel: Panel) -> None:
        """Check that the panel of a recording is the nominal panel of the calibration.

        Raises:
            InputError: another number of elements, other positions, or another wavelength.
        """
        own, other = self.elements, panel.elements.to(self.elements)
        if own.shape != other.shape:
            raise InputError(
                "calibration",
                f"is for a panel of {len(own)} elements, but the recording has {len(other)}. "
                "Calibrate its panel",
            )
        if abs(self.wavelength - panel.wavelength) > _SAME * self.wavelength:
            raise InputError(
                "calibration",
                f"is for a wavelength of {self.wavelength:g} m, but the recording has "
                f"{panel.wavelength:g} m. Calibrate at the wavelength of the recording",
            )
        largest = float((own - other).abs().max())
        if largest > _SAME * self.wavelength:
            raise InputError(
                "calibration",
                f"is for another panel: its nominal elements are up to {largest:.3g} m from those of the "
                "recording",
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the calibration as an HDF5 file.

        Raises:
            InputError: the file exists and ``overwrite`` is off, or it cannot be written.
        """
        with replace_file(Path(path), overwrite=overwrite) as temporary:
            file = CarefulFile(temporary)
            try:
                file.hdf5.attrs["format"] = FORMAT
                file.hdf5.attrs["wavelength"] = self.wavelength
                file.hdf5.attrs["remaining_error"] = self.remaining_error
                for name in _SHAPES:
                    file.hdf5[name] = getattr(self, name).cpu().numpy()
            finally:
                file.close()

    @classmethod
    def load(cls, path: str | Path) -> PanelCalibration:
        """Read a calibration.

        Raises:
            InputError: it is no such file, or a field is missing, of another shape, or not finite.
        """
        path = Path(path)
        check_regular(path)
        if not path.exists():
            raise InputError(str(path), "does not exist")
        with open_hdf5(path) as file:
            try:
                with understood("its content", "must be a calibration"):
                    fields = _fields(file)
                _check({name: fields[name] for name in _SHAPES})
                return cls(**fields)
            except InputError as error:
                raise InputError(str(path), f"{error.field} {error.problem}") from None


def _fields(file: h5py.File) -> dict[str, Any]:
    attributes = {name: _scalar(attribute(file, name)) for name in _ATTRIBUTES if name in file.attrs}
    if attributes.pop("format", None) != FORMAT:
        raise InputError("format", f"must be {FORMAT!r}; write the file with rismusic calibrate")
    fields: dict[str, Any] = {}
    for name in _ATTRIBUTES[1:]:
        value = attributes.get(name)
        if not isinstance(value, float):
            raise InputError(name, "must be an attribute with one real number")
        fields[name] = value
    for name, shape in _SHAPES.items():
        if name not in members(file):
            raise InputError(name, "is missing")
        found = dataset(file, name)
        kinds = "c" if name == "response" else "f"
        if found.dtype.kind not in kinds:
            raise InputError(name, f"must be {'complex' if kinds == 'c' else 'real'}; got {found.dtype}")
        if found.ndim != 1 + len(shape) or found.shape[1:] != shape or not 0 < len(found) <= _MOST_ELEMENTS:
            raise InputError(name, f"must have shape {['N', *shape]}; got {list(found.shape)}")
        fields[name] = torch.from_numpy(found[()].astype(np.complex128 if kinds == "c" else np.float64))
    return fields


def _scalar(value: Array) -> str | float:
    """An attribute as text or number; an empty text if it holds several."""
    held = value.item() if value.size == 1 else ""
    if isinstance(held, (int, float)):
        return float(held)
    return held.decode("utf-8", "replace") if isinstance(held, bytes) else str(held)


def _check(values: dict[str, Tensor]) -> None:
    N = len(values["elements"])
    for name, shape in _SHAPES.items():
        value = values[name]
        if tuple(value.shape) != (N, *shape):
            raise InputError(
                name, f"must have shape {[N, *shape]}, as many as elements; got {list(value.shape)}"
            )
        if not torch.isfinite(value.abs()).all():
            raise InputError(name, "must be finite; got a NaN or an infinity")
    if bool((values["response_std"] < 0).any()):
        raise InputError("response_std", "must not be negative")
