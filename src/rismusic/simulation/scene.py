"""What is random in simulated scenes: sources, channel, RIS configurations and hardware impairments."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Complex, Int
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, Panel, direction, from_db, path_difference, to_db
from rismusic.errors import InputError
from rismusic.operator import Link
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.sources import Sources
from rismusic.spec import ChannelSpec, CodebookSpec, HardwareSpec, PanelSpec, SceneSpec, SymbolKind, limits

# Candidate sets of positions drawn per scene in each round of rejection sampling.
_ATTEMPTS = (8, 64, 512, 4096)


def draw_sources(
    spec: SceneSpec,
    sources: int | tuple[int, int],
    snapshots: int,
    draws: Draws,
    dtype: torch.dtype = torch.float32,
) -> Sources:
    """Draw the sources of each scene: number, positions, powers and symbols.

    Positions are uniform over all sets with a separation of at least ``separation_deg`` (rejection sampling).
    ``sources`` is K, or the limits of a uniform draw.
    """
    fewest, most = limits(sources)
    count = fewest + draws.integers(Stream.COUNT, most - fewest + 1)
    active = torch.arange(most, device=count.device) < count[:, None]
    positions = _positions(spec, active, draws, dtype)
    azimuth, elevation, distance = positions.unbind(-1)
    drawn = Sources(azimuth=azimuth, elevation=elevation, range=distance).blank(~active)
    return complete_sources(spec, drawn, snapshots, draws)


def complete_sources(spec: SceneSpec, sources: Sources, snapshots: int, draws: Draws) -> Sources:
    """Draw what user-given sources lack: powers (as ``spec`` says) and symbols.

    Given symbols without powers get their mean square as power.
    """
    active, dtype = sources.active, sources.azimuth.dtype
    power, symbols = sources.power, sources.symbols
    if power is None and symbols is not None:
        power = symbols.abs().square().mean(dim=-1)
    if power is None:
        power = _powers(spec, sources.range.masked_fill(~active, 1), active, draws)
    if symbols is None:
        unit = draw_symbols(
            spec.symbols, active.shape[-1], snapshots, draws, dtype.to_complex(), correlation=spec.correlation
        )
        symbols = unit * power.sqrt()[..., None]
    completed = replace(sources, power=power, symbols=symbols)
    return completed.blank(~active)


def draw_symbols(
    kind: SymbolKind,
    sources: int,
    snapshots: int,
    draws: Draws,
    dtype: torch.dtype = torch.complex64,
    *,
    correlation: float = 0.0,
) -> Complex[Tensor, "S K L"]:
    """Symbols of unit mean power: ``gaussian``, ``qpsk``, or one random phase per source (``constant``).

    Those of ``pilots`` are :func:`draw_pilots` with one random phase per source. Gaussian symbols with
    correlation are the weighted sum of a common symbol and of one's own.
    """
    if kind == "gaussian":
        own = draws.complex_normal(Stream.SYMBOLS, sources, snapshots, dtype=dtype)
        if correlation == 0:
            return own
        common = draws.complex_normal(Stream.COMMON_SYMBOLS, 1, snapshots, dtype=dtype)
        return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    if kind == "qpsk":
        turns = (draws.integers(Stream.SYMBOLS, 4, sources, snapshots).to(dtype.to_real()) + 0.5) / 4
    else:
        turns = draws.uniform(Stream.SYMBOLS, sources, 1, dtype=dtype.to_real()).expand(-1, -1, snapshots)
    if kind == "pilots":
        turns = turns + _pilot_turns(sources, snapshots, draws, dtype.to_real())
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


def draw_pilots(
    sources: int, snapshots: int, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S L K"]:
    """Pilots of each source, random QPSK symbols."""
    turns = _pilot_turns(sources, snapshots, draws, dtype.to_real())
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns).mT


def _pilot_turns(sources: int, snapshots: int, draws: Draws, dtype: torch.dtype) -> Tensor:
    return (draws.integers(Stream.PILOTS, 4, sources, snapshots).to(dtype) + 0.5) / 4


def _powers(spec: SceneSpec, distance: Tensor, active: Tensor, draws: Draws) -> Tensor:
    """Powers [S, K] with mean 1 over the active sources of each scene."""
    level = torch.zeros_like(distance)
    if spec.power == "path_loss":
        level = -2 * to_db(distance)
    if spec.power_spread_db > 0:
        spread = draws.uniform(Stream.POWERS, distance.shape[-1], dtype=distance.dtype) - 0.5
        level = level + spec.power_spread_db * spread
    power = from_db(level) * active
    return power * active.sum(dim=-1, keepdim=True) / power.sum(dim=-1, keepdim=True)


def _positions(spec: SceneSpec, active: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
    """[S, K, 3]: for each scene the first candidate set with the required separation."""
    scenes, most = active.shape
    low = torch.tensor([-spec.azimuth_max_deg, -spec.elevation_max_deg, spec.range_min_m], dtype=dtype)
    high = torch.tensor([spec.azimuth_max_deg, spec.elevation_max_deg, spec.range_max_m], dtype=dtype)
    to_radians = torch.tensor([math.pi / 180, math.pi / 180, 1.0], dtype=dtype)
    low, high = (low * to_radians).to(active.device), (high * to_radians).to(active.device)
    pair = torch.ones(most, most, dtype=torch.bool, device=active.device).triu(1)
    chosen = low.new_zeros(scenes, most, 3)
    left = torch.arange(scenes, device=active.device)
    passed = 0
    for attempts in _ATTEMPTS:
        fraction = draws[left].uniform(Stream.POSITIONS, attempts, most, 3, dtype=dtype, skip=passed)
        sets = low + (high - low) * fraction
        gap = (sets[..., :, None, :2] - sets[..., None, :, :2]).abs()
        gap = torch.minimum(gap, 2 * math.pi - gap).amax(-1)  # all round
        both = active[left][:, None, :, None] & active[left][:, None, None, :] & pair
        good = ~(both & (gap < math.radians(spec.separation_deg))).flatten(-2).any(-1)
        found, first = good.max(dim=1)
        chosen[left] = sets[torch.arange(len(left), device=left.device), first.long()]
        left = left[~found]
        passed += attempts * most * 3
        if len(left) == 0:
            return chosen
    raise InputError(
        "scene.separation_deg",
        f"{most} sources do not fit into the volume at a separation of {spec.separation_deg:g} deg "
        f"({sum(_ATTEMPTS)} attempts). Reduce the separation or the number of sources",
    )


def draw_channel(
    panel: Panel, spec: ChannelSpec, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S *F M N"] | None:
    r"""Channel of each scene; None for direct sampling.

    A Rician channel is

    .. math:: H = \sqrt{\frac{\kappa}{\kappa+1}}\,H_\mathrm{LoS}
        + \sqrt{\frac{1}{\kappa+1}}\,H_\mathrm{scatter}

    Entries of the line of sight have modulus 1 and those of the scatter unit mean power, so that the Rician
    factor :math:`\kappa` is the ratio of their energies.

    With subcarriers, each has a line of sight at its own wavelength; the scatter is the same for all (flat
    fading).
    """
    if spec.kind == "direct":
        return None
    if panel.subcarriers > 1:
        spacing, each = spec.antenna_spacing_wavelengths * panel.wavelength, []
        for frequency in panel.frequencies:
            one = panel.replace(frequencies=(), wavelength=SPEED_OF_LIGHT / frequency)
            # The antennas stay where they are.
            H = draw_channel(
                one, spec.replace(antenna_spacing_wavelengths=spacing / one.wavelength), draws, dtype
            )
            assert H is not None
            each.append(H)
        return torch.stack(each, dim=1)
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
    """
    real = dtype.to_real()
    turn = 2 * draws.uniform(Stream.STATION, 2, dtype=real) - 1
    extent = turn.new_tensor([spec.azimuth_max_deg, spec.elevation_max_deg]).deg2rad()
    azimuth, elevation = (turn * extent).unbind(-1)
    spacing = spec.antenna_spacing_wavelengths * panel.wavelength
    # Coordinate of each antenna along x, from the centre of the line.
    along = -(torch.arange(spec.antennas, dtype=real, device=turn.device) - (spec.antennas - 1) / 2) * spacing
    x, y, z = (spec.distance_m * cosine[:, None] for cosine in direction(azimuth, elevation))
    distance = ((x + along).square() + y.square() + z.square()).sqrt()
    towards = ((x + along) / distance, y / distance, z / distance)
    # d_mn - r_0 = (r_m - r_0) - (r_m - d_mn), each difference in a form without cancellation in float32.
    excess = along * (2 * x + along) / (distance + spec.distance_m)
    phase = panel.wavenumber * (path_difference(panel, towards, distance) - excess[..., None])
    return torch.complex(phase.cos(), phase.sin())


