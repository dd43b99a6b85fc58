r"""Link budget: received power and SNR from transmit power, distances and noise.

A source transmits the power :math:`P_t` with an antenna of gain :math:`G_t`. The power flux density at
element n, at the distance :math:`d_n`, is :math:`P_t G_t / (4 \pi d_n^2)`.

*RIS.* The element collects the power that falls on its area :math:`A_e` and radiates it with its gain
:math:`G_e`. Friis' equation gives the power that a base station antenna of gain :math:`G_r` receives from it
at the distance D. A random configuration makes the phases of the elements independent of each other, so that
their powers add:

.. math:: P_r = \sum_{n=1}^{N} \underbrace{\frac{P_t G_t A_e}{4 \pi d_n^2} \cos^{2q}\beta_n}_\text{collected
    by element n} \; \underbrace{\frac{G_e G_r \lambda^2}{(4 \pi D)^2}}_\text{Friis}.

This is the path loss model of Tang et al., "Wireless communications with reconfigurable intelligent surface:
path loss modeling and experimental measurement", IEEE Trans. Wireless Commun. 20 (2021), theorem 1, with the
mean over random phases in place of the coherent sum. By default :math:`A_e = G_e \lambda^2 / (4 \pi)`, and
it is the product of two Friis equations. :math:`\beta_n` and q describe the element pattern of the panel
(:mod:`rismusic.array`). The amplitudes follow from the panel's wave: all but the spherical one have the range
r in place of :math:`d_n`.

*Direct sampling.* The elements are the receiving antennas, and :math:`P_r` is their mean:

.. math:: P_r = \frac{1}{N} \sum_{n=1}^{N} \frac{P_t G_t G_e \lambda^2}{(4 \pi d_n)^2} \cos^{2q}\beta_n.

*Noise.* Its power is :math:`k B (T + (F - 1) T_0)` with Boltzmann's constant k, the bandwidth B, the
antenna's noise temperature T, the noise figure F and :math:`T_0 = 290` K; at :math:`T = T_0` this is
:math:`k T_0 B F`.

The ratio of the two is the SNR of the package, the mean over snapshots and outputs of :math:`|G_l A s_l|^2`
over :math:`\sigma^2`, in the mean over channels and configurations. The SNRs of several sources add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.array import ArrayLike, Panel, from_db, power_gains, to_db, to_tensor
from rismusic.errors import InputError
from rismusic.spec import LinkBudgetSpec, PanelSpec, SystemSpec

BOLTZMANN = 1.380649e-23
"""In joules per kelvin."""

REFERENCE_TEMPERATURE_K = 290.0
"""Temperature at which the noise figure is defined."""


@dataclass(frozen=True, eq=False)
class LinkBudget:
    """Received power, noise power and SNR of one output of the receiver, for each source.

    Args:
        received_dbm: mean received power in dBm, [...].
        noise_dbm: noise power in dBm.
        outputs: number of receiver outputs that share the power of a steering vector: 1 behind a RIS, N with
            direct sampling.
    """

    received_dbm: Float[Tensor, "*batch"]
    noise_dbm: float
    outputs: int = 1

    @property
    def snr_db(self) -> Float[Tensor, "*batch"]:
        """SNR in dB, [...]."""
        return self.received_dbm - self.noise_dbm

    @property
    def power(self) -> Float[Tensor, "*batch"]:
        """The source's power p (linear) that gives this SNR with unit noise variance, [...]."""
        return from_db(self.snr_db) * self.outputs


