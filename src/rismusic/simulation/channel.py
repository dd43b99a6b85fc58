"""Random channels H from the panel to the base station: Rician, Rayleigh, or none (direct sampling)."""

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
    r"""Channel of each scene; None for direct sampling.

    A Rician channel is

    .. math:: H = \sqrt{\frac{\kappa}{\kappa+1}}\,H_\mathrm{LoS}
        + \sqrt{\frac{1}{\kappa+1}}\,H_\mathrm{scatter}

    Entries of the line of sight have modulus 1 and those of the scatter unit mean power, so that the Rician
    factor :math:`\kappa` is the ratio of their energies.

    Args:
        panel: N elements.
        spec: kind of channel, and limits of the position of the base station.
        draws: random numbers of the scenes.
        dtype: complex64 or complex128.

    Returns:
        H, complex [S, M, N], or None.
    """
    if spec.kind == "direct":
        return None
    scatter = draws.complex_normal(Stream.SCATTER, spec.antennas, panel.size, dtype=dtype)
    if spec.kind == "rayleigh":
        return scatter
    low, high = limits(spec.rician_factor_db)
    fraction = draws.uniform(Stream.RICIAN_FACTOR, 1, 1, 1, dtype=dtype.to_real())
    factor = from_db(low + (high - low) * fraction)
    # As pairs of real numbers, since torch multiplies real by complex as complex by complex.
    sight = torch.view_as_real(line_of_sight(panel, spec, draws, dtype))
    mixed = (factor / (factor + 1)).sqrt() * sight + (1 / (factor + 1)).sqrt() * torch.view_as_real(scatter)
    return torch.view_as_complex(mixed)


def line_of_sight(
    panel: Panel, spec: ChannelSpec, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S M N"]:
    r"""Line-of-sight channel between M antennas and N elements, with exact spherical waves and unit modulus.

    .. math:: H_{mn} = \exp(-j k_0 (d_{mn} - r_0))

    where :math:`d_{mn}` is the distance from antenna m to element n and :math:`r_0` the distance from the
    panel's centre to the centre of the base station. The base station faces the panel: its antennas are
    numbered along the panel's -x axis.

    Args:
        panel: N elements.
        spec: limits of the position of the base station, and its antennas.
        draws: random numbers of the scenes.
        dtype: complex64 or complex128.

    Returns:
        H_LoS, complex [S, M, N].
    """
    real = dtype.to_real()
    turn = 2 * draws.uniform(Stream.STATION, 2, dtype=real) - 1
    extent = turn.new_tensor([spec.azimuth_max_deg, spec.elevation_max_deg]).deg2rad()
    azimuth, elevation = (turn * extent).unbind(-1)
    spacing = spec.antenna_spacing_wavelengths * panel.wavelength
    # Coordinate of each antenna along x, from the centre of the line.
    place = -(torch.arange(spec.antennas, dtype=real, device=turn.device) - (spec.antennas - 1) / 2) * spacing
    x, y, z = (spec.distance_m * cosine[:, None] for cosine in direction(azimuth, elevation))
    distance = ((x + place).square() + y.square() + z.square()).sqrt()
    towards = ((x + place) / distance, y / distance, z / distance)
    # d_mn - r_0 = (r_m - r_0) - (r_m - d_mn), each difference in a form without cancellation in float32.
    excess = place * (2 * x + place) / (distance + spec.distance_m)
    phase = panel.wavenumber * (path_difference(panel, towards, distance) - excess[..., None])
    return torch.complex(phase.cos(), phase.sin())
