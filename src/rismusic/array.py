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
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.renames import refuse_old_names
from rismusic.spec import PanelSpec, Wave

WAVES: tuple[Wave, ...] = get_args(Wave)
"""The forms of the wave; see the documentation of this module."""

ArrayLike = Any
"""A NumPy array, a torch tensor, a number, or a nested sequence of numbers."""


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

    Raises:
        InputError: the positions are not finite real numbers of shape [N, 3], the wavelength is not positive
            and finite, the wave has another name, or the exponent is negative.

    Example:
        >>> Panel([[-0.075, 0, 0], [0.075, 0, 0]], wavelength=0.3)
        Panel(2 elements, aperture 0.15 m, spacing 0.15 m, wavelength 0.3 m)
    """

    elements: Float[Tensor, "*batch N 3"]
    wavelength: float
    wave: Wave = "spherical"
    pattern_exponent: float = 0.0

    def __init__(
        self,
        elements: ArrayLike,
        wavelength: float,
        wave: Wave = "spherical",
        pattern_exponent: float = 0.0,
    ) -> None:
        positions = to_tensor("elements", elements, "real")
        shape = list(positions.shape)
        if len(shape) == 2 and shape[0] == 3 and shape[1] != 3:
            raise InputError(
                "elements", f"must have shape [N, 3]; got {shape}. Pass the transpose, elements.T"
            )
        if len(shape) < 2 or shape[-1] != 3 or shape[-2] < 1:
            raise InputError("elements", f"must be positions (x, y, z) of shape [N, 3]; got shape {shape}")
        if not torch.isfinite(positions).all():
            raise InputError("elements", "positions must be finite, in metres; got a NaN or an infinity")
        if not (math.isfinite(wavelength) and wavelength > 0):
            raise InputError("wavelength", f"must be positive and finite, in metres; got {wavelength:g}")
        if wave not in WAVES:
            raise InputError("wave", f"must be one of {', '.join(WAVES)}; got {wave!r}")
        if not (math.isfinite(pattern_exponent) and pattern_exponent >= 0):
            raise InputError("pattern_exponent", f"must be finite and not negative; got {pattern_exponent:g}")
        object.__setattr__(self, "elements", positions)
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
        return (
            f"Panel({self.size} element{plural}{batch}, {spacing}wavelength {self.wavelength:g} m"
            f"{wave}{pattern})"
        )

    @classmethod
    def uniform_planar(
        cls, rows: int = 12, columns: int = 12, *, spacing_wavelengths: float = 0.5, wavelength: float = 0.3
    ) -> Panel:
        """Uniform planar array in the x-y plane, centred on the origin.

        Elements are numbered with y slowest and x fastest.

        Args:
            rows: number of elements along y.
            columns: number of elements along x.
            spacing_wavelengths: spacing along x and y, in wavelengths.
            wavelength: in metres.

        Raises:
            InputError: a value that is not positive.

        Example:
            >>> Panel.uniform_planar(12, 12)
            Panel(144 elements, aperture 2.33 m, spacing 0.15 m, wavelength 0.3 m)
        """
        return cls.from_spec(
            PanelSpec(
                rows=rows, columns=columns, spacing_wavelengths=spacing_wavelengths, wavelength_m=wavelength
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
    ) -> Panel:
        r"""Uniform circular array in the x-y plane, centred on the origin.

        Element i is at :math:`\rho (\cos 2\pi i/n, \sin 2\pi i/n, 0)`: element 0 on the positive x axis, the
        others counter-clockwise as seen from the positive z axis. The circle lies in the panel plane, so that
        its axis is the outward normal.

        Args:
            n: number of elements.
            radius_m: radius :math:`\rho` in metres. By default it follows from the spacing:
                :math:`\rho = d / (2 \sin(\pi / n))`.
            spacing_wavelengths: distance d between neighbours (the chord) in wavelengths; unused with
                ``radius_m``.
            wavelength: in metres.

        Raises:
            InputError: a value that is not positive.

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
        angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        return cls(radius_m * torch.stack((angle.cos(), angle.sin(), 0 * angle), dim=-1), wavelength)

    @classmethod
    def from_spec(cls, spec: PanelSpec) -> Panel:
        """Panel described by a :class:`~rismusic.spec.PanelSpec`."""
        spacing = spec.spacing_wavelengths * spec.wavelength_m
        x = (torch.arange(spec.columns, dtype=torch.float64) - (spec.columns - 1) / 2) * spacing
        y = (torch.arange(spec.rows, dtype=torch.float64) - (spec.rows - 1) / 2) * spacing
        grid_x, grid_y = torch.meshgrid(x, y, indexing="xy")
        elements = torch.stack((grid_x, grid_y, torch.zeros_like(grid_x)), dim=-1)
        return cls(elements.reshape(-1, 3), spec.wavelength_m, spec.wave, spec.pattern_exponent)

    @property
    def size(self) -> int:
        """Number of elements, N."""
        return self.elements.shape[-2]

    @property
    def wavenumber(self) -> float:
        """k0 = 2 pi / wavelength, in radians per metre."""
        return 2 * math.pi / self.wavelength

    @property
    def aperture(self) -> float:
        """Aperture D in metres: the diagonal of the bounding box of the elements."""
        extent = self.elements.amax(dim=-2) - self.elements.amin(dim=-2)
        return float(extent.norm(dim=-1).max())

    @property
    def spacing(self) -> float:
        """Smallest distance between two elements in metres; infinite for a single element.

        Uses a k-d tree, so that no N x N matrix is formed.
        """
        from scipy.spatial import cKDTree

        if self.size < 2:
            return math.inf
        panels = self.elements.detach().cpu().reshape(-1, self.size, 3).numpy()
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
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return Panel(**(present | changes))

    def same_model(self, other: Panel) -> bool:
        """Whether steering vectors of both panels follow the same equation: wave and element pattern."""
        return self.wave == other.wave and self.pattern_exponent == other.pattern_exponent