def compute_link_budget(
    range_m: ArrayLike,
    power_dbm: ArrayLike,
    *,
    azimuth_deg: ArrayLike = 0.0,
    elevation_deg: ArrayLike = 0.0,
    system: SystemSpec | None = None,
    budget: LinkBudgetSpec | None = None,
) -> LinkBudget:
    """Received power and SNR of sources at given positions.

    The equations are in the documentation of :mod:`rismusic.link_budget`. Number of elements, element pattern
    and wavelength are those of ``system.panel``; the distance to the base station is
    ``system.channel.distance_m``.

    Args:
        range_m: ranges of the sources in metres, a number or [...].
        power_dbm: transmit powers of the sources in dBm; broadcasts against the ranges, as do the angles.
        azimuth_deg: azimuths in degrees.
        elevation_deg: elevations in degrees.
        system: the system; the default system if omitted.
        budget: gains, bandwidth and noise; the default ones if omitted.

    Raises:
        InputError: a range that is not positive, an angle outside -90 .. 90 deg, a power that is not finite,
            or shapes that do not broadcast.

    Example:
        >>> compute_link_budget([1.0, 10.0], power_dbm=0.0).snr_db.round(decimals=1)
        tensor([34.0000, 15.6000], dtype=torch.float64)
    """
    system, budget = system or SystemSpec(), budget or LinkBudgetSpec()
    transmitted = to_tensor("power_dbm", power_dbm, "real")
    if not torch.isfinite(transmitted).all():
        raise InputError("power_dbm", "must be finite, in dBm; got a NaN or an infinity")
    distance = to_tensor("range_m", range_m, "real")
    if not (torch.isfinite(distance) & (distance > 0)).all():
        raise InputError("range_m", f"must be positive and finite, in metres; got {float(distance.min()):g}")
    angles = []
    for name, value in (("azimuth_deg", azimuth_deg), ("elevation_deg", elevation_deg)):
        angle = to_tensor(name, value, "real")
        if not (angle.abs() < 90).all():
            raise InputError(name, "must be within -90 .. 90 deg (in front of the panel)")
        angles.append(angle.deg2rad())
    values = (distance, *angles, transmitted)
    try:
        distance, azimuth, elevation, transmitted = torch.broadcast_tensors(*values)
    except RuntimeError:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise InputError(
            "range_m", f"ranges, azimuths, elevations and powers must broadcast; got shapes {shapes}"
        ) from None
    wavelength = system.panel.wavelength_m
    area, gain = _element(system.panel, budget)
    # Power at the elements over that at one element at the distance r on its axis, summed over the elements.
    points = (value.reshape(-1) for value in (azimuth, elevation, distance))
    total = power_gains(Panel.from_spec(system.panel), *points).sum(-1).reshape(distance.shape)
    per_element = total / (4 * math.pi * distance.square())
    friis = gain * wavelength**2 / (4 * math.pi)
    if system.channel.kind == "direct":
        outputs = system.panel.rows * system.panel.columns
        received = per_element * friis / outputs
    else:
        outputs = 1
        station = _linear(budget.receive_gain_dbi) / (4 * math.pi * system.channel.distance_m**2)
        received = per_element * area * friis * station
    received_dbm = transmitted + budget.transmit_gain_dbi + to_db(received)
    return LinkBudget(received_dbm, noise_dbm(budget), outputs)


def noise_dbm(budget: LinkBudgetSpec) -> float:
    """Noise power of one receiver output in dBm."""
    receiver = (_linear(budget.noise_figure_db) - 1) * REFERENCE_TEMPERATURE_K
    watts = BOLTZMANN * budget.bandwidth_hz * (budget.temperature_k + receiver)
    if watts <= 0:
        raise InputError(
            "budget.temperature_k",
            "a noise temperature of 0 K and a noise figure of 0 dB give no noise; raise one of them",
        )
    return 10 * math.log10(watts * 1e3)


def _element(panel: PanelSpec, budget: LinkBudgetSpec) -> tuple[float, float]:
    """Area (square metres) and peak gain (linear) of an element."""
    side = min(0.5, panel.spacing_wavelengths) * panel.wavelength_m
    area = budget.element_area_m2 or side**2
    if budget.element_gain_dbi is None:
        return area, 4 * math.pi * area / panel.wavelength_m**2
    return area, _linear(budget.element_gain_dbi)


def _linear(level_db: float) -> float:
    return float(10 ** (level_db / 10))
