"""Hardware errors: the panel that acts is not quite the panel that the recording describes."""

from __future__ import annotations

import torch

from rismusic.array import Panel
from rismusic.operator import Link
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.spec import HardwareSpec


def impair(panel: Panel, link: Link, spec: HardwareSpec, draws: Draws) -> tuple[Panel, Link]:
    r"""The panel and the link that act, given those that are recorded.

    Element n reflects with :math:`\gamma_n e^{j(\epsilon_n + \eta_{ln})} c_{ln}` in place of
    :math:`c_{ln}`: gain :math:`\gamma_n` uniform within 1 -+ ``gain`` and 0 for a dead element, static phase
    error :math:`\epsilon_n`, and a phase error :math:`\eta_{ln}` of each code. It sits up to
    ``position_wavelengths`` off its place along each axis. A directly sampled panel has the same errors,
    of its antennas, but for those of codes.

    Args:
        panel: the nominal panel, N elements.
        link: the nominal link.
        spec: sizes of the errors; all zero returns the nominal objects themselves.
        draws: random numbers, one set of errors for each row.

    Returns:
        The actual panel and the actual link, both with a leading axis of draws.
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
    return Panel(panel.elements + reach * offset, panel.wavelength), actual
