r"""Bounds of the evidence of a panel error, compiled by Numba.

:mod:`rismusic.estimation.model_error` without Numba does the same in some hundred small operations.
"""

# The compiled functions have no types of their own: Numba derives them from those of the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.estimation.kernel_cache import call


def explained_at_most(
    W: Complex[Tensor, "B N N"], z: Complex[Tensor, "B N"], ratios: Sequence[float], steps: int
) -> Float[Tensor, "B ratios"]:
    r"""Upper bounds of :math:`\rho\, z^H (I + \rho W)^{-1} z` after some steps of the Lanczos recursion."""
    out = torch.empty(len(z), len(ratios), dtype=torch.float64)
    arrays = (W.contiguous().numpy(), z.resolve_conj().contiguous().numpy())
    call(_bound, len(z), (*arrays, np.array(ratios), steps, out.numpy()))
    return out


def _bound(first, last, matrices, vectors, ratios, steps, out):
    """See :func:`explained_at_most`, problems ``first`` to ``last`` - 1."""
    N = vectors.shape[1]
    zero, tiny = np.float32(0.0), float(np.finfo(np.float32).tiny)
    # W v is a product with the interleaved parts of W: [v_re, -v_im] gives its real, [v_im, v_re] its
    # imaginary part.
    of_re, of_im = np.zeros(2 * N, np.float32), np.zeros(2 * N, np.float32)
    v, before, w = np.zeros(N, np.complex64), np.zeros(N, np.complex64), np.zeros(N, np.complex64)
    diagonal, beside = np.zeros(steps), np.zeros(steps + 1)
    for b in range(first, last):
        rows = matrices[b].view(np.float32)
        energy = 0.0
        for n in range(N):
            energy += vectors[b, n].real ** 2 + vectors[b, n].imag ** 2
        scale = np.float32(1 / np.sqrt(max(energy, tiny)))
        for n in range(N):
            v[n], before[n] = scale * vectors[b, n], 0
        for step in range(steps):
            for n in range(N):
                of_re[2 * n], of_re[2 * n + 1] = v[n].real, -v[n].imag
                of_im[2 * n], of_im[2 * n + 1] = v[n].imag, v[n].real
            root = np.float32(np.sqrt(beside[step]))
            total = 0.0
            for n in range(N):
                re = im = zero
                for k in range(2 * N):
                    re += rows[n, k] * of_re[k]
                    im += rows[n, k] * of_im[k]
                w[n] = complex(re - root * before[n].real, im - root * before[n].imag)
                total += v[n].real * w[n].real + v[n].imag * w[n].imag
            diagonal[step] = total
            total, part = 0.0, np.float32(total)
            for n in range(N):
                w[n] -= part * v[n]
                total += w[n].real ** 2 + w[n].imag ** 2
            beside[step + 1] = total
            scale = np.float32(1 / np.sqrt(max(total, tiny)))
            for n in range(N):
                before[n] = v[n]
                v[n] = scale * w[n]
        pivot = diagonal[0]
        for step in range(1, steps):
            pivot = diagonal[step] - beside[step] / max(pivot, tiny)
        for number in range(len(ratios)):
            ratio = ratios[number]
            fraction = 1 + ratio * beside[steps] / max(pivot, tiny)
            for step in range(steps - 1, -1, -1):
                fraction = 1 + ratio * diagonal[step] - ratio**2 * beside[step + 1] / fraction
            out[b, number] = ratio * energy / fraction
