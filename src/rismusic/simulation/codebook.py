"""Codebooks: the RIS configurations of the snapshots (random, DFT beams, Hadamard rows)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Int
from torch import Tensor

from rismusic.errors import InputError
from rismusic.simulation.random_numbers import Draws, Stream
from rismusic.spec import CodebookSpec, PanelSpec


def draw_codes(
    panel: PanelSpec, spec: CodebookSpec, draws: Draws, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "S L N"]:
    """RIS configurations of each scene, of unit modulus and of the phase resolution in ``spec``.

    ``random`` draws every phase independently. ``dft`` and ``hadamard`` step through all beams (rows) in an
    order that separates consecutive beams widely, from a random start in each scene: N consecutive snapshots
    use every beam once, and over many scenes each beam is used equally often.

    Args:
        panel: the uniform panel; ``dft`` needs its rows and columns.
        spec: kind, number of snapshots and bits.
        draws: random numbers of the scenes.
        dtype: complex64 or complex128.

    Returns:
        Configurations c, [S, L, N].
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

    Args:
        codes: RIS configurations c, complex [..., L, N].
        bits: positive number of bits, or ``continuous`` for no rounding.

    Raises:
        InputError: another value of ``bits``.
    """
    if bits == "continuous":
        return codes
    if not isinstance(bits, int) or bits < 1:
        raise InputError("bits", f"must be a positive integer or 'continuous'; got {bits!r}")
    step = 2 * math.pi / 2**bits
    return torch.polar(codes.abs(), (codes.angle() / step).round() * step)


def dft_codes(rows: int, columns: int, beams: Int[Tensor, "*batch L"]) -> Complex[Tensor, "*batch L N"]:
    r"""Beams of the 2-D DFT: :math:`c_n = \exp(-2\pi j (p x_n / N_x + q y_n / N_y))`, complex128.

    Args:
        rows: N_y.
        columns: N_x.
        beams: beam numbers b = q N_x + p, from 0 to N_x N_y - 1.
    """
    p, q = beams % columns, beams // columns
    number = torch.arange(rows * columns, device=beams.device)
    x, y = number % columns, number // columns
    # Integer arithmetic removes whole turns, so that the phase is accurate to rounding.
    turns = (p[..., None] * x % columns).double() / columns + (q[..., None] * y % rows).double() / rows
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def hadamard_codes(size: int, rows: Int[Tensor, "*batch L"]) -> Complex[Tensor, "*batch L N"]:
    """Rows of Sylvester's Hadamard matrix, cut to N columns: entry (i, n) is (-1)**popcount(i & n).

    Args:
        size: N.
        rows: row numbers i below :func:`hadamard_order`.
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
