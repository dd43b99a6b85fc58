r"""The part of the grid statistics that works on one scene at a time, compiled by Numba.

:class:`~rismusic.nn.statistics.GridStatistics` without Numba does the same with batches of matrix products.
Here, a scene stays in the cache of the processor, half of each Hermitian matrix is computed, and real
products :math:`X P` with :math:`P = \langle C \rangle` take the place of complex ones with C: for
:math:`B = X + i Y`,

.. math:: B C B^H = \tfrac12 (S + S^T) + \tfrac i2 (A - A^T), \qquad
    S = X P (X + Y)^T + Y P (Y - X)^T, \quad A = X P (X - Y)^T + Y P (X + Y)^T.
"""

# The compiled functions have no types of their own: Numba derives them from those of the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from rismusic.estimation.fit_kernel import _factor
from rismusic.estimation.kernel_cache import call, compiled

# Rows of real vectors are padded to a multiple of this.
_VECTOR = 8


def whitened_statistics(
    fields: Complex[Tensor, "_ R M D"],
    data: Complex[Tensor, "S R M _"],
    noise_variance: Float[Tensor, "S"],
    packed: Float[Tensor, "S D D"],
) -> tuple[Complex[Tensor, "S L D"], Float[Tensor, "S D D"]]:
    r"""Rows :math:`y_l^H R_l^{-1} B_l`, and :math:`\langle \sum_r B_r^H R_r^{-1} B_r \rangle`.

    ``fields`` are the B_r of each scene, or of all; ``data`` has the y_l of snapshots with the same operator
    as columns.
    """
    S, R, _, repeats = data.shape
    D = packed.shape[-1]
    rows = torch.empty(S, R * repeats, D, dtype=torch.complex64)
    inner = torch.empty(S, D, D)
    arrays = [value.contiguous().numpy() for value in (fields, data, noise_variance, packed)]
    call(_weigh, S, (*arrays, rows.numpy(), inner.numpy()))
    return rows, inner


@compiled
def _products(left, right, out):
    """Products of the rows of two arrays, whose numbers are multiples of 4."""
    N = left.shape[1]
    zero = np.float32(0.0)
    for i in range(0, left.shape[0], 4):
        for j in range(0, right.shape[0], 4):
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
            c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = zero
            for n in range(N):
                w, x, y, z = left[i, n], left[i + 1, n], left[i + 2, n], left[i + 3, n]
                r = right[j, n]
                a0 += w * r
                b0 += x * r
                c0 += y * r
                d0 += z * r
                r = right[j + 1, n]
                a1 += w * r
                b1 += x * r
                c1 += y * r
                d1 += z * r
                r = right[j + 2, n]
                a2 += w * r
                b2 += x * r
                c2 += y * r
                d2 += z * r
                r = right[j + 3, n]
                a3 += w * r
                b3 += x * r
                c3 += y * r
                d3 += z * r
            out[i, j], out[i, j + 1], out[i, j + 2], out[i, j + 3] = a0, a1, a2, a3
            out[i + 1, j], out[i + 1, j + 1], out[i + 1, j + 2], out[i + 1, j + 3] = b0, b1, b2, b3
            out[i + 2, j], out[i + 2, j + 1], out[i + 2, j + 2], out[i + 2, j + 3] = c0, c1, c2, c3
            out[i + 3, j], out[i + 3, j + 1], out[i + 3, j + 2], out[i + 3, j + 3] = d0, d1, d2, d3


@compiled
def _hermitian_products(re, im, out):
    """<Z^H Z> of the columns of Z, which are the rows of the arrays (their number a multiple of 2)."""
    D, N = re.shape
    zero = np.float32(0.0)
    for i in range(0, D, 2):
        for j in range(0, i + 1, 2):
            a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = zero
            for n in range(N):
                x, y, u, v = re[i, n], im[i, n], re[i + 1, n], im[i + 1, n]
                p, q = re[j, n], im[j, n]
                a0 += x * p + y * q
                a1 += x * q - y * p
                c0 += u * p + v * q
                c1 += u * q - v * p
                p, q = re[j + 1, n], im[j + 1, n]
                b0 += x * p + y * q
                b1 += x * q - y * p
                d0 += u * p + v * q
                d1 += u * q - v * p
            out[i, j], out[i, j + 1], out[i + 1, j], out[i + 1, j + 1] = a0 + a1, b0 + b1, c0 + c1, d0 + d1
            out[j, i], out[j + 1, i], out[j, i + 1], out[j + 1, i + 1] = a0 - a1, b0 - b1, c0 - c1, d0 - d1


