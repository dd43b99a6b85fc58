r"""Array geometry and near-field steering vectors.

A source at azimuth :math:`\varphi`, elevation :math:`\theta` and range :math:`r` is at the position
:math:`r u` in the panel frame, with the direction vector

.. math:: u = (\sin\varphi\cos\theta,\; \sin\theta,\; \cos\varphi\cos\theta).

Its steering vector has unit norm,

.. math:: a_n = \frac{g_n}{|g|} \exp(j k_0 \delta_n), \qquad \delta_n = r - d_n,
    \qquad k_0 = 2 \pi / \lambda,

where :math:`d_n` is the distance from the source to element n at :math:`p_n`. A :class:`Panel` states which
form of the wave applies:

* ``spherical`` (exact in free space): :math:`d_n = |r u - p_n|` and amplitudes :math:`g_n = r / d_n`. The
  path difference is computed as :math:`\delta_n = (2 r\, p_n\!\cdot\!u - |p_n|^2) / (r + d_n)`, which
  avoids cancellation in float32;
* ``uniform``: the same phases, amplitudes :math:`g_n = 1` (the uniform spherical wave of most papers);
* ``fresnel`` (second order in :math:`p_n`):
  :math:`\delta_n = p_n\!\cdot\!u - (|p_n|^2 - (p_n\!\cdot\!u)^2) / (2 r)`, :math:`g_n = 1`;
* ``paraxial`` (curvature independent of the angle, accurate near the axis only):
  :math:`\delta_n = p_n\!\cdot\!u - |p_n|^2 / (2 r)`, :math:`g_n = 1`.

``spherical`` is the default; the others serve for data and code that use them. At 0.7 m from the default
panel the amplitudes of the spherical wave run from 0.62 to 1.41 of their mean. Liu et al., "Near-field
communications: a tutorial review", IEEE Open J. Commun. Soc. 4 (2023), compare the uniform and the
non-uniform spherical wave.

Elements with a directional pattern multiply the amplitudes of any wave by :math:`\cos^q\beta_n`, where
:math:`\beta_n` is the angle between the normal of the panel and the ray from element n to the source, and q
the ``pattern_exponent`` (0: isotropic). Elements receive nothing from behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.errors import InputError, check_choice, refuse_old_names
from rismusic.spec import MAX_PATTERN_EXPONENT, PanelSpec, Wave

WAVES: tuple[Wave, ...] = get_args(Wave)
"""The forms of the wave; see the documentation of this module."""

_FLAT = 0.1  # extent along z of a planar array, relative to its largest extent
# Elements whose spread across their main axis is below this share of that along it form a line.
_COLLINEAR = 1e-9

SPEED_OF_LIGHT = 299792458.0
"""In metres per second."""

# Squares of larger coordinates, and numbers of grid points for them, overflow.
_FARTHEST_M = 1e15
_FEW_ELEMENTS = 1024  # up to this many elements, all distances between two of them are computed

ArrayLike = Any
"""A NumPy array, a torch tensor, a number, or a nested sequence of numbers."""


def without_axes(shape: Sequence[int]) -> str:
    """How positions of this shape get the axes that they lack, as the end of an error message."""
    if 1 in shape or len(shape) == 1:
        return ". Of a line along x, the columns are x, 0 and 0"
    return ". In the panel's plane, the third column, z, is 0" if tuple(shape[-1:]) == (2,) else ""


@refuse_old_names
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Panel:
    r"""Element positions of a RIS or antenna array, its wavelength, and the form of the waves on it.

    Positions are in the panel frame: x horizontal, y vertical, z the outward normal, the origin at the centre
    of the array. The constructors :meth:`uniform_planar`, :meth:`uniform_linear` and :meth:`uniform_circular`
    centre the array; positions given here are used as they are.

    Args:
        elements: element positions [..., N, 3] in metres, as NumPy array, nested lists or tensor. Stored as
            float64. Leading axes hold one geometry per scene.
        wavelength: carrier wavelength in metres.
        wave: form of the wave, ``spherical`` (default), ``uniform``, ``fresnel`` or ``paraxial``; see the
            documentation of this module.
        pattern_exponent: q of the element pattern :math:`\cos^q\beta` (an amplitude); 0 is isotropic.
        frequencies: F subcarriers in hertz (wideband); none for a narrowband signal at the wavelength.

    Raises:
        InputError: the positions are not finite real numbers of shape [N, 3], the wavelength is not positive
            and finite, the wave has another name, the exponent is negative, or a frequency is not positive.

    Example:
        >>> Panel([[-0.075, 0, 0], [0.075, 0, 0]], wavelength=0.3)
        Panel(2 elements, aperture 0.15 m, spacing 0.15 m, wavelength 0.3 m)
    """

    elements: Float[Tensor, "*batch N 3"]
    wavelength: float
    wave: Wave = "spherical"
    pattern_exponent: float = 0.0
    frequencies: tuple[float, ...] = ()

    def __init__(
        self,
        elements: ArrayLike,
        wavelength: float,
        wave: Wave = "spherical",
        pattern_exponent: float = 0.0,
        frequencies: Sequence[float] = (),
    ) -> None:
        positions = to_tensor("elements", elements, "real")
        shape = list(positions.shape)
        if len(shape) == 2 and shape[0] == 3 and shape[1] != 3:
            raise InputError(
                "elements", f"must have shape [N, 3]; got {shape}. Pass the transpose, elements.T"
            )
        if len(shape) < 2 or shape[-1] != 3 or shape[-2] < 1:
            hint = without_axes(shape)
            raise InputError(
                "elements", f"must be positions (x, y, z) of shape [N, 3]; got shape {shape}{hint}"
            )
        if not (positions.abs() <= _FARTHEST_M).all():
            largest = float(positions.abs().max())
            raise InputError(
                "elements",
                f"positions must be within {_FARTHEST_M:.0e} m; got {largest:.3g} m"
                if math.isfinite(largest)
                else "positions must be finite, in metres; got a NaN or an infinity",
            )
        if not (math.isfinite(wavelength) and wavelength > 0):
            raise InputError("wavelength", f"must be positive and finite, in metres; got {wavelength:g}")
        check_choice("wave", wave, WAVES)
        if not 0 <= pattern_exponent <= MAX_PATTERN_EXPONENT:
            raise InputError(
                "pattern_exponent", f"must be 0 to {MAX_PATTERN_EXPONENT:g}; got {pattern_exponent:g}"
            )
        frequencies = tuple(float(frequency) for frequency in frequencies)
        if not all(math.isfinite(frequency) and frequency > 0 for frequency in frequencies):
            raise InputError(
                "frequencies", "must be positive and finite, in hertz, with the carrier if they are offsets"
            )
        object.__setattr__(self, "elements", positions)
        object.__setattr__(self, "frequencies", frequencies)
        object.__setattr__(self, "wavelength", float(wavelength))
        object.__setattr__(self, "wave", wave)
        object.__setattr__(self, "pattern_exponent", float(pattern_exponent))

    def __repr__(self) -> str:
        geometries = math.prod(self.elements.shape[:-2])
        batch = "" if self.elements.ndim == 2 else f" in {geometries} geometries"
        spacing = "" if self.size < 2 else f"aperture {self.aperture:.3g} m, spacing {self.spacing:.3g} m, "
        plural = "" if self.size == 1 else "s"
        wave = "" if self.wave == "spherical" else f", {self.wave} wave"
        pattern = f", cos^{self.pattern_exponent:g} elements" if self.pattern_exponent else ""
        pattern += f", {len(self.frequencies)} subcarriers" if self.frequencies else ""
        return (
            f"Panel({self.size} element{plural}{batch}, {spacing}wavelength {self.wavelength:g} m"
            f"{wave}{pattern})"
        )

    @classmethod
    def uniform_planar(
        cls,
        rows: int = 12,
        columns: int | None = None,
        *,
        spacing_wavelengths: float = 0.5,
        wavelength: float = 0.3,
    ) -> Panel:
        """Uniform planar array in the x-y plane, centred on the origin.

        Elements are numbered with y slowest and x fastest.

        Args:
            rows: number of elements along y.
            columns: number of elements along x; as many as rows if it is not given.
            spacing_wavelengths: spacing along x and y, in wavelengths.
            wavelength: in metres.

        Raises:
            InputError: a value that is not positive.

        Example:
            >>> Panel.uniform_planar(12)
            Panel(144 elements, aperture 2.33 m, spacing 0.15 m, wavelength 0.3 m)
        """
        return cls.from_spec(
            PanelSpec(
                rows=rows,
                columns=rows if columns is None else columns,
                spacing_wavelengths=spacing_wavelengths,
                wavelength_m=wavelength,
            )
        )

    @classmethod
    def uniform_linear(cls, n: int, *, spacing_wavelengths: float = 0.5, wavelength: float = 0.3) -> Panel:
        """Uniform linear array along x, centred on the origin.

        Its response depends on x . u and the range only: azimuth and elevation are not separately
        identifiable in the far field.

        Args:
            n: number of elements.
            spacing_wavelengths: spacing in wavelengths.
            wavelength: in metres.

        Raises:
            InputError: a value that is not positive.

        Example:
            >>> Panel.uniform_linear(3, wavelength=0.2).elements[:, 0].tolist()
            [-0.1, 0.0, 0.1]
        """
        return cls.uniform_planar(1, n, spacing_wavelengths=spacing_wavelengths, wavelength=wavelength)

    @classmethod
    def uniform_circular(
        cls,
        n: int,
        *,
        radius_m: float | None = None,
        spacing_wavelengths: float = 0.5,
        wavelength: float = 0.3,
        plane: str = "xy",
    ) -> Panel:
        r"""Uniform circular array, centred on the origin.

        In the x-y plane, element i is at :math:`\rho (\cos 2\pi i/n, \sin 2\pi i/n, 0)`: element 0 on the
        positive x axis, the others counter-clockwise as seen from the positive z axis. The circle lies in the
        panel plane, so that its axis is the outward normal, and it tells directions in front of it.

        In the x-z plane the circle is horizontal, and element i is at azimuth :math:`2\pi i/n`:
        :math:`\rho (\sin 2\pi i/n, 0, \cos 2\pi i/n)`. It tells azimuths all round (up to 180 deg). What is
        above the plane it receives like its mirror image below.

        Args:
            n: number of elements.
            radius_m: radius :math:`\rho` in metres. By default it follows from the spacing:
                :math:`\rho = d / (2 \sin(\pi / n))`.
            spacing_wavelengths: distance d between neighbours (the chord) in wavelengths; unused with
                ``radius_m``.
            wavelength: in metres.
            plane: ``xy`` (facing z) or ``xz`` (horizontal).

        Raises:
            InputError: a value that is not positive, or another plane.

        Example:
            >>> Panel.uniform_circular(8, radius_m=0.2)
            Panel(8 elements, aperture 0.566 m, spacing 0.153 m, wavelength 0.3 m)
        """
        if n < 1:
            raise InputError("n", f"the number of elements must be at least 1; got {n}")
        if radius_m is None:
            if not (math.isfinite(spacing_wavelengths) and spacing_wavelengths > 0):
                raise InputError("spacing_wavelengths", f"must be positive; got {spacing_wavelengths:g}")
            radius_m = spacing_wavelengths * wavelength / (2 * math.sin(math.pi / n)) if n > 1 else 0.0
        elif not (math.isfinite(radius_m) and radius_m > 0):
            raise InputError("radius_m", f"must be positive, in metres; got {radius_m:g}")
        if plane not in ("xy", "xz"):
            raise InputError("plane", f"must be xy or xz; got {plane!r}")
        angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        across, along, flat = angle.cos(), angle.sin(), 0 * angle
        circle = (across, along, flat) if plane == "xy" else (along, flat, across)
        return cls(radius_m * torch.stack(circle, dim=-1), wavelength)

    @classmethod
    def from_spec(cls, spec: PanelSpec) -> Panel:
        """Panel described by a :class:`~rismusic.spec.PanelSpec`."""
        spacing = spec.spacing_wavelengths * spec.wavelength_m
        x = (torch.arange(spec.columns, dtype=torch.float64) - (spec.columns - 1) / 2) * spacing
        y = (torch.arange(spec.rows, dtype=torch.float64) - (spec.rows - 1) / 2) * spacing
        if spec.kind == "circular":
            circle = cls.uniform_circular(
                spec.columns,
                spacing_wavelengths=spec.spacing_wavelengths,
                wavelength=spec.wavelength_m,
                plane="xz",
            ).elements
            elements = circle.repeat(spec.rows, 1)
            elements[:, 1] = y.repeat_interleave(spec.columns)
            return cls(elements, spec.wavelength_m, spec.wave)
        grid_x, grid_y = torch.meshgrid(x, y, indexing="xy")
        elements = torch.stack((grid_x, grid_y, torch.zeros_like(grid_x)), dim=-1)
        return cls(elements.reshape(-1, 3), spec.wavelength_m, spec.wave, spec.pattern_exponent)

    @property
    def size(self) -> int:
        """Number of elements, N."""
        return self.elements.shape[-2]

    @property
    def is_planar(self) -> bool:
        """Whether the elements lie near one plane z = const, within a tenth of the largest extent.

        Such an array receives a source behind it like its mirror image in front. Others can tell azimuths
        beyond 90 degrees.
        """
        return faces_forward(self.elements)

    @cached_property
    def axis(self) -> Float[Tensor, "3"] | None:
        """Direction of the line on which all elements stand, two or more; otherwise ``None``.

        A line tells the range and the angle to its axis: two coordinates of a source.
        """
        if self.size < 2:
            return None
        _, values, axes = torch.linalg.svd(
            self.elements - self.elements.mean(dim=-2, keepdim=True), full_matrices=False
        )
        return axes[0] if len(values) < 2 or bool(values[1] <= _COLLINEAR * values[0]) else None

    @property
    def angles(self) -> int:
        """Number of angles of a source that the array tells: 1 for a line, otherwise 2."""
        return 2 if self.axis is None else 1

    @property
    def wavenumber(self) -> float:
        """k0 = 2 pi / wavelength, in radians per metre."""
        return 2 * math.pi / self.wavelength

    @property
    def subcarriers(self) -> int:
        """Number of subcarriers, F; 1 for a narrowband signal."""
        return max(1, len(self.frequencies))

    def relative_frequencies(self, like: Tensor) -> Float[Tensor, "F 1"]:
        """Frequencies of the subcarriers over that of the wavelength, with type and device of ``like``."""
        values = [frequency * self.wavelength / SPEED_OF_LIGHT for frequency in self.frequencies]
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

    @property
    def aperture(self) -> float:
        """Aperture D in metres: the diagonal of the bounding box of the elements."""
        extent = self.elements.amax(dim=-2) - self.elements.amin(dim=-2)
        return float(extent.norm(dim=-1).max())

    @property
    def spacing(self) -> float:
        """Smallest distance between two elements in metres; infinite for a single element.

        Uses a k-d tree for many elements, so that no N x N matrix is formed.
        """
        if self.size < 2:
            return math.inf
        panels = self.elements.detach().cpu().double().reshape(-1, self.size, 3)
        if self.size <= _FEW_ELEMENTS:
            return min(float(torch.pdist(panel).min()) for panel in panels)
        from scipy.spatial import cKDTree  # takes long to import

        return min(float(cKDTree(panel).query(panel, k=2)[0][:, 1].min()) for panel in panels)

    @property
    def fraunhofer_distance(self) -> float:
        """Fraunhofer distance 2 D^2 / wavelength in metres.

        Beyond it the phase error of a plane wave is below pi / 8 at the rim, for a source on the axis.
        """
        return 2 * self.aperture**2 / self.wavelength

    @property
    def fresnel_distance(self) -> float:
        """Fresnel distance 0.62 sqrt(D^3 / wavelength) in metres.

        Beyond it the second-order (Fresnel) phase is accurate for a source on the axis.
        See Balanis, *Antenna Theory*, section 4.4.
        """
        return 0.62 * math.sqrt(self.aperture**3 / self.wavelength)

    def to(self, device: torch.device | str) -> Panel:
        """Copy of the panel on another device."""
        return self.replace(elements=self.elements.to(device))

    def replace(self, **changes: Any) -> Panel:
        """Copy of the panel with other ``elements``, ``wavelength``, ``wave`` or ``pattern_exponent``."""
        return replace(self, **changes)

    def same_model(self, other: Panel) -> bool:
        """Whether steering vectors follow the same equation: wave, element pattern, subcarriers."""
        names = ("wave", "pattern_exponent", "frequencies")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def faces_forward(elements: Float[Tensor, "*batch N 3"]) -> bool:
    """Whether elements lie near one plane z = const; see :attr:`Panel.is_planar`."""
    extent = elements.amax(dim=-2) - elements.amin(dim=-2)
    return bool((extent[..., 2] <= _FLAT * extent.amax(dim=-1)).all())


def check_azimuth_limit(panel: Panel, field: str, azimuth_max_deg: float) -> None:
    """Refuse azimuths beyond 90 degrees of a planar array."""
    if panel.is_planar and azimuth_max_deg >= 90:
        raise InputError(
            field,
            f"must be below 90 for a planar array; got {azimuth_max_deg:g}. A source behind it is received "
            "like its mirror image in front",
        )


def direction(
    azimuth: Float[Tensor, "*batch"], elevation: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""Direction cosines :math:`(u_x, u_y, u_z)` of a direction in radians.

    .. math:: u = (\sin\varphi\cos\theta,\; \sin\theta,\; \cos\varphi\cos\theta)
    """
    return azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()


