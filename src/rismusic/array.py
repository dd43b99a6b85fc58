r"""Array geometry and near-field steering vectors.

A source at azimuth :math:`\varphi`, elevation :math:`\theta` and range :math:`r` is at the position
:math:`r u` in the panel frame, with the direction vector

.. math:: u = (\sin\varphi\cos\theta,\; \sin\theta,\; \cos\varphi\cos\theta).

Its steering vector has unit norm,

.. math:: a_n = \frac{1}{\sqrt N} \exp(j k_0 \delta_n), \qquad \delta_n = r - d_n,
    \qquad k_0 = 2 \pi / \lambda,

where :math:`d_n` is the distance from the source to element n at :math:`p_n`. Amplitudes are uniform. Three
forms of the path difference :math:`\delta_n` are available:

* ``spherical`` (exact): :math:`d_n = |r u - p_n|`, computed as
  :math:`\delta_n = (2 r\, p_n\!\cdot\!u - |p_n|^2) / (r + d_n)`, which avoids cancellation in float32;
* ``fresnel`` (second order in :math:`p_n`):
  :math:`\delta_n = p_n\!\cdot\!u - (|p_n|^2 - (p_n\!\cdot\!u)^2) / (2 r)`;
* ``paraxial`` (curvature independent of the angle, accurate near the axis only):
  :math:`\delta_n = p_n\!\cdot\!u - |p_n|^2 / (2 r)`.

``spherical`` is the default; the other two serve for comparison with data and code that use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.renames import refuse_old_names
from rismusic.spec import PanelSpec

ArrayLike = Any
"""A NumPy array, a torch tensor, a number, or a nested sequence of numbers."""

Wave = Literal["spherical", "fresnel", "paraxial"]
"""Form of the path difference; see the documentation of this module."""


@refuse_old_names
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Panel:
    r"""Element positions of a RIS or antenna array, and its wavelength.

    Positions are in the panel frame: x horizontal, y vertical, z the outward normal, the origin at the centre
    of the array. The constructors :meth:`uniform_planar`, :meth:`uniform_linear` and :meth:`uniform_circular`
    centre the array; positions given here are used as they are.

    Args:
        elements: element positions [..., N, 3] in metres, as NumPy array, nested lists or tensor. Stored as
            float64. Leading axes hold one geometry per scene.
        wavelength: carrier wavelength in metres.

    Raises:
        InputError: the positions are not finite real numbers of shape [N, 3], or the wavelength is not
            positive and finite.

    Example:
        >>> Panel([[-0.075, 0, 0], [0.075, 0, 0]], wavelength=0.3)
        Panel(2 elements, aperture 0.15 m, spacing 0.15 m, wavelength 0.3 m)
    """

    elements: Float[Tensor, "*batch N 3"]
    wavelength: float

    def __init__(self, elements: ArrayLike, wavelength: float) -> None:
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
        object.__setattr__(self, "elements", positions)
        object.__setattr__(self, "wavelength", float(wavelength))

    def __repr__(self) -> str:
        geometries = math.prod(self.elements.shape[:-2])
        batch = "" if self.elements.ndim == 2 else f" in {geometries} geometries"
        spacing = "" if self.size < 2 else f"aperture {self.aperture:.3g} m, spacing {self.spacing:.3g} m, "
        plural = "" if self.size == 1 else "s"
        return f"Panel({self.size} element{plural}{batch}, {spacing}wavelength {self.wavelength:g} m)"

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
        return cls(elements.reshape(-1, 3), spec.wavelength_m)

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
        return Panel(self.elements.to(device), self.wavelength)


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
    wave: Wave = "spherical",
) -> Float[Tensor, "*batch K N"]:
    r"""Path differences :math:`\delta_n = r - d_n` of K points to N elements.

    The equations are in the documentation of this module.

    Args:
        panel: N elements.
        towards: direction cosines (u_x, u_y, u_z) of the points, each [..., K]; see :func:`direction`.
        range: ranges r in metres, [..., K].
        wave: ``spherical`` (exact), ``fresnel`` or ``paraxial``.

    Returns:
        Path differences in metres, [..., K, N].
    """
    x, y, z = (cosine[..., None] for cosine in towards)
    return _Paths(panel, (x, y, z), range[..., None], wave).difference


def steering(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> Complex[Tensor, "*batch N K"]:
    r"""Near-field steering matrix; every column has unit norm.

    .. math:: A_{nk} = \frac{1}{\sqrt N} \exp\left( j k_0 (r_k - d_{nk}) \right)

    Args:
        panel: N elements. Its leading axes, if any, broadcast against those of the sources.
        azimuth: :math:`\varphi_k` in radians, [..., K]. Its precision sets that of the result: float32 gives
            complex64, float64 gives complex128.
        elevation: :math:`\theta_k` in radians, [..., K].
        range: :math:`r_k` in metres, positive, [..., K].
        wave: ``spherical`` (exact), ``fresnel`` or ``paraxial``; see the documentation of this module.

    Returns:
        A, complex [..., N, K].

    Example:
        >>> panel = Panel.uniform_planar(8, 8)
        >>> steering(panel, torch.tensor([0.3]), torch.tensor([0.1]), torch.tensor([2.0])).shape
        torch.Size([64, 1])
    """
    return _unit_wave(panel, path_difference(panel, direction(azimuth, elevation), range, wave)).mT


def steering_with_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> tuple[Complex[Tensor, "*batch N K"], Complex[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and its exact derivatives with respect to azimuth, elevation and range.

    .. math:: \frac{\partial a_n}{\partial p} = j a_n \frac{\partial\psi_n}{\partial p},
        \qquad \psi_n = k_0 \delta_n

    The derivatives of the phases are those of :func:`steering_with_phase_derivatives`.

    Args:
        panel: N elements.
        azimuth: radians, [..., K].
        elevation: radians, [..., K].
        range: metres, positive, [..., K].
        wave: see :func:`steering`.

    Returns:
        A [..., N, K], and its derivatives [..., N, K, 3] per radian, per radian and per metre.
    """
    A, slopes = steering_with_phase_derivatives(panel, azimuth, elevation, range, wave)
    return A, torch.complex(-slopes * A.imag[..., None], slopes * A.real[..., None])


