"""Hardware impairments: deviations of the actual panel and link from those in the recording."""

from __future__ import annotations

import torch

from rismusic.array import Panel
from rismusic.operator import Link
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.spec import HardwareSpec


def impair(panel: Panel, link: Link, spec: HardwareSpec, draws: Draws) -> tuple[Panel, Link]:
    r"""Actual panel and link with hardware impairments, from the nominal ones.

    The reflection coefficient of element n in snapshot l is

    .. math:: \gamma_n e^{j(\epsilon_n + \eta_{ln})} c_{ln}

    with a gain :math:`\gamma_n` uniform within 1 -+ ``gain`` (0 for a dead element), a static phase error
    :math:`\epsilon_n` and a phase error :math:`\eta_{ln}` per snapshot. Each coordinate of an element
    deviates by up to ``position_wavelengths``. The elements of a directly sampled array have the same
    impairments, except for the phase error per snapshot.

    Args:
        panel: nominal panel, N elements.
        link: nominal link.
        spec: magnitudes of the impairments; if all are zero, the nominal objects are returned.
        draws: random numbers; each row gives one realisation.

    Returns:
        Actual panel and actual link, each with a leading axis of realisations.
    """
    if spec == HardwareSpec():
        return panel, link
    dtype = next((part.dtype for part in (link.codes, link.channel) if part is not None), torch.complex64)
    real, N = dtype.to_real(), panel.size
    gain = 1 + spec.gain * (2 * draws.uniform(Stream.GAIN, 1, N, dtype=real) - 1)
    alive = draws.uniform(Stream.DEAD, 1, N, dtype=real) >= spec.dead_fraction
    phase = spec.static_phase_rad * draws.normal(Stream.STATIC_PHASE, 1, N, dtype=real)
    if spec.code_phase_rad > 0 and link.codes is not None:
        L = link.codes.shape[-2]
        phase = phase + spec.code_phase_rad * draws.normal(Stream.CODE_PHASE, L, N, dtype=real)
    response = torch.polar((gain * alive).expand_as(phase).contiguous(), phase)
    actual = Link(link.channel, response if link.codes is None else link.codes * response)
    if spec.position_wavelengths == 0:
        return panel, actual
    offset = 2 * draws.uniform(Stream.DISPLACEMENT, N, 3, dtype=torch.float64) - 1
    reach = spec.position_wavelengths * panel.wavelength
    return panel.replace(elements=panel.elements + reach * offset), actual