def direction(
    azimuth: Float[Tensor, "*batch"], elevation: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""Direction cosines :math:`(u_x, u_y, u_z)` of a direction.

    .. math:: u = (\sin\varphi\cos\theta,\; \sin\theta,\; \cos\varphi\cos\theta)

    Args:
        azimuth: :math:`\varphi` in radians, [...].
        elevation: :math:`\theta` in radians, [...].

    Returns:
        The three cosines, each [...].
    """
    return azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()


def path_difference(
    panel: Panel,
    towards: tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K"], Float[Tensor, "*batch K"]],
    range: Float[Tensor, "*batch K"],
) -> Float[Tensor, "*batch K N"]:
    r"""Path differences :math:`\delta_n = r - d_n` of K points to N elements.

    The equations are in the documentation of this module.

    Args:
        panel: N elements.
        towards: direction cosines (u_x, u_y, u_z) of the points, each [..., K]; see :func:`direction`.
        range: ranges r in metres, [..., K].

    Returns:
        Path differences in metres, [..., K, N].
    """
    x, y, z = (cosine[..., None] for cosine in towards)
    return _Rays(panel, (x, y, z), range[..., None]).difference


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
        range: :math:`r_k` in metres, positive, [..., K].

    Returns:
        A, complex [..., N, K].

    Example:
        >>> panel = Panel.uniform_planar(8, 8)
        >>> steering(panel, torch.tensor([0.3]), torch.tensor([0.1]), torch.tensor([2.0])).shape
        torch.Size([64, 1])
    """
    towards = (cosine[..., None] for cosine in direction(azimuth, elevation))
    x, y, z = towards
    return _Rays(panel, (x, y, z), range[..., None]).unit_wave().mT


def steering_with_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
) -> tuple[Complex[Tensor, "*batch N K"], Complex[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and its exact derivatives with respect to azimuth, elevation and range.

    .. math:: \frac{\partial a_n}{\partial p} = a_n \frac{\partial \log a_n}{\partial p}

    The logarithmic derivatives are those of :func:`steering_with_log_derivatives`.

    Args:
        panel: N elements.
        azimuth: radians, [..., K].
        elevation: radians, [..., K].
        range: metres, positive, [..., K].

    Returns:
        A [..., N, K], and its derivatives [..., N, K, 3] per radian, per radian and per metre.
    """
    A, slopes = steering_with_log_derivatives(panel, azimuth, elevation, range)
    return A, slopes * A[..., None]


def steering_with_log_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
) -> tuple[Complex[Tensor, "*batch N K"], Complex[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and the derivatives of the logarithms of its entries.

    .. math:: \frac{\partial\log a_n}{\partial p} = \gamma_{n,p} - \sum_m |a_m|^2 \gamma_{m,p}
        + j k_0 \frac{\partial\delta_n}{\partial p}, \qquad
        \gamma_{n,p} = \frac{\partial\log g_n}{\partial p}.

    For the spherical wave, in forms that do not suffer from cancellation,

    .. math:: \frac{\partial\delta_n}{\partial\varphi} = \frac{r\, p_n\!\cdot\!u_\varphi}{d_n}, \qquad
        \frac{\partial\delta_n}{\partial\theta} = \frac{r\, p_n\!\cdot\!u_\theta}{d_n}, \qquad
        \frac{\partial\delta_n}{\partial r} = \frac{|p_n|^2 - \delta_n\, p_n\!\cdot\!u}{d_n (r + d_n)},

    .. math:: \gamma_{n,\varphi} = \frac{1}{d_n} \frac{\partial\delta_n}{\partial\varphi}, \qquad
        \gamma_{n,\theta} = \frac{1}{d_n} \frac{\partial\delta_n}{\partial\theta}, \qquad
        \gamma_{n,r} = \frac{1}{d_n} \left( \frac{\partial\delta_n}{\partial r}
        - \frac{\delta_n}{r} \right),

    where :math:`u_\varphi` and :math:`u_\theta` are the derivatives of the direction vector u. An element
    pattern adds :math:`q\, \partial \log\cos\beta_n / \partial p` to :math:`\gamma_{n,p}`.

    Args:
        panel: N elements.
        azimuth: radians, [..., K].
        elevation: radians, [..., K].
        range: metres, positive, [..., K].

    Returns:
        A [..., N, K], and the logarithmic derivatives [..., N, K, 3] per radian, per radian and per metre.
        Without amplitudes they are purely imaginary.
    """
    azimuth, elevation = azimuth[..., None], elevation[..., None]
    sin_az, cos_az, sin_el, cos_el = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    x, z = sin_az * cos_el, cos_az * cos_el
    rays = _Rays(panel, (x, sin_el, z), range[..., None])
    phase, gain = zip(
        rays.by_direction((z, None, -x)),
        rays.by_direction((-sin_az * sin_el, cos_el, -cos_az * sin_el)),
        rays.by_range(),
        strict=True,
    )
    a = rays.unit_wave()
    slopes = torch.stack(phase, dim=-1) * panel.wavenumber
    if rays.gain is None:
        growth = torch.zeros_like(slopes)
    else:
        growth = torch.stack(gain, dim=-1)
        weight = (rays.gain / rays.gain.norm(dim=-1, keepdim=True)).square()
        growth = growth - (weight[..., None, :] @ growth)
    return a.mT, torch.complex(growth, slopes).transpose(-3, -2)


def by_inverse_range(inverse_range: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3"]:
    r"""Factors that turn derivatives with respect to range into derivatives with respect to inverse range.

    .. math:: \left( \frac{\partial\varphi}{\partial\varphi},\; \frac{\partial\theta}{\partial\theta},\;
        \frac{\partial r}{\partial (1/r)} \right) = (1,\; 1,\; -r^2)

    Args:
        inverse_range: 1 / r in 1/m, positive, [...].

    Returns:
        [..., 3].
    """
    one = torch.ones_like(inverse_range)
    return torch.stack((one, one, -1 / inverse_range.square()), dim=-1)


def to_tensor(field: str, value: ArrayLike, kind: Literal["real", "complex"]) -> Tensor:
    """Convert a user-supplied array to a tensor.

    Real values become float64. Complex values keep their precision, complex64 or complex128. Tensors stay on
    their device and in their autograd graph.

    Args:
        field: name of the argument, for error messages.
        value: NumPy array, torch tensor, number or nested sequence. Integers are accepted in sequences only:
            integer arrays are usually element indices, not metres.
        kind: ``real`` or ``complex``.

    Raises:
        InputError: the values are not numbers of this kind.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        array = value if isinstance(value, (np.ndarray, np.generic)) else _array(field, value)
        if array.dtype.kind not in "fciub":
            raise InputError(field, f"must hold {kind} numbers; got an array of type {array.dtype}")
        # A copy where NumPy's memory layout (negative strides, byte order, read-only) does not suit torch.
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(native if native.flags.writeable else native.copy()).reshape(array.shape)
    name = str(tensor.dtype).removeprefix("torch.")
    if kind == "real":
        if not tensor.is_floating_point():
            raise InputError(field, f"must hold real floating-point numbers; got {name}")
        return tensor.to(torch.float64)
    if not tensor.is_complex():
        raise InputError(
            field, f"must hold complex numbers; got {name}. If the imaginary part is 0, convert to complex64"
        )
    return tensor if tensor.dtype in (torch.complex64, torch.complex128) else tensor.to(torch.complex64)


class _Rays:
    """Path differences and amplitudes from K points to N elements, [..., K, N]; N is contiguous.

    Directions and distances are columns, [..., K, 1].
    """

    def __init__(self, panel: Panel, towards: tuple[Tensor, Tensor, Tensor], distance: Tensor) -> None:
        elements = panel.elements.to(device=distance.device, dtype=distance.dtype)
        self._panel, self._wave = panel, panel.wave
        self._elements = elements.unsqueeze(-3).unbind(-1)
        self._towards, self._range = towards, distance
        r = distance
        self._along = along = self._dot(towards)
        self._squared = squared = elements.square().sum(-1).unsqueeze(-2)
        if self._wave in ("spherical", "uniform") or panel.pattern_exponent:
            # r + d is positive, so that the quotient does not suffer from cancellation.
            twice = 2 * r * along
            self._distance = (r.square() - twice + squared).sqrt()
            self._sum = r + self._distance
        if self._wave in ("spherical", "uniform"):
            self.difference = (twice - squared) / self._sum
        elif self._wave == "fresnel":
            self.difference = along - (squared - along.square()) / (2 * r)
        else:
            self.difference = along - squared / (2 * r)
        self.gain = self._gain()

    def _gain(self) -> Tensor | None:
        """Amplitudes g_n, up to a factor common to all elements; none if they are all the same."""
        q = self._panel.pattern_exponent
        gain = self._range / self._distance if self._wave == "spherical" else None
        if not q:
            return gain
        pattern = (self._depth().clamp_min(0) / self._distance) ** q
        return pattern if gain is None else gain * pattern

    def _depth(self) -> Tensor:
        """Distance of the source from the element, along the normal: d_n cos(beta_n)."""
        return self._range * self._towards[2] - self._elements[2]

    def unit_wave(self) -> Tensor:
        """The steering vectors as rows."""
        phase = self._panel.wavenumber * self.difference
        scale: Tensor | float = 1 / math.sqrt(self._panel.size)
        if self.gain is not None:
            norm = self.gain.norm(dim=-1, keepdim=True)
            scale = self.gain / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return torch.complex(phase.cos() * scale, phase.sin() * scale)

    def _dot(self, vector: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        x, y, z = self._elements
        product = torch.addcmul(x * vector[0], z, vector[2])
        return product if vector[1] is None else product.addcmul_(y, vector[1])

    def by_direction(self, by: tuple[Tensor, Tensor | None, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of path difference and log amplitude for a change ``by`` of the direction vector."""
        across = self._dot(by)
        slope = across
        if self._wave in ("spherical", "uniform"):
            slope = self._range * across / self._distance
        elif self._wave == "fresnel":
            slope = across * (1 + self._along / self._range)
        if self.gain is None:
            return slope, slope
        q = self._panel.pattern_exponent
        # The true distance shrinks by this; it differs from the path difference of approximate waves.
        closer = self._range * across / self._distance / self._distance
        growth = closer * (q + 1.0 * (self._wave == "spherical"))
        if q:
            growth = growth + q * self._range * by[2] / self._depth()
        return slope, growth

    def by_range(self) -> tuple[Tensor, Tensor]:
        """Derivatives of path difference and log amplitude with respect to range."""
        if self._wave in ("spherical", "uniform"):
            slope = (self._squared - self._along * self.difference) / (self._distance * self._sum)
        elif self._wave == "fresnel":
            slope = (self._squared - self._along.square()) / (2 * self._range.square())
        else:
            slope = (self._squared / (2 * self._range.square())).expand_as(self._along)
        if self.gain is None:
            return slope, slope
        q, r, d = self._panel.pattern_exponent, self._range, self._distance
        # -d log d / dr, without the part -1 / r that all elements share.
        difference = (2 * r * self._along - self._squared) / self._sum
        closer = (self._squared - self._along * difference) / (d * self._sum)
        farther = (closer - difference / r) / d
        growth = farther * (q + 1.0 * (self._wave == "spherical"))
        if q:
            # d log(r u_z - p_z) / dr, without the part 1 / r.
            growth = growth + q * self._elements[2] / (r * self._depth())
        return slope, growth


def _array(field: str, value: ArrayLike) -> Any:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(field, "must be an array or nested lists of equal length") from error
    return array.astype(np.float64) if array.dtype.kind in "iu" else array