def path_difference(
    panel: Panel,
    towards: tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K"], Float[Tensor, "*batch K"]],
    range: Float[Tensor, "*batch K"],
) -> Float[Tensor, "*batch K N"]:
    r"""Path differences :math:`\delta_n = r - d_n` (m) of K points to N elements; see this module.

    The points are given by their direction cosines and ranges (m).
    """
    return _rays(panel, towards, range).difference


def steering(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
) -> Complex[Tensor, "*batch N K"]:
    r"""Near-field steering matrix; every column has unit norm.

    .. math:: A_{nk} = \frac{g_{nk}}{|g_k|} \exp\left( j k_0 (r_k - d_{nk}) \right)

    Amplitudes :math:`g_{nk}` and distances :math:`d_{nk}` are those of the panel's wave and element pattern.

    Args:
        panel: N elements. Its leading axes, if any, broadcast against those of the sources.
        azimuth: :math:`\varphi_k` in radians, [..., K]. Its precision sets that of the result: float32 gives
            complex64, float64 gives complex128.
        elevation: :math:`\theta_k` in radians, [..., K].
        range: :math:`r_k` in metres, positive, [..., K]; infinite for a plane wave.

    Returns:
        A, complex [..., N, K]. With F subcarriers, [..., F N, K]: the steering vectors of all subcarriers
        one below the other, each of unit norm.

    Raises:
        InputError: numbers in place of tensors. ``Sources.from_degrees(...).steering(panel)`` takes them.

    Example:
        >>> panel = Panel.uniform_planar(8, 8)
        >>> steering(panel, torch.tensor([0.3]), torch.tensor([0.1]), torch.tensor([2.0])).shape
        torch.Size([64, 1])
    """
    check_tensors(azimuth=azimuth, elevation=elevation, range=range)
    return _rays(panel, direction(azimuth, elevation), range).unit_wave().mT