def steering_with_phase_derivatives(
    panel: Panel,
    azimuth: Float[Tensor, "*batch K"],
    elevation: Float[Tensor, "*batch K"],
    range: Float[Tensor, "*batch K"],
    wave: Wave = "spherical",
) -> tuple[Complex[Tensor, "*batch N K"], Float[Tensor, "*batch N K 3"]]:
    r"""Steering matrix and the derivatives of its phases :math:`\psi_n = k_0 \delta_n`.

    For the spherical wave, in forms that do not suffer from cancellation,

    .. math:: \frac{\partial\delta_n}{\partial\varphi} = \frac{r\, p_n\!\cdot\!u_\varphi}{d_n}, \qquad
        \frac{\partial\delta_n}{\partial\theta} = \frac{r\, p_n\!\cdot\!u_\theta}{d_n}, \qquad
        \frac{\partial\delta_n}{\partial r} = \frac{|p_n|^2 - \delta_n\, p_n\!\cdot\!u}{d_n (r + d_n)}

    where :math:`u_\varphi` and :math:`u_\theta` are the derivatives of the direction vector u.

    Args:
        panel: N elements.
        azimuth: radians, [..., K].
        elevation: radians, [..., K].
        range: metres, positive, [..., K].
        wave: see :func:`steering`.

    Returns:
        A [..., N, K], and the real derivatives of the phases [..., N, K, 3] in radians per radian, per radian
        and per metre.
    """
    azimuth, elevation = azimuth[..., None], elevation[..., None]
    sin_az, cos_az, sin_el, cos_el = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    x, z = sin_az * cos_el, cos_az * cos_el
    paths = _Paths(panel, (x, sin_el, z), range[..., None], wave)
    derivatives = (
        paths.by_direction((z, None, -x)),
        paths.by_direction((-sin_az * sin_el, cos_el, -cos_az * sin_el)),
        paths.by_range(),
    )
    slopes = torch.stack(derivatives, dim=-1) * panel.wavenumber
    return _unit_wave(panel, paths.difference).mT, slopes.transpose(-3, -2)


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


class _Paths:
    """Path differences delta = r - d and their derivatives, [..., K, N]; the longer axis N is contiguous.

    Directions and distances are columns, [..., K, 1].
    """

    def __init__(
        self, panel: Panel, towards: tuple[Tensor, Tensor, Tensor], distance: Tensor, wave: Wave
    ) -> None:
        elements = panel.elements.to(device=distance.device, dtype=distance.dtype)
        self._elements = elements.unsqueeze(-3).unbind(-1)
        self._wave = wave
        self._range = r = distance
        self._along = along = self._dot(towards)
        self._squared = squared = elements.square().sum(-1).unsqueeze(-2)
        if wave == "spherical":
            # r + d is positive, so that the quotient does not suffer from cancellation.
            twice = 2 * r * along
            self._distance = (r.square() - twice + squared).sqrt()
            self._sum = r + self._distance
            self.difference = (twice - squared) / self._sum
        elif wave == "fresnel":
            self.difference = along - (squared - along.square()) / (2 * r)
        else:
            self.difference = along - squared / (2 * r)

    def _dot(self, vector: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        x, y, z = self._elements
        product = torch.addcmul(x * vector[0], z, vector[2])
        return product if vector[1] is None else product.addcmul_(y, vector[1])

    def by_direction(self, by: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
        """Derivative of the path difference for a change ``by`` of the unit direction vector."""
        across = self._dot(by)
        if self._wave == "spherical":
            return self._range * across / self._distance
        if self._wave == "fresnel":
            return across * (1 + self._along / self._range)
        return across

    def by_range(self) -> Tensor:
        """Derivative of the path difference with respect to range."""
        if self._wave == "spherical":
            rest = self._squared - self._along * self.difference
            return rest / (self._distance * self._sum)
        if self._wave == "fresnel":
            return (self._squared - self._along.square()) / (2 * self._range.square())
        return (self._squared / (2 * self._range.square())).expand_as(self._along)


def _unit_wave(panel: Panel, difference: Tensor) -> Tensor:
    """exp(j k0 delta) / sqrt(N)."""
    phase = panel.wavenumber * difference
    scale = 1 / math.sqrt(panel.size)
    return torch.complex(phase.cos() * scale, phase.sin() * scale)


def _array(field: str, value: ArrayLike) -> Any:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(field, "must be an array or nested lists of equal length") from error
    return array.astype(np.float64) if array.dtype.kind in "iu" else array
