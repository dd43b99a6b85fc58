"""The test statistic of many noise draws on the panel, compiled by Numba.

:func:`~rismusic.estimation.goodness_of_fit.sphericity` without Numba does the same with batches of matrix
products; here, the field of a draw on the panel stays in the cache of the processor.
"""

# The compiled functions have no types of their own: Numba derives them from those of the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.estimation.kernel_cache import call

_VECTOR = 8  # rows of real vectors are padded to a multiple of this


def gram_energy(
    channel: Complex[Tensor, "*H M N"], codes: Complex[Tensor, "*C L N"], rest: Complex[Tensor, "S Q L M"]
) -> Float[Tensor, "S Q"]:
    r""":math:`\sum_{l,l'} |x_l^H x_{l'}|^2` of :math:`x_l = c_l^* \circ (B^H r_l)`, for Q draws of r.

    B and c are those of each scene or of all.
    """
    out = torch.empty(rest.shape[:2])
    parts = [value if value.ndim == 3 else value[None] for value in (channel, codes)]
    arrays = [value.resolve_conj().contiguous().numpy() for value in (*parts, rest)]
    call(_sum_grams, len(rest), (*arrays, out.numpy()))
    return out


def _sum_grams(first, last, channels, all_codes, rests, out):
    """See :func:`gram_energy`, scenes ``first`` to ``last`` - 1."""
    _, Q, L, M = rests.shape
    N = channels.shape[2]
    width, outputs, rows = (N + _VECTOR - 1) // _VECTOR * _VECTOR, M + M % 2, L + L % 2
    single = np.float32
    zero = single(0.0)
    H_re, H_im = np.zeros((outputs, width), single), np.zeros((outputs, width), single)
    c_re, c_im = np.zeros((rows, width), single), np.zeros((rows, width), single)
    x_re, x_im = np.zeros((rows, width), single), np.zeros((rows, width), single)
    r_re, r_im = np.zeros((rows, outputs), single), np.zeros((rows, outputs), single)
    for s in range(first, last):
        h, g = min(s, channels.shape[0] - 1), min(s, all_codes.shape[0] - 1)
        for n in range(N):
            for m in range(M):
                H_re[m, n], H_im[m, n] = channels[h, m, n].real, channels[h, m, n].imag
            for t in range(L):
                code = all_codes[g, min(t, all_codes.shape[1] - 1), n]
                c_re[t, n], c_im[t, n] = code.real, code.imag
        for q in range(Q):
            # The conjugate of x, whose products have the same moduli.
            for t in range(L):
                for m in range(M):
                    r_re[t, m], r_im[t, m] = rests[s, q, t, m].real, -rests[s, q, t, m].imag
            for t in range(0, rows, 2):
                for n in range(width):
                    x_re[t, n], x_im[t, n], x_re[t + 1, n], x_im[t + 1, n] = zero, zero, zero, zero
                for m in range(0, outputs, 2):
                    a, b, c, d = r_re[t, m], r_im[t, m], r_re[t, m + 1], r_im[t, m + 1]
                    e, f, i, j = r_re[t + 1, m], r_im[t + 1, m], r_re[t + 1, m + 1], r_im[t + 1, m + 1]
                    for n in range(width):
                        p, k, u, v = H_re[m, n], H_im[m, n], H_re[m + 1, n], H_im[m + 1, n]
                        x_re[t, n] += a * p - b * k + c * u - d * v
                        x_im[t, n] += a * k + b * p + c * v + d * u
                        x_re[t + 1, n] += e * p - f * k + i * u - j * v
                        x_im[t + 1, n] += e * k + f * p + i * v + j * u
                for one in range(t, t + 2):
                    for n in range(width):
                        a, b, c, d = x_re[one, n], x_im[one, n], c_re[one, n], c_im[one, n]
                        x_re[one, n], x_im[one, n] = a * c - b * d, a * d + b * c
            total = zero
            for i in range(0, rows, 2):
                for j in range(0, i + 1, 2):
                    a = b = c = d = e = f = k = w = zero
                    for n in range(width):
                        x, y, u, v = x_re[i, n], x_im[i, n], x_re[i + 1, n], x_im[i + 1, n]
                        p, r = x_re[j, n], x_im[j, n]
                        a += x * p + y * r
                        b += x * r - y * p
                        c += u * p + v * r
                        d += u * r - v * p
                        p, r = x_re[j + 1, n], x_im[j + 1, n]
                        e += x * p + y * r
                        f += x * r - y * p
                        k += u * p + v * r
                        w += u * r - v * p
                    block = a * a + b * b + c * c + d * d + e * e + f * f + k * k + w * w
                    total += block if i == j else 2 * block
            out[s, q] = total