def power_gains(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
) -> Float[Tensor, "*batch K N"]:
    r"""Squared amplitudes :math:`g_n^2` of the wave at the elements, not normalised."""
    rays = _rays(panel, direction(azimuth, elevation), range)
    return torch.ones_like(rays.difference) if rays.gain is None else rays.gain.square()


def steering_with_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
) -> tuple[Complex[Tensor, "*batch N K"], Complex[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and its exact derivatives with respect to azimuth, elevation and range.

    .. math:: \frac{\partial a_n}{\partial p} = a_n \frac{\partial \log a_n}{\partial p}

    The logarithmic derivatives are those of :func:`steering_with_log_derivatives`, and
    :math:`\partial / \partial r = -r^{-2}\, \partial / \partial (1/r)`.

    Args:
        panel: N elements.
        azimuth: radians, [..., K].
        elevation: radians, [..., K].
        range: metres, positive, [..., K].

    Returns:
        A [..., N, K], and its derivatives [..., N, K, 3] per radian, per radian and per metre.
    """
    A, log_derivatives = steering_with_log_derivatives(panel, azimuth, elevation, range)
    one = torch.ones_like(range)
    by_range = torch.stack((one, one, -1 / range.square()), dim=-1)
    return A, log_derivatives * A[..., None] * by_range.unsqueeze(-3)


def steering_with_log_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
) -> tuple[Complex[Tensor, "*batch N K"], Complex[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and the derivatives of the logarithms of its entries, with respect to 1 / range.

    .. math:: \frac{\partial\log a_n}{\partial p} = \gamma_{n,p} - \sum_m |a_m|^2 \gamma_{m,p}
        + j k_0 \frac{\partial\delta_n}{\partial p}, \qquad
        \gamma_{n,p} = \frac{\partial\log g_n}{\partial p}.

    With :math:`q = 1 / r` and :math:`\rho_n = d_n / r`, for the spherical wave, in forms that do not suffer
    from cancellation and hold at infinity (q = 0) too,

    .. math:: \frac{\partial\delta_n}{\partial\varphi} = \frac{p_n\!\cdot\!u_\varphi}{\rho_n}, \qquad
        \frac{\partial\delta_n}{\partial\theta} = \frac{p_n\!\cdot\!u_\theta}{\rho_n}, \qquad
        \frac{\partial\delta_n}{\partial q} = \frac{\delta_n\, p_n\!\cdot\!u - |p_n|^2}{\rho_n (1 + \rho_n)},

    .. math:: \gamma_{n,\varphi} = \frac{q\, p_n\!\cdot\!u_\varphi}{\rho_n^2}, \qquad
        \gamma_{n,\theta} = \frac{q\, p_n\!\cdot\!u_\theta}{\rho_n^2}, \qquad
        \gamma_{n,q} = \frac{p_n\!\cdot\!u - q |p_n|^2}{\rho_n^2},

    where :math:`u_\varphi` and :math:`u_\theta` are the derivatives of the direction vector u. An element
    pattern adds :math:`\partial \log\cos\beta_n / \partial p` times its exponent to :math:`\gamma_{n,p}`.

    Args:
        panel: N elements.
        azimuth: radians, [..., K].
        elevation: radians, [..., K].
        range: metres, positive, [..., K]; infinite for plane waves.

    Returns:
        A [..., N, K], and the logarithmic derivatives [..., N, K, 3] by azimuth, elevation (per radian) and
        inverse range (metres). Without amplitudes they are purely imaginary. With F subcarriers the axis N is
        F N, as in :func:`steering`.
    """
    azimuth, elevation = azimuth[..., None], elevation[..., None]
    sin_az, cos_az, sin_el, cos_el = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    x, z = sin_az * cos_el, cos_az * cos_el
    rays = _Rays(panel, (x, sin_el, z), 1 / range[..., None])
    phase, gain = zip(
        rays.by_direction((z, None, -x)),
        rays.by_direction((-sin_az * sin_el, cos_el, -cos_az * sin_el)),
        rays.by_inverse_range(),
        strict=True,
    )
    slopes = torch.stack(phase, dim=-1) * panel.wavenumber
    if rays.gain is None:
        growth = torch.zeros_like(slopes)
    else:
        growth = torch.stack(gain, dim=-1)
        weight = (rays.gain / rays.gain.norm(dim=-1, keepdim=True)).square()
        growth = growth - (weight[..., None, :] @ growth)
    if panel.subcarriers > 1:
        slopes = slopes.unsqueeze(-3) * panel.relative_frequencies(slopes)[..., None]
        slopes, growth = (
            part.flatten(-3, -2) for part in torch.broadcast_tensors(slopes, growth.unsqueeze(-3))
        )
    return rays.unit_wave().mT, torch.complex(growth, slopes).transpose(-3, -2)


def _rays(panel: Panel, towards: tuple[Tensor, Tensor, Tensor], range: Tensor) -> _Rays:
    """The rays of all elements to the points in some directions and ranges, each [..., K]."""
    x, y, z = (cosine[..., None] for cosine in towards)
    return _Rays(panel, (x, y, z), 1 / range[..., None])


def wrapped(azimuth: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Azimuths within -pi .. pi; those that are already stay exactly the same."""
    turned = torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi
    return torch.where(azimuth.abs() > math.pi, turned, azimuth)


def from_db(level_db: Tensor) -> Tensor:
    """Power ratio of a level in dB.

    Uses ``exp``, whose result for an element does not depend on the size of the tensor. ``10 ** x`` treats
    the last few elements of a tensor differently, so that a scene would depend on its batch in the last bit.
    """
    return (level_db * (math.log(10) / 10)).exp()


def to_db(ratio: Tensor) -> Tensor:
    """Level in dB of a power ratio."""
    return 10 * ratio.log10()


def to_tensor(field: str, value: ArrayLike, kind: Literal["real", "complex"]) -> Tensor:
    """Convert a user-supplied array to a tensor.

    Real values become float64. Complex values keep their precision, complex64 or complex128. Tensors stay on
    their device and in their autograd graph.

    Args:
        field: name of the argument, for error messages.
        value: NumPy array, torch tensor, number or nested sequence. Integers are accepted in sequences only:
            integer arrays are usually element indices, not metres.
        kind: ``real`` or ``complex``.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        array = value if isinstance(value, (np.ndarray, np.generic)) else _array(field, value)
        if array.dtype.kind not in "fciub":
            raise InputError(field, f"must hold {kind} numbers; got an array of type {array.dtype}")
        if array.dtype in (np.longdouble, np.clongdouble):  # which torch lacks
            array = array.astype(float if array.dtype.kind == "f" else complex)
        # A copy where NumPy's memory layout (negative strides, byte order, read-only) does not suit torch.
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(native if native.flags.writeable else native.copy()).reshape(array.shape)
    if kind == "real":
        if not tensor.is_floating_point():
            raise InputError(field, f"must hold real floating-point numbers; got {dtype_name(tensor.dtype)}")
        return tensor.to(torch.float64)
    if not tensor.is_complex():
        name = dtype_name(tensor.dtype)
        hint = "If they are phases in radians, pass exp(1j * phase). " if field == "codes" else ""
        raise InputError(
            field,
            f"must hold complex numbers; got {name}. {hint}If the imaginary part is 0, convert to complex64",
        )
    return tensor if tensor.dtype in (torch.complex64, torch.complex128) else tensor.to(torch.complex64)


def check_tensors(**positions: object) -> None:
    """Refuse positions, in radians and metres, that are numbers, lists or arrays, not tensors."""
    for name, value in positions.items():
        if not isinstance(value, Tensor):
            raise InputError(
                name,
                f"must be a tensor in {'metres' if name == 'range' else 'radians'}; got "
                f"{type(value).__name__}. Numbers in degrees and metres go into Sources.from_degrees",
            )


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a type of numbers, such as complex64."""
    return str(dtype).removeprefix("torch.")


class _Rays:
    r"""Path differences and amplitudes from K points to N elements, [..., K, N]; N is contiguous.

    Directions and inverse ranges q = 1 / r are columns, [..., K, 1]. All quantities are written with q and
    :math:`\rho_n = d_n / r`, which are finite for a source at infinity.
    """

    def __init__(self, panel: Panel, towards: tuple[Tensor, Tensor, Tensor], inverse: Tensor) -> None:
        elements = panel.elements.to(device=inverse.device, dtype=inverse.dtype)
        self._panel, self._wave = panel, panel.wave
        self._elements = elements.unsqueeze(-3).unbind(-1)
        self._towards, self._q = towards, inverse
        self._along = along = self._dot(towards)
        self._squared = squared = elements.square().sum(-1).unsqueeze(-2)
        if self._wave in ("spherical", "uniform") or panel.pattern_exponent:
            # The exact path difference is twice / (1 + rho); 1 + rho is positive, so nothing cancels.
            twice = 2 * along - inverse * squared
            self._ratio = (1 - inverse * twice).clamp_min(torch.finfo(twice.dtype).tiny).sqrt()
            self._exact = twice / (1 + self._ratio)
        if self._wave in ("spherical", "uniform"):
            self.difference = self._exact
        elif self._wave == "fresnel":
            self.difference = along - (squared - along.square()) * (inverse / 2)
        else:
            self.difference = along - squared * (inverse / 2)
        self.gain = self._gain()

    def _gain(self) -> Tensor | None:
        """Amplitudes g_n; none if they are all 1."""
        exponent = self._panel.pattern_exponent
        gain = 1 / self._ratio if self._wave == "spherical" else None
        if not exponent:
            return gain
        pattern = (self._depth().clamp_min(0) / self._ratio) ** exponent
        return pattern if gain is None else gain * pattern

    def _depth(self) -> Tensor:
        """Distance of the source from the element along the normal, over the range: rho_n cos(beta_n)."""
        return self._towards[2] - self._q * self._elements[2]

    def unit_wave(self) -> Tensor:
        """The steering vectors as rows, [..., K, N], or [..., K, F N] for F subcarriers."""
        phase = self._panel.wavenumber * self.difference
        if self._panel.subcarriers > 1:
            phase = (phase.unsqueeze(-2) * self._panel.relative_frequencies(phase)).flatten(-2)
        if self.gain is None:
            scale = 1 / math.sqrt(self._panel.size)
            return torch.complex(phase.cos() * scale, phase.sin() * scale)
        norm = self.gain.norm(dim=-1, keepdim=True)
        gain = self.gain / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        if self._panel.subcarriers > 1:
            gain = gain.repeat(*[1] * (gain.ndim - 1), self._panel.subcarriers)
        return torch.complex(phase.cos() * gain, phase.sin() * gain)

    def _dot(self, vector: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        x, y, z = self._elements
        product = torch.addcmul(x * vector[0], z, vector[2])
        return product if vector[1] is None else product.addcmul_(y, vector[1])

    def by_direction(self, by: tuple[Tensor, Tensor | None, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of path difference and log amplitude for a change ``by`` of the direction vector."""
        across = self._dot(by)
        slope = across
        if self._wave in ("spherical", "uniform"):
            slope = across / self._ratio
        elif self._wave == "fresnel":
            slope = across * (1 + self._along * self._q)
        if self.gain is None:
            return slope, slope
        exponent = self._panel.pattern_exponent
        # -d log rho: the true distance shrinks.
        growth = self._q * across / self._ratio.square() * (exponent + 1.0 * (self._wave == "spherical"))
        if exponent:
            growth = growth + exponent * by[2] / self._depth()
        return slope, growth

    def by_inverse_range(self) -> tuple[Tensor, Tensor]:
        """Derivatives of path difference and log amplitude with respect to q = 1 / r."""
        if self._wave in ("spherical", "uniform"):
            slope = (self._along * self._exact - self._squared) / (self._ratio * (1 + self._ratio))
        elif self._wave == "fresnel":
            slope = (self._along.square() - self._squared) / 2
        else:
            slope = (-self._squared / 2).expand_as(self._along)
        if self.gain is None:
            return slope, slope
        exponent = self._panel.pattern_exponent
        # -d log rho / dq, with rho^2 = 1 - 2 q p.u + q^2 |p|^2.
        closer = (self._along - self._q * self._squared) / self._ratio.square()
        growth = closer * (exponent + 1.0 * (self._wave == "spherical"))
        if exponent:
            growth = growth - exponent * self._elements[2] / self._depth()
        return slope, growth


def _array(field: str, value: ArrayLike) -> Any:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(field, "must be an array or nested lists of equal length") from error
    return array.astype(np.float64) if array.dtype.kind in "iu" else array