def draw_codes(
    panel: PanelSpec, spec: CodebookSpec, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S L N"]:
    """RIS configurations of each scene, of unit modulus and of the phase resolution in ``spec``.

    ``random`` draws every phase independently. ``dft`` and ``hadamard`` step through all beams (rows) in an
    order that separates consecutive beams widely, from a random start in each scene: N consecutive snapshots
    use every beam once, and over many scenes each beam is used equally often.
    """
    size, L = panel.rows * panel.columns, spec.snapshots
    if spec.kind == "random":
        return _random(size, spec, draws, dtype)
    total = size if spec.kind == "dft" else hadamard_order(size, L)
    first = draws.integers(Stream.CODES, total, 1)
    beams = spread_order(total, first.device)[(first + torch.arange(L, device=first.device)) % total]
    codes = dft_codes(panel.rows, panel.columns, beams) if spec.kind == "dft" else hadamard_codes(size, beams)
    return quantise(codes, spec.bits).to(dtype)


def quantise(codes: Complex[Tensor, "*batch L N"], bits: int | str) -> Complex[Tensor, "*batch L N"]:
    """Round each phase to the nearest multiple of 2 pi / 2**bits; moduli are kept.

    With ``bits="continuous"`` nothing is rounded.
    """
    if bits == "continuous":
        return codes
    if not isinstance(bits, int) or bits < 1:
        raise InputError("bits", f"must be a positive integer or 'continuous'; got {bits!r}")
    step = 2 * math.pi / 2**bits
    return torch.polar(codes.abs(), (codes.angle() / step).round() * step)


def dft_codes(rows: int, columns: int, beams: Int[Tensor, "*batch L"]) -> Complex[Tensor, "*batch L N"]:
    r"""Beams of the 2-D DFT: :math:`c_n = \exp(-2\pi j (p x_n / N_x + q y_n / N_y))`, complex128.

    Beam b = q N_x + p, from 0 to N_x N_y - 1.
    """
    p, q = beams % columns, beams // columns
    number = torch.arange(rows * columns, device=beams.device)
    x, y = number % columns, number // columns
    # Integer arithmetic removes whole turns, so that the phase is accurate to rounding.
    turns = (p[..., None] * x % columns).double() / columns + (q[..., None] * y % rows).double() / rows
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def hadamard_codes(size: int, rows: Int[Tensor, "*batch L"]) -> Complex[Tensor, "*batch L N"]:
    """Rows of Sylvester's Hadamard matrix, cut to N columns: entry (i, n) is (-1)**popcount(i & n).

    Row numbers i are below :func:`hadamard_order`.
    """
    parity = rows[..., None] & torch.arange(size, device=rows.device)
    for shift in (16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return (1 - 2 * (parity & 1)).to(torch.complex128)


def hadamard_order(size: int, snapshots: int) -> int:
    """Order of the smallest Sylvester matrix with ``size`` columns and ``snapshots`` rows."""
    return int(2 ** math.ceil(math.log2(max(size, snapshots, 2))))


def spread_order(total: int, device: torch.device | str = "cpu") -> Int[Tensor, "total"]:
    """Permutation of 0 .. total - 1 in which consecutive numbers are far apart.

    It consists of the multiples, modulo ``total``, of a step near the golden section of ``total``. The step
    is coprime with ``total``, so that every number occurs once.
    """
    golden = total * (math.sqrt(5) - 1) / 2
    step = min((s for s in range(1, total + 1) if math.gcd(s, total) == 1), key=lambda s: abs(s - golden))
    return torch.arange(total, device=device) * step % total


def _random(size: int, spec: CodebookSpec, draws: Draws, dtype: torch.dtype) -> Tensor:
    L = spec.snapshots
    if isinstance(spec.bits, int) and spec.bits <= 8:
        level = draws.octets(Stream.CODES, 2**spec.bits, L, size)
        turns = torch.arange(2**spec.bits, dtype=torch.float64, device=level.device) / 2**spec.bits
        table = torch.polar(torch.ones_like(turns), 2 * math.pi * turns).to(dtype)
        return table.index_select(0, level.flatten()).view(level.shape)
    turns = draws.uniform(Stream.CODES, L, size, dtype=dtype.to_real())
    return quantise(torch.polar(torch.ones_like(turns), 2 * math.pi * turns), spec.bits)


def impair(
    panel: Panel, link: Link, spec: HardwareSpec, draws: Draws, of_panel: Draws | None = None
) -> tuple[Panel, Link]:
    r"""Actual panel and link with hardware impairments, from the nominal ones.

    The reflection coefficient of element n in snapshot l is

    .. math:: \gamma_n e^{j(\epsilon_n + \eta_{ln})} c_{ln}

    with a gain :math:`\gamma_n` uniform within 1 -+ ``gain`` (0 for a dead element), a static phase error
    :math:`\epsilon_n` and a phase error :math:`\eta_{ln}` per snapshot. Each coordinate of an element
    deviates by up to ``position_wavelengths``. The elements of a directly sampled array have the same
    impairments, except for the phase error per snapshot. Without impairments the nominal objects are
    returned, otherwise both have a leading axis of realisations, one for each row of ``draws``. ``of_panel``
    replaces ``draws`` for all but the phase error per snapshot.
    """
    if spec == HardwareSpec():
        return panel, link
    dtype = next((part.dtype for part in (link.codes, link.channel) if part is not None), torch.complex64)
    real, N = dtype.to_real(), panel.size
    fixed = draws if of_panel is None else of_panel
    gain = 1 + spec.gain * (2 * fixed.uniform(Stream.GAIN, 1, N, dtype=real) - 1)
    alive = fixed.uniform(Stream.DEAD, 1, N, dtype=real) >= spec.dead_fraction
    phase = spec.static_phase_rad * fixed.normal(Stream.STATIC_PHASE, 1, N, dtype=real)
    if spec.code_phase_rad > 0 and link.codes is not None:
        L = link.codes.shape[-2]
        phase = phase + spec.code_phase_rad * draws.normal(Stream.CODE_PHASE, L, N, dtype=real)
    response = torch.polar((gain * alive).expand_as(phase).contiguous(), phase)
    codes = response if link.codes is None else link.codes * response
    actual = Link(link.channel, codes, subcarriers=link.subcarriers)
    if spec.position_wavelengths == 0:
        return panel, actual
    offset = 2 * fixed.uniform(Stream.DISPLACEMENT, N, 3, dtype=torch.float64) - 1
    reach = spec.position_wavelengths * panel.wavelength
    return panel.replace(elements=panel.elements + reach * offset), actual
