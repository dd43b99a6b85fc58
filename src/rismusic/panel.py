"""Panels: where the elements are, and how far their near field reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.errors import InputError
from rismusic.spec import PanelSpec


@dataclass(frozen=True, eq=False)
class Panel:
    """N elements of a reconfigurable surface or antenna array, and the wavelength they work at.

    The frame is the panel's own: x horizontal, y vertical, z the outward normal, the origin in the middle.
    Elements of a uniform panel are numbered with y slowest and x fastest.

    Args:
        elements: positions [..., N, 3] in metres, float64; leading axes are panels that differ per scene.
        wavelength: in metres.

    Raises:
        InputError: positions of another shape, or not finite; a wavelength that is not positive and finite.
    """

    elements: Float[Tensor, "*batch N 3"]
    wavelength: float

    def __post_init__(self) -> None:
        shape = tuple(self.elements.shape)
        if len(shape) < 2 or shape[-1] != 3 or shape[-2] < 1:
            raise InputError("elements", "positions of shape [N, 3]", f"shape {shape}")
        if not self.elements.is_floating_point():
            raise InputError("elements", "real floating-point positions in metres", str(self.elements.dtype))
        if not torch.isfinite(self.elements).all():
            raise InputError("elements", "finite positions in metres", "a NaN or an infinity")
        if not (math.isfinite(self.wavelength) and self.wavelength > 0):
            raise InputError("wavelength", "a positive, finite length in metres", f"{self.wavelength:g}")

    @classmethod
    def uniform(
        cls, rows: int = 12, columns: int = 12, *, spacing_wavelengths: float = 0.5, wavelength: float = 0.3
    ) -> Panel:
        """A uniform planar panel of ``rows`` (along y) times ``columns`` (along x) elements, centred."""
        return cls.from_spec(
            PanelSpec(
                rows=rows, columns=columns, spacing_wavelengths=spacing_wavelengths, wavelength_m=wavelength
            )
        )

    @classmethod
    def from_spec(cls, spec: PanelSpec) -> Panel:
        """The panel that a :class:`~rismusic.spec.PanelSpec` describes."""
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
        """Largest extent in metres: the diagonal of the box around the elements."""
        extent = self.elements.amax(dim=-2) - self.elements.amin(dim=-2)
        return float(extent.norm(dim=-1).max())

    @property
    def spacing(self) -> float:
        """Least distance between two elements in metres; infinite for a single element.

        Found through a k-d tree, so that no N x N matrix is formed.
        """
        from scipy.spatial import cKDTree

        if self.size < 2:
            return math.inf
        panels = self.elements.detach().cpu().reshape(-1, self.size, 3).numpy()
        return min(float(cKDTree(panel).query(panel, k=2)[0][:, 1].min()) for panel in panels)

    @property
    def fraunhofer_distance(self) -> float:
        """2 D^2 / wavelength in metres: beyond it a source on the axis looks planar (pi / 8 at the rim)."""
        return 2 * self.aperture**2 / self.wavelength

    @property
    def fresnel_distance(self) -> float:
        """0.62 sqrt(D^3 / wavelength) in metres: beyond it the second-order wave holds on the axis.

        Balanis, *Antenna Theory*, section 4.4.
        """
        return 0.62 * math.sqrt(self.aperture**3 / self.wavelength)

    def to(self, device: torch.device | str) -> Panel:
        """The same panel on another device."""
        return Panel(self.elements.to(device), self.wavelength)