def _weigh(first, last, fields, data, noise_variance, packed, out_rows, out_inner):
    """See :func:`whitened_statistics`, scenes ``first`` to ``last`` - 1."""
    _, R, M, D = fields.shape
    repeats = data.shape[3]
    width, outputs = (D + _VECTOR - 1) // _VECTOR * _VECTOR, (M + 3) // 4 * 4
    length = (R * M + _VECTOR - 1) // _VECTOR * _VECTOR
    single = np.float32
    # X and Y of one operator, X + Y and Y - X, and their products with P.
    both, turned = np.zeros((2 * outputs, width), single), np.zeros((2 * outputs, width), single)
    through, columns = np.zeros((2 * outputs, width), single), np.zeros((width, width), single)
    sums = np.zeros((2 * outputs, 2 * outputs), single)
    E_re, E_im, failed = np.zeros((M, M, R), single), np.zeros((M, M, R), single), np.zeros(R, np.bool_)
    z_re, z_im = np.zeros((M, width), single), np.zeros((M, width), single)
    Z_re, Z_im, inner = (
        np.zeros((width, length), single),
        np.zeros((width, length), single),
        np.zeros((width, width), single),
    )
    w = np.zeros(M, np.complex64)
    for s in range(first, last):
        f = min(s, fields.shape[0] - 1)
        for i in range(D):
            for j in range(D):
                columns[j, i] = packed[s, i, j]
        for r in range(R):
            for m in range(M):
                for d in range(D):
                    a, b = fields[f, r, m, d].real, fields[f, r, m, d].imag
                    both[m, d], both[outputs + m, d] = a, b
                    turned[m, d], turned[outputs + m, d] = a + b, b - a
            _products(both, columns, through)
            _products(through, turned, sums)
            for i in range(M):
                for j in range(i + 1):
                    # S is X P (X + Y)^T + Y P (Y - X)^T, and A the same of (X - Y)^T and (X + Y)^T.
                    k, n = outputs + i, outputs + j
                    E_re[i, j, r] = (sums[i, j] + sums[k, n] + sums[j, i] + sums[n, k]) / 2
                    E_im[i, j, r] = (sums[k, j] - sums[i, n] - sums[n, i] + sums[j, k]) / 2
                E_re[i, i, r] += noise_variance[s]
        _factor(E_re, E_im, M, failed)
        for r in range(R):
            for m in range(M):
                for d in range(D):
                    z_re[m, d], z_im[m, d] = fields[f, r, m, d].real, fields[f, r, m, d].imag
                whole = m // 2 * 2
                for k in range(0, whole, 2):
                    a, b, c, e = E_re[m, k, r], E_im[m, k, r], E_re[m, k + 1, r], E_im[m, k + 1, r]
                    for d in range(width):
                        x, y, u, v = z_re[k, d], z_im[k, d], z_re[k + 1, d], z_im[k + 1, d]
                        z_re[m, d] -= a * x - b * y + c * u - e * v
                        z_im[m, d] -= a * y + b * x + c * v + e * u
                for k in range(whole, m):
                    a, b = E_re[m, k, r], E_im[m, k, r]
                    for d in range(width):
                        x, y = z_re[k, d], z_im[k, d]
                        z_re[m, d] -= a * x - b * y
                        z_im[m, d] -= a * y + b * x
                inverse = 1 / E_re[m, m, r]
                for d in range(width):
                    z_re[m, d] *= inverse
                    z_im[m, d] *= inverse
                for d in range(D):
                    Z_re[d, r * M + m], Z_im[d, r * M + m] = z_re[m, d], z_im[m, d]
            for t in range(repeats):
                row = out_rows[s, r * repeats + t]
                for d in range(D):
                    row[d] = 0
                for m in range(M):
                    y = data[s, r, m, t]
                    for k in range(m):
                        y -= complex(E_re[m, k, r], E_im[m, k, r]) * w[k]
                    w[m] = y / E_re[m, m, r]
                    a, b = w[m].real, w[m].imag
                    for d in range(D):
                        row[d] += complex(a * z_re[m, d] + b * z_im[m, d], a * z_im[m, d] - b * z_re[m, d])
        _hermitian_products(Z_re, Z_im, inner)
        for i in range(D):
            for j in range(D):
                out_inner[s, i, j] = inner[i, j]
