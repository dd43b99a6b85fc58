"""Channels H from the panel to the base station, each scene its own."""

from __future__ import annotations

import torch
from jaxtyping import Complex
from torch import Tensor

from rismusic.array import Panel, direction, path_difference
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.spec import ChannelSpec, limits
from rismusic.units import from_db


def draw_channel(
    panel: Panel, spec: ChannelSpec, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S M N"] | None:
    r"""One channel for each scene, or none for direct sampling.

    ``rician``: :math:`H = \sqrt{\kappa/(\kappa+1)}\,H_\mathrm{LoS}
    + \sqrt{1/(\kappa+1)}\,H_\mathrm{scatter}`.
    Every entry of the line of sight has modulus 1 and every entry of the scatter unit mean power *before*
    the two are mixed, so that :math:`\kappa` is the ratio of their energies and stays it.

    Args:
        panel: N elements.
        spec: the kind of channel, and where the base station may stand.
        draws: the scenes' random numbers.
        dtype: complex64 or complex128.

    Returns:
        H, [S, M, N] complex, or none.
    """
    if spec.kind == "direct":
        return None
    scatter = draws.complex_normal(Stream.SCATTER, spec.antennas, panel.size, dtype=dtype)
    if spec.kind == "rayleigh":
        return scatter
    low, high = limits(spec.rician_factor_db)
    fraction = draws.uniform(Stream.RICIAN_FACTOR, 1, 1, 1, dtype=dtype.to_real())
    factor = from_db(low + (high - low) * fraction)
    # Mixed as pairs of real numbers: a real times a complex tensor is computed as complex times complex.
    sight = torch.view_as_real(line_of_sight(panel, spec, draws, dtype))
    mixed = (factor / (factor + 1)).sqrt() * sight + (1 / (factor + 1)).sqrt() * torch.view_as_real(scatter)
    return torch.view_as_complex(mixed)


def line_of_sight(
    panel: Panel, spec: ChannelSpec, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S M N"]:
    r"""The direct waves between M antennas and N elements, exact spherical, every entry of modulus 1.

    :math:`H_{mn} = \exp(-j k_0 (d_{mn} - r_0))` with :math:`d_{mn}` the distance from antenna m to element n
    and :math:`r_0` the distance to the middle of the base station. The base station looks at the panel: its
    antennas are numbered along the panel's -x.

    Args:
        panel: N elements.
        spec: where the base station may stand, how many antennas it has.
        draws: the scenes' random numbers.
        dtype: complex64 or complex128.
    """
    real = dtype.to_real()
    turn = 2 * draws.uniform(Stream.STATION, 2, dtype=real) - 1
    extent = turn.new_tensor([spec.azimuth_max_deg, spec.elevation_max_deg]).deg2rad()
    azimuth, elevation = (turn * extent).unbind(-1)
    spacing = spec.antenna_spacing_wavelengths * panel.wavelength
    # Signed place of each antenna along x, seen from the middle of the line.
    place = -(torch.arange(spec.antennas, dtype=real, device=turn.device) - (spec.antennas - 1) / 2) * spacing
    x, y, z = (spec.distance_m * cosine[:, None] for cosine in direction(azimuth, elevation))
    distance = ((x + place).square() + y.square() + z.square()).sqrt()
    towards = ((x + place) / distance, y / distance, z / distance)
    # d_mn - r_0 = (r_m - r_0) - (r_m - d_mn), each difference in a form that float32 can hold.
    excess = place * (2 * x + place) / (distance + spec.distance_m)
    phase = panel.wavenumber * (path_difference(panel, towards, distance) - excess[..., None])
    return torch.complex(phase.cos(), phase.sin())
