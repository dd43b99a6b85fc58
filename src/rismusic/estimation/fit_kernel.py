r"""Likelihood fits compiled by Numba: the fits of the torch form on the CPU, several times faster.

:func:`~rismusic.estimation.levenberg_marquardt.levenberg_marquardt` works on a batch of tensors, and each of
its steps takes several hundred small tensor operations. Here, Numba compiles the whole fit of a scene
(steering vectors, sufficient statistics, likelihood, steps) to machine code, in float64. The formulas are
those of :mod:`rismusic.array`, :mod:`rismusic.estimation.likelihood` and
:mod:`rismusic.estimation.levenberg_marquardt`, which remain the reference: the tests compare them. The torch
form also serves GPUs, the models that this file does not cover, and installations without Numba.

A scene is one problem with the sources that are there. Complex arrays are pairs of real ones, and the last
axis of the small matrices counts snapshots, so that loops over it use vector instructions.

With the Cholesky factor E of :math:`S C^H C S + D` (S scales, D completes the diagonal to 1) and
:math:`Z = E^{-1} S C^H X`, all products with the inverse covariance follow from
:math:`X^H W X = (X^H X - Z^H Z) / \sigma^2`.
"""

# The compiled functions have no types of their own: Numba derives them from those of the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
# Overloads have the arguments of what they stand for.
# ruff: noqa: ARG001, ARG005

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Complex, Float, Int64
from numba.extending import overload
from torch import Tensor

from rismusic.array import Panel
from rismusic.devices import memory_budget
from rismusic.errors import InputError
from rismusic.estimation import levenberg_marquardt as lm
from rismusic.estimation import likelihood, maximum_likelihood, search
from rismusic.estimation.grid import Volume
from rismusic.estimation.kernel_cache import SETTINGS, call, compiled
from rismusic.estimation.levenberg_marquardt import FitOptions
from rismusic.io import Recording
from rismusic.operator import Link

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _inlined(function: _Function) -> _Function:
    """A function that is compiled with its callers: each level of calls would be optimised once more."""
    return numba.njit(inspect.unwrap(function), **SETTINGS, inline="always")


# Modes of a fit: positions by the conditional likelihood; positions, powers and noise variance by the
# unconditional one; powers and noise variance at given positions; one position by a spectrum.
CONDITIONAL, UNCONDITIONAL, POWERS, SPECTRUM = 0, 1, 2, 3
# Forms of the wave.
WAVES = ("spherical", "uniform", "fresnel", "paraxial")
_FRESNEL, _PARAXIAL = 2, 3

_TINY = float(np.finfo(np.float64).tiny)
# Limits of positions that do not move.
_NO_BOX = ((0.0,) * 3, (0.0,) * 3)
# Rows of real vectors are padded to a multiple of this.
_VECTOR = 8


# Two parts of pi / 2, the first of 33 bits, and coefficients of fdlibm's sine and cosine up to pi / 4.
_HALF_PI = 1.57079632673412561417, 6.07710050650619224932e-11
_SINE = (
    *(-1.66666666666666324348e-1, 8.33333333332248946124e-3, -1.98412698298579493134e-4),
    *(2.75573137070700676789e-6, -2.50507602534068634195e-8, 1.58969099521155010221e-10),
)
_COSINE = (
    *(4.16666666666666019037e-2, -1.38888888888741095749e-3, 2.48015872894767294178e-5),
    *(-2.75573143513906633035e-7, 2.08757232129817482790e-9, -1.13596475577881948265e-11),
)


def _in_order(function: _Function) -> _Function:
    """A compiled function whose sums keep their order."""
    return numba.njit(inspect.unwrap(function), **{**SETTINGS, "fastmath": {"contract"}})


# Another order would lose the second part of pi / 2.
@_in_order
def _sine_and_cosine(x):
    """Sine and cosine of up to 1e6, in vector instructions; those of the C library take one at a time."""
    n = math.floor(x * (2 / math.pi) + 0.5)
    r = x - n * _HALF_PI[0] - n * _HALF_PI[1]
    z = r * r
    a, b, c, d, e, f = _SINE
    sine = r + r * z * (a + z * (b + z * (c + z * (d + z * (e + z * f)))))
    a, b, c, d, e, f = _COSINE
    cosine = 1 - z / 2 + z * z * (a + z * (b + z * (c + z * (d + z * (e + z * f)))))
    quarter = n - 4 * math.floor(n / 4)
    first, second = (sine, cosine) if quarter == 0 or quarter == 2 else (cosine, sine)
    return -first if quarter >= 2 else first, -second if quarter == 1 or quarter == 2 else second


@compiled
def _waves(panel, position, slopes, source, waves, ray):
    """Steering vector of a source and, if ``slopes``, its derivatives by azimuth, elevation and 1/range.

    See :func:`rismusic.array.steering_with_log_derivatives`.
    """
    elements, wavenumber, wave, exponent = panel
    real, imag = waves
    azimuth, elevation, q = position[3 * source], position[3 * source + 1], position[3 * source + 2]
    sin_az, cos_az, sin_el, cos_el = (
        math.sin(azimuth),
        math.cos(azimuth),
        math.sin(elevation),
        math.cos(elevation),
    )
    ux, uy, uz = sin_az * cos_el, sin_el, cos_az * cos_el
    vx, vz = -sin_az * sin_el, -cos_az * sin_el
    N = elements.shape[1]
    spherical = wave == 0
    shaped = spherical or exponent != 0
    first = (4 if slopes else 1) * source
    for n in range(N):
        x, y, z = elements[0, n], elements[1, n], elements[2, n]
        along, squared = x * ux + y * uy + z * uz, x * x + y * y + z * z
        twice = 2 * along - q * squared
        ratio = math.sqrt(max(1 - q * twice, _TINY))
        exact = twice / (1 + ratio)
        if wave == _FRESNEL:
            difference = along - (squared - along * along) * (q / 2)
        elif wave == _PARAXIAL:
            difference = along - squared * (q / 2)
        else:
            difference = exact
        ray[0, n], ray[1, n], ray[2, n], ray[3, n] = along, squared, ratio, exact
        ray[4, n], ray[5, n] = 1 / ratio if spherical else 1.0, wavenumber * difference
    if exponent != 0:
        for n in range(N):
            ray[4, n] *= (max(uz - q * elements[2, n], 0.0) / ray[2, n]) ** exponent
    energy = 0.0
    for n in range(N):
        energy += ray[4, n] * ray[4, n]
    scale = 1 / max(math.sqrt(energy), _TINY) if shaped else 1 / math.sqrt(N)
    for n in range(N):
        gain = ray[4, n] * scale
        sine, cosine = _sine_and_cosine(ray[5, n])
        real[first, n], imag[first, n] = gain * cosine, gain * sine
    if not slopes:
        return
    mean0, mean1, mean2 = 0.0, 0.0, 0.0
    for n in range(N):
        x, y, z = elements[0, n], elements[1, n], elements[2, n]
        along, squared, ratio, exact = ray[0, n], ray[1, n], ray[2, n], ray[3, n]
        across0, across1 = x * uz - z * ux, x * vx + y * cos_el + z * vz
        if wave == _FRESNEL:
            ray[6, n], ray[7, n] = across0 * (1 + along * q), across1 * (1 + along * q)
            ray[8, n] = (along * along - squared) / 2
        elif wave == _PARAXIAL:
            ray[6, n], ray[7, n] = across0, across1
            ray[8, n] = -squared / 2
        else:
            ray[6, n], ray[7, n] = across0 / ratio, across1 / ratio
            ray[8, n] = (along * exact - squared) / (ratio * (1 + ratio))
        if shaped:
            order = exponent + (1.0 if spherical else 0.0)
            near = order / (ratio * ratio)
            growth0, growth1 = q * across0 * near, q * across1 * near
            growth2 = (along - q * squared) * near
            if exponent != 0:
                depth = uz - q * z
                growth0 += exponent * -ux / depth
                growth1 += exponent * vz / depth
                growth2 -= exponent * z / depth
            weight = ray[4, n] * ray[4, n] / energy
            mean0 += weight * growth0
            mean1 += weight * growth1
            mean2 += weight * growth2
            ray[9, n], ray[10, n], ray[11, n] = growth0, growth1, growth2
    for n in range(N):
        re, im = real[first, n], imag[first, n]
        p0, p1, p2 = wavenumber * ray[6, n], wavenumber * ray[7, n], wavenumber * ray[8, n]
        g0, g1, g2 = 0.0, 0.0, 0.0
        if shaped:
            g0, g1, g2 = ray[9, n] - mean0, ray[10, n] - mean1, ray[11, n] - mean2
        real[first + 1, n], imag[first + 1, n] = g0 * re - p0 * im, g0 * im + p0 * re
        real[first + 2, n], imag[first + 2, n] = g1 * re - p1 * im, g1 * im + p1 * re
        real[first + 3, n], imag[first + 3, n] = g2 * re - p2 * im, g2 * im + p2 * re


@compiled
def _receive(link, subcarrier, waves, K, rows, coded, fields):
    """A subcarrier's fields at the receiver, G_l times the rows of all waves, into ``fields`` [t, column, m].

    Columns are the K fields and behind them the derivatives (source slow).
    """
    channels_re, channels_im, codes_re, codes_im, ratios, factor_re, factor_im = link
    channel_re = channels_re[subcarrier if channels_re.shape[0] > 1 else 0]
    channel_im = channels_im[subcarrier if channels_re.shape[0] > 1 else 0]
    real, imag = waves
    coded_re, coded_im = coded
    out_re, out_im = fields
    _, _, M = out_re.shape
    N, matrices = real.shape[1], out_re.shape[0] // len(ratios)
    zero = coded_re.dtype.type(0)
    for k in range(K):
        for t in range(subcarrier * matrices, (subcarrier + 1) * matrices):
            code = t - subcarrier * matrices if codes_re.shape[0] > 1 else 0
            for row in range(rows):
                r = rows * k + row
                if codes_re.shape[0]:
                    for n in range(N):
                        a, b, c, d = real[r, n], imag[r, n], codes_re[code, n], codes_im[code, n]
                        coded_re[row, n] = a * c - b * d
                        coded_im[row, n] = a * d + b * c
                else:
                    for n in range(N):
                        coded_re[row, n] = real[r, n]
                        coded_im[row, n] = imag[r, n]
            if channel_re.shape[0] == 0:
                for row in range(rows):
                    c = k if row == 0 else K + 3 * k + row - 1
                    for m in range(M):
                        out_re[t, c, m] = coded_re[row, m]
                        out_im[t, c, m] = coded_im[row, m]
            elif rows == 4:
                c = K + 3 * k
                for m in range(0, M, 2):
                    a0r = a0i = a1r = a1i = a2r = a2i = a3r = a3i = zero
                    b0r = b0i = b1r = b1i = b2r = b2i = b3r = b3i = zero
                    for n in range(N):
                        hr, hi, gr, gi = (
                            channel_re[m, n],
                            channel_im[m, n],
                            channel_re[m + 1, n],
                            channel_im[m + 1, n],
                        )
                        xr, xi = coded_re[0, n], coded_im[0, n]
                        a0r += hr * xr - hi * xi
                        a0i += hr * xi + hi * xr
                        b0r += gr * xr - gi * xi
                        b0i += gr * xi + gi * xr
                        xr, xi = coded_re[1, n], coded_im[1, n]
                        a1r += hr * xr - hi * xi
                        a1i += hr * xi + hi * xr
                        b1r += gr * xr - gi * xi
                        b1i += gr * xi + gi * xr
                        xr, xi = coded_re[2, n], coded_im[2, n]
                        a2r += hr * xr - hi * xi
                        a2i += hr * xi + hi * xr
                        b2r += gr * xr - gi * xi
                        b2i += gr * xi + gi * xr
                        xr, xi = coded_re[3, n], coded_im[3, n]
                        a3r += hr * xr - hi * xi
                        a3i += hr * xi + hi * xr
                        b3r += gr * xr - gi * xi
                        b3i += gr * xi + gi * xr
                    out_re[t, k, m], out_im[t, k, m] = a0r, a0i
                    out_re[t, c, m], out_im[t, c, m] = a1r, a1i
                    out_re[t, c + 1, m], out_im[t, c + 1, m] = a2r, a2i
                    out_re[t, c + 2, m], out_im[t, c + 2, m] = a3r, a3i
                    out_re[t, k, m + 1], out_im[t, k, m + 1] = b0r, b0i
                    out_re[t, c, m + 1], out_im[t, c, m + 1] = b1r, b1i
                    out_re[t, c + 1, m + 1], out_im[t, c + 1, m + 1] = b2r, b2i
                    out_re[t, c + 2, m + 1], out_im[t, c + 2, m + 1] = b3r, b3i
            else:
                for m in range(0, M, 2):
                    a0r = a0i = b0r = b0i = zero
                    for n in range(N):
                        hr, hi, gr, gi = (
                            channel_re[m, n],
                            channel_im[m, n],
                            channel_re[m + 1, n],
                            channel_im[m + 1, n],
                        )
                        xr, xi = coded_re[0, n], coded_im[0, n]
                        a0r += hr * xr - hi * xi
                        a0i += hr * xi + hi * xr
                        b0r += gr * xr - gi * xi
                        b0i += gr * xi + gi * xr
                    out_re[t, k, m], out_im[t, k, m] = a0r, a0i
                    out_re[t, k, m + 1], out_im[t, k, m + 1] = b0r, b0i
            if factor_re.shape[0]:
                # Weights of the outputs, or pilots of the source.
                i, j = min(t, factor_re.shape[0] - 1), min(k, factor_re.shape[1] - 1)
                for row in range(rows):
                    c = k if row == 0 else K + 3 * k + row - 1
                    for m in range(M):
                        a, b = out_re[t, c, m], out_im[t, c, m]
                        out_re[t, c, m] = a * factor_re[i, j, m] - b * factor_im[i, j, m]
                        out_im[t, c, m] = a * factor_im[i, j, m] + b * factor_re[i, j, m]


@compiled
def _inner_products(fields, data, C, gram, cross):
    """Gram matrices [i, j, t] (j <= i, and the K x K block whole) and products with the data [i, t]."""
    re, im = fields
    y_re, y_im = data
    gram_re, gram_im = gram
    cross_re, cross_im = cross
    matrices, _, M = re.shape
    L = y_re.shape[0]
    for t in range(matrices):
        for i in range(C):
            for j in range(i + 1):
                a = b = 0.0
                for m in range(M):
                    a += re[t, i, m] * re[t, j, m] + im[t, i, m] * im[t, j, m]
                    b += re[t, i, m] * im[t, j, m] - im[t, i, m] * re[t, j, m]
                gram_re[i, j, t], gram_im[i, j, t] = a, b
                gram_re[j, i, t], gram_im[j, i, t] = a, -b
    for t in range(L):
        f = t if matrices > 1 else 0
        for i in range(C):
            a = b = 0.0
            for m in range(M):
                a += re[f, i, m] * y_re[t, m] + im[f, i, m] * y_im[t, m]
                b += re[f, i, m] * y_im[t, m] - im[f, i, m] * y_re[t, m]
            cross_re[i, t], cross_im[i, t] = a, b


@compiled
def _fields(x, K, slopes, system, scratch):
    """Fields at the receiver of sources at the positions that head ``x``."""
    (elements, wavenumber, wave, exponent), link, _ = system
    waves, ray, coded, fields = scratch
    for subcarrier, ratio in enumerate(link[4]):
        panel = (elements, wavenumber * ratio, wave, exponent)
        for k in range(K):
            _waves(panel, x, slopes, k, waves, ray)
        _receive(link, subcarrier, waves, K, 4 if slopes else 1, coded, fields)


@_inlined
def _statistics(x, K, slopes, system, scratch, stats):
    """Sufficient statistics at the positions that head ``x``."""
    _fields(x, K, slopes, system, scratch)
    _inner_products(scratch[3], system[2], K * (4 if slopes else 1), stats[0], stats[1])


@compiled
def _factor(A_re, A_im, K, failed):
    """Cholesky factors of Hermitian matrices [K, K, t] in place (lower triangle); flags those without one."""
    matrices = A_re.shape[2]
    for j in range(K):
        for k in range(j):
            for t in range(matrices):
                A_re[j, j, t] -= A_re[j, k, t] * A_re[j, k, t] + A_im[j, k, t] * A_im[j, k, t]
        for t in range(matrices):
            pivot = A_re[j, j, t]
            if not pivot > 0:
                failed[t] = True
            A_re[j, j, t] = math.sqrt(pivot)
            A_im[j, j, t] = 0.0
        for i in range(j + 1, K):
            for k in range(j):
                for t in range(matrices):
                    a, b, c, d = A_re[i, k, t], A_im[i, k, t], A_re[j, k, t], A_im[j, k, t]
                    A_re[i, j, t] -= a * c + b * d
                    A_im[i, j, t] -= b * c - a * d
            for t in range(matrices):
                inverse = 1 / A_re[j, j, t]
                A_re[i, j, t] *= inverse
                A_im[i, j, t] *= inverse


@compiled
def _forward(E_re, E_im, K, first, B_re, B_im, column):
    """Solve E b = b in place for one column [K, t], whose entries before ``first`` are zero."""
    matrices = E_re.shape[2]
    for i in range(first, K):
        for j in range(first, i):
            for t in range(matrices):
                a, b, c, d = E_re[i, j, t], E_im[i, j, t], B_re[j, column, t], B_im[j, column, t]
                B_re[i, column, t] -= a * c - b * d
                B_im[i, column, t] -= a * d + b * c
        for t in range(matrices):
            inverse = 1 / E_re[i, i, t]
            B_re[i, column, t] *= inverse
            B_im[i, column, t] *= inverse


@compiled
def _least_squares(K, limits, stats, work, symbols):
    """Least-squares symbols [K, t] and the energy that they leave; E and the scales stay in ``work``."""
    (gram_re, gram_im), (cross_re, cross_im), energy = stats
    (E_re, E_im), scale, _, _, _, _, failed = work
    s_re, s_im = symbols[0], symbols[1]
    matrices, L = gram_re.shape[2], energy.shape[0]
    for k in range(K):
        for t in range(matrices):
            norm = gram_re[k, k, t]
            scale[k, t] = 1 / math.sqrt(norm) if norm > 0 else 0.0
    for i in range(K):
        for j in range(i + 1):
            for t in range(matrices):
                both = scale[i, t] * scale[j, t]
                E_re[i, j, t], E_im[i, j, t] = both * gram_re[i, j, t], both * gram_im[i, j, t]
        for t in range(matrices):
            E_re[i, i, t] += limits[0] if scale[i, t] > 0 else 1.0
    _factor(E_re, E_im, K, failed)
    total = explained = 0.0
    for t in range(L):
        f = t if matrices > 1 else 0
        for i in range(K):
            a, b = scale[i, f] * cross_re[i, t], scale[i, f] * cross_im[i, t]
            for j in range(i):
                a -= E_re[i, j, f] * s_re[j, t] - E_im[i, j, f] * s_im[j, t]
                b -= E_re[i, j, f] * s_im[j, t] + E_im[i, j, f] * s_re[j, t]
            s_re[i, t], s_im[i, t] = a / E_re[i, i, f], b / E_re[i, i, f]
        for i in range(K - 1, -1, -1):
            a, b = s_re[i, t], s_im[i, t]
            for j in range(i + 1, K):
                a -= E_re[j, i, f] * s_re[j, t] + E_im[j, i, f] * s_im[j, t]
                b -= E_re[j, i, f] * s_im[j, t] - E_im[j, i, f] * s_re[j, t]
            s_re[i, t], s_im[i, t] = a / E_re[i, i, f], b / E_re[i, i, f]
        for i in range(K):
            s_re[i, t] *= scale[i, f]
            s_im[i, t] *= scale[i, f]
            explained += cross_re[i, t] * s_re[i, t] + cross_im[i, t] * s_im[i, t]
        total += energy[t]
    return max(max(total - explained, total * 1e-15), limits[1])


@compiled
def _conditional(K, M, limits, stats, work, symbols, gradient, F):
    """See :func:`rismusic.estimation.likelihood.conditional`."""
    (gram_re, gram_im), (cross_re, cross_im), energy = stats
    (E_re, E_im), scale, (Z_re, Z_im), (F_re, F_im), _, _, _ = work
    s_re, s_im = symbols[0], symbols[1]
    matrices, L = gram_re.shape[2], energy.shape[0]
    cost = _least_squares(K, limits, stats, work, symbols)
    size = L * M
    factor = size / cost
    for i in range(K, 4 * K):
        own = (i - K) // 3
        total = 0.0
        for t in range(L):
            f = t if matrices > 1 else 0
            a, b = cross_re[i, t], cross_im[i, t]
            for k in range(K):
                a -= gram_re[i, k, f] * s_re[k, t] - gram_im[i, k, f] * s_im[k, t]
                b -= gram_re[i, k, f] * s_im[k, t] + gram_im[i, k, f] * s_re[k, t]
            total += s_re[own, t] * a + s_im[own, t] * b
        gradient[i - K] = -2 * total * factor
        for k in range(K):
            for t in range(matrices):
                Z_re[k, i, t], Z_im[k, i, t] = scale[k, t] * gram_re[k, i, t], scale[k, t] * gram_im[k, i, t]
        _forward(E_re, E_im, K, 0, Z_re, Z_im, i)
    for i in range(K, 4 * K):
        own = (i - K) // 3
        for j in range(K, i + 1):
            for t in range(matrices):
                F_re[i, j, t], F_im[i, j, t] = gram_re[i, j, t], gram_im[i, j, t]
            for k in range(K):
                for t in range(matrices):
                    a, b, c, d = Z_re[k, i, t], Z_im[k, i, t], Z_re[k, j, t], Z_im[k, j, t]
                    F_re[i, j, t] -= a * c + b * d
                    F_im[i, j, t] -= a * d - b * c
            other = (j - K) // 3
            total = 0.0
            for t in range(L):
                f = t if matrices > 1 else 0
                a = s_re[own, t] * s_re[other, t] + s_im[own, t] * s_im[other, t]
                b = s_re[own, t] * s_im[other, t] - s_im[own, t] * s_re[other, t]
                total += F_re[i, j, f] * a - F_im[i, j, f] * b
            F[i - K, j - K] = F[j - K, i - K] = 2 * total * factor
    return size * math.log(cost)


@compiled
def _unconditional(K, slopes, M, power, sigma2, ridge, stats, work, symbols, gradient, J):
    """See :func:`rismusic.estimation.likelihood.unconditional`; NaN where a factor fails."""
    (gram_re, gram_im), (cross_re, cross_im), energy = stats
    (E_re, E_im), scale, (Z_re, Z_im), (F_re, F_im), (V_re, V_im), (Q_re, Q_im), failed = work
    u_re, u_im, v_re, v_im = symbols
    matrices, L = gram_re.shape[2], energy.shape[0]
    C, coordinates = (4 * K, 3 * K) if slopes else (K, 0)
    repeats = L if matrices == 1 else 1
    size = L * M
    # E of the inner matrix with a unit diagonal, and V = E^-1 S.
    for i in range(K):
        for t in range(matrices):
            failed[t] = False
            scale[i, t] = 1 / math.sqrt(power[i] / sigma2 * gram_re[i, i, t] + 1)
    determinant = 0.0
    for i in range(K):
        for j in range(i + 1):
            root = math.sqrt(power[i] / sigma2) * math.sqrt(power[j] / sigma2)
            for t in range(matrices):
                both = root * scale[i, t] * scale[j, t]
                E_re[i, j, t], E_im[i, j, t] = both * gram_re[i, j, t], both * gram_im[i, j, t]
        for t in range(matrices):
            E_re[i, i, t] += scale[i, t] * scale[i, t] + ridge
    _factor(E_re, E_im, K, failed)
    for t in range(matrices):
        if failed[t]:
            determinant = math.nan
    for i in range(K):
        root = math.sqrt(power[i] / sigma2)
        for t in range(matrices):
            determinant += 2 * math.log(E_re[i, i, t] / scale[i, t])
            scale[i, t] *= root
    for i in range(K):
        for k in range(K):
            for t in range(matrices):
                V_re[k, i, t], V_im[k, i, t] = scale[k, t] if k == i else 0.0, 0.0
        _forward(E_re, E_im, K, i, V_re, V_im, i)
    # Z = E^-1 S C^H X and F = X^H X - Z^H Z, the lower triangle and the K x K block.
    for i in range(C):
        for k in range(K):
            for t in range(matrices):
                Z_re[k, i, t], Z_im[k, i, t] = scale[k, t] * gram_re[k, i, t], scale[k, t] * gram_im[k, i, t]
        _forward(E_re, E_im, K, 0, Z_re, Z_im, i)
    for i in range(C):
        for j in range(i + 1):
            for t in range(matrices):
                F_re[i, j, t], F_im[i, j, t] = gram_re[i, j, t], gram_im[i, j, t]
            for k in range(K):
                for t in range(matrices):
                    a, b, c, d = Z_re[k, i, t], Z_im[k, i, t], Z_re[k, j, t], Z_im[k, j, t]
                    F_re[i, j, t] -= a * c + b * d
                    F_im[i, j, t] -= a * d - b * c
            if i < K:
                for t in range(matrices):
                    F_re[j, i, t], F_im[j, i, t] = F_re[i, j, t], -F_im[i, j, t]
    # Q = E^-1 S C^H W C, for products with W W.
    for i in range(K):
        for k in range(K):
            for t in range(matrices):
                Q_re[k, i, t], Q_im[k, i, t] = scale[k, t] * F_re[k, i, t], scale[k, t] * F_im[k, i, t]
        _forward(E_re, E_im, K, 0, Q_re, Q_im, i)
    # Traces of W and W W from those of C T C^H.
    one = two = 0.0
    for i in range(K):
        for j in range(K):
            for t in range(matrices):
                a = b = c = d = 0.0
                for k in range(K):
                    a += Z_re[k, i, t] * V_re[k, j, t] + Z_im[k, i, t] * V_im[k, j, t]
                    b += Z_re[k, i, t] * V_im[k, j, t] - Z_im[k, i, t] * V_re[k, j, t]
                    c += Z_re[k, j, t] * V_re[k, i, t] + Z_im[k, j, t] * V_im[k, i, t]
                    d += Z_re[k, j, t] * V_im[k, i, t] - Z_im[k, j, t] * V_re[k, i, t]
                two += a * c - b * d
                if i == j:
                    one += a
    trace = (M * matrices - one) * repeats / sigma2
    trace2 = (M * matrices - 2 * one + two) * repeats
    # Snapshots: u = E^-1 S C^H y.
    for t in range(L):
        f = t if matrices > 1 else 0
        for i in range(K):
            a = b = 0.0
            for k in range(i + 1):
                a += V_re[i, k, f] * cross_re[k, t] - V_im[i, k, f] * cross_im[k, t]
                b += V_re[i, k, f] * cross_im[k, t] + V_im[i, k, f] * cross_re[k, t]
            u_re[i, t], u_im[i, t] = a, b
    rest = energy2 = 0.0
    for t in range(L):
        rest += energy[t]
        energy2 += energy[t]
    explained = 0.0
    for i in range(K):
        for t in range(L):
            explained += u_re[i, t] * u_re[i, t] + u_im[i, t] * u_im[i, t]
    rest -= explained
    again = 0.0
    # v = X^H W y; those of the fields first, which the derivatives meet.
    for i in range(C):
        own = i if i < K else (i - K) // 3
        pull = 0.0
        for t in range(L):
            f = t if matrices > 1 else 0
            a = b = 0.0
            for k in range(K):
                a += Z_re[k, i, f] * u_re[k, t] + Z_im[k, i, f] * u_im[k, t]
                b += Z_re[k, i, f] * u_im[k, t] - Z_im[k, i, f] * u_re[k, t]
            if i < K:
                # weights^H C^H C weights, of weights = V^H u.
                c = d = 0.0
                for k in range(i, K):
                    c += V_re[k, i, f] * u_re[k, t] + V_im[k, i, f] * u_im[k, t]
                    d += V_re[k, i, f] * u_im[k, t] - V_im[k, i, f] * u_re[k, t]
                again += c * a + d * b
            a, b = cross_re[i, t] - a, cross_im[i, t] - b
            if i < K:
                v_re[i, t], v_im[i, t] = a, b
            pull += a * v_re[own, t] + b * v_im[own, t]
        unknown = i - K if i >= K else coordinates + i
        weight = power[own] if i >= K else power[own] / 2
        fyx = fyx2 = 0.0
        for t in range(matrices):
            fyx += F_re[i, own, t]
            fyx2 += F_re[i, own, t]
        for k in range(K):
            for t in range(matrices):
                fyx2 -= Z_re[k, i, t] * Q_re[k, own, t] + Z_im[k, i, t] * Q_im[k, own, t]
        gradient[unknown] = 2 * weight * (repeats * fyx / sigma2 - pull / (sigma2 * sigma2))
        J[unknown, C] = J[C, unknown] = 2 * repeats * fyx2 * weight / sigma2
        for j in range(i + 1):
            other = j if j < K else (j - K) // 3
            both = 0.0
            for t in range(matrices):
                both += F_re[i, other, t] * F_re[j, own, t] - F_im[i, other, t] * F_im[j, own, t]
                both += F_re[i, j, t] * F_re[own, other, t] + F_im[i, j, t] * F_im[own, other, t]
            beside = j - K if j >= K else coordinates + j
            both *= (
                2 * repeats * (weight / sigma2) * ((power[other] if j >= K else power[other] / 2) / sigma2)
            )
            J[unknown, beside] = J[beside, unknown] = both
    energy2 += again - 2 * explained
    gradient[C] = sigma2 * trace - energy2 / sigma2
    J[C, C] = trace2
    return determinant * repeats + size * math.log(sigma2) + rest / sigma2


@compiled
def _solve(B, gradient, scale, damping, U, factor, step):
    """The damped step over the free unknowns (those with a scale), 0 for the others; whether it failed."""
    for i in range(U):
        for j in range(i + 1):
            factor[i, j] = B[i, j] * scale[i] * scale[j]
        factor[i, i] += damping if scale[i] > 0 else 1.0
        for j in range(i + 1):
            total = factor[i, j]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i > j:
                factor[i, j] = total / factor[j, j]
            elif not total > 0:
                for k in range(U):
                    step[k] = 0.0
                return True
            else:
                factor[i, i] = math.sqrt(total)
    for i in range(U):
        total = scale[i] * gradient[i]
        for k in range(i):
            total -= factor[i, k] * step[k]
        step[i] = total / factor[i, i]
    for i in range(U - 1, -1, -1):
        total = step[i]
        for k in range(i + 1, U):
            total -= factor[k, i] * step[k]
        step[i] = total / factor[i, i]
    for i in range(U):
        step[i] *= -scale[i]
    return False


@compiled
def _evaluate_likelihood(mode, x, K, M, limits, system, scratch, stats, work, symbols, gradient, F):
    """Value, gradient and curvature of a likelihood."""
    if mode != POWERS:
        _statistics(x, K, True, system, scratch, stats)
    if mode == CONDITIONAL:
        return _conditional(K, M, limits, stats, work, symbols, gradient, F)
    first = 3 * K if mode == UNCONDITIONAL else 0
    power = np.empty(K)
    for k in range(K):
        power[k] = math.exp(x[first + k])
    noise = math.exp(x[first + K])
    return _unconditional(K, first > 0, M, power, noise, limits[0], stats, work, symbols, gradient, F)


@compiled
def _evaluate_spectrum(x, panel, vectors, waves, ray, gradient, F):
    """See :func:`rismusic.estimation.spectra._model`."""
    V_re, V_im = vectors  # [C, N]
    re, im = waves  # the steering vector and its three derivatives
    C, N = V_re.shape
    _waves(panel, x, True, 0, waves, ray)
    inner_re, inner_im = np.zeros((4, C)), np.zeros((4, C))
    f = 0.0
    for i in range(4):
        for c in range(C):
            a = b = 0.0
            for n in range(N):
                a += V_re[c, n] * re[i, n] + V_im[c, n] * im[i, n]
                b += V_re[c, n] * im[i, n] - V_im[c, n] * re[i, n]
            inner_re[i, c], inner_im[i, c] = a, b
    for c in range(C):
        f += inner_re[0, c] ** 2 + inner_im[0, c] ** 2
    # Re(a^* V V^H a) / |a|^2 of each element, which the log derivatives are weighted with.
    weight = np.zeros(N)
    for c in range(C):
        a, b = inner_re[0, c], inner_im[0, c]
        for n in range(N):
            weight[n] += re[0, n] * (V_re[c, n] * a - V_im[c, n] * b)
            weight[n] += im[0, n] * (V_re[c, n] * b + V_im[c, n] * a)
    for n in range(N):
        level = re[0, n] ** 2 + im[0, n] ** 2
        weight[n] = weight[n] / level if level > 0 else 0.0
    alone, scale, step = np.empty((3, 3)), np.empty(3), np.empty(3)
    for i in range(3):
        gradient[i] = 0.0
        for c in range(C):
            gradient[i] -= 2 * (inner_re[1 + i, c] * inner_re[0, c] + inner_im[1 + i, c] * inner_im[0, c])
        for j in range(3):
            bent = flat = a = b = c_re = c_im = 0.0
            for n in range(N):
                both = re[1 + i, n] * re[1 + j, n] + im[1 + i, n] * im[1 + j, n]
                bent += both * weight[n]
                flat += both
                a += re[0, n] * re[1 + i, n] + im[0, n] * im[1 + i, n]
                b += re[0, n] * im[1 + i, n] - im[0, n] * re[1 + i, n]
                c_re += re[0, n] * re[1 + j, n] + im[0, n] * im[1 + j, n]
                c_im += re[0, n] * im[1 + j, n] - im[0, n] * re[1 + j, n]
            for c in range(C):
                bent -= inner_re[1 + i, c] * inner_re[1 + j, c] + inner_im[1 + i, c] * inner_im[1 + j, c]
            F[i, j], alone[i, j] = 2 * bent, 2 * f * (flat - a * c_re - b * c_im)
    for i in range(3):
        scale[i] = 1 / math.sqrt(max(alone[i, i], _TINY))
    if _solve(F, gradient, scale, 0.0, 3, np.empty((3, 3)), step):
        for i in range(3):
            for j in range(3):
                F[i, j] = alone[i, j]
    return -f


def _evaluate(mode, x, K, M, limits, system, scratch, stats, work, symbols, gradient, F):
    """Value, gradient and curvature of a likelihood, or of a spectrum, by the type of ``system``."""
    raise NotImplementedError


@overload(_evaluate, jit_options=SETTINGS)
def _evaluate_by_type(mode, x, K, M, limits, system, scratch, stats, work, symbols, gradient, F):
    if len(system) == 3:
        return lambda mode, x, K, M, limits, system, scratch, stats, work, symbols, gradient, F: (
            _evaluate_likelihood(mode, x, K, M, limits, system, scratch, stats, work, symbols, gradient, F)
        )
    return lambda mode, x, K, M, limits, system, scratch, stats, work, symbols, gradient, F: (
        _evaluate_spectrum(x, system[0], system[1], scratch[0], scratch[1], gradient, F)
    )


@_inlined
def _minimise(mode, x, lower, upper, steps, tolerance, K, M, rules, system, scratch, stats, work, symbols):
    """See :func:`rismusic.estimation.levenberg_marquardt.levenberg_marquardt`; ``x`` moves in place."""
    control, limits = rules
    first_damping, least_damping, most_damping, no_damping, least_curvature, ridge = control[:6]
    memory, rough_tolerance, rounding, nearby = control[6:]
    U = 3 * K + (K + 1 if mode == UNCONDITIONAL else 0) if mode != POWERS else K + 1
    # Two of each: at the current point and at the trial.
    gradients, curvatures = np.empty((2, U)), np.empty((2, U, U))
    scales, newtons, decrements, values = np.empty((2, U)), np.empty((2, U)), np.empty(2), np.empty(2)
    F, factor, spare = np.empty((U, U)), np.empty((U, U)), np.empty(U)
    moves, changes = np.zeros((memory, U)), np.zeros((memory, U))
    trial, step = np.empty(U), np.zeros(U)
    for i in range(U):
        x[i] = min(max(x[i], lower[i]), upper[i])
    remembered, now, damping = 0, 0, first_damping
    rough = tolerance >= rough_tolerance
    for evaluation in range(steps + 1):
        # Evaluation 0 is the one at the start.
        new = 1 - now if evaluation else now
        for i in range(U):
            trial[i] = min(max(x[i] + step[i], lower[i]), upper[i])
            step[i] = trial[i] - x[i]
        foreseen = 0.0
        if evaluation:
            for i in range(U):
                slope = gradients[now, i]
                for j in range(U):
                    slope += curvatures[now, i, j] * step[j] / 2
                foreseen -= slope * step[i]
        gradient, B, scale, newton = gradients[new], curvatures[new], scales[new], newtons[new]
        values[new] = _evaluate(mode, trial, K, M, limits, system, scratch, stats, work, symbols, gradient, F)
        if evaluation and not rough:
            if remembered == memory:
                for h in range(memory - 1):
                    for i in range(U):
                        moves[h, i], changes[h, i] = moves[h + 1, i], changes[h + 1, i]
            else:
                remembered += 1
            for i in range(U):
                moves[remembered - 1, i] = step[i]
                changes[remembered - 1, i] = gradient[i] - gradients[now, i]
        # Curvature B with its updates.
        for i in range(U):
            for j in range(U):
                B[i, j] = F[i, j]
        for h in range(remembered):
            sBs = ys = 0.0
            for i in range(U):
                total = 0.0
                for j in range(U):
                    total += B[i, j] * moves[h, j]
                spare[i] = total
                sBs += moves[h, i] * total
                ys += changes[h, i] * moves[h, i]
            if sBs > 0 and ys > least_curvature * sBs:
                for i in range(U):
                    for j in range(U):
                        B[i, j] += changes[h, i] * changes[h, j] / ys - spare[i] * spare[j] / sBs
        # The undamped step over the free unknowns, and its decrement.
        for i in range(U):
            held = (trial[i] <= lower[i] and gradient[i] >= 0) or (trial[i] >= upper[i] and gradient[i] <= 0)
            scale[i] = 1 / math.sqrt(max(B[i, i], _TINY)) if not held and B[i, i] > 0 else 0.0
        if _solve(B, gradient, scale, ridge, U, factor, newton):
            decrements[new] = math.inf
        else:
            square = 0.0
            for i in range(U):
                for j in range(U):
                    square += newton[i] * F[i, j] * newton[j]
            decrements[new] = math.sqrt(max(square, 0.0))
        if remembered and decrements[new] <= tolerance:
            # A curvature met far from here may make B too large, and its decrement too small.
            _solve(F, gradient, scale, ridge, U, factor, spare)
            square = 0.0
            for i in range(U):
                square -= gradient[i] * spare[i]
            decrements[new] = max(decrements[new], math.sqrt(max(square, 0.0)))
        if evaluation:
            gain = values[now] - values[new]
            near = decrements[now] <= nearby * tolerance and decrements[new] < decrements[now]
            near = near and gain > -rounding * (1 + abs(values[now]))
            better = gain > 0 or near  # false for NaN
            if near or (better and gain > 0.5 * foreseen):
                damping /= 8
            elif not better:
                damping *= 6
            damping = max(damping, least_damping)
            if better:
                now = new
                for i in range(U):
                    x[i] = trial[i]
            elif remembered:
                # A refused step tells of a place where the minimum is not.
                for i in range(U):
                    moves[remembered - 1, i] = 0.0
        if decrements[now] <= tolerance:
            # The last step counts as taken where the box does not cut it. After a rough fit it would be a
            # long one.
            inside, gain = True, 0.0
            for i in range(U):
                step[i] = 0.0 if rough else newtons[now, i]
                inside = inside and x[i] + step[i] >= lower[i] and x[i] + step[i] <= upper[i]
                gain -= gradients[now, i] * step[i] / 2
            if inside:
                for i in range(U):
                    x[i] += step[i]
                return values[now] - gain, True
        if damping > most_damping:
            break
        if damping < no_damping:
            for i in range(U):
                step[i] = newtons[now, i]
        else:
            _solve(curvatures[now], gradients[now], scales[now], damping, U, factor, step)
    return values[now], False


@_inlined
def _power_noise_limits(K, M, noise, limits, stats, work, symbols, start, lower, upper):
    """See :func:`rismusic.estimation.maximum_likelihood.power_noise_limits`. Returns the total energy."""
    gram_re, energies = stats[0][0], stats[2]
    matrices, L = gram_re.shape[2], energies.shape[0]
    total = 0.0
    for t in range(L):
        total += energies[t]
    energy = total / L if total > 0 else 1.0
    cost = _least_squares(K, limits, stats, work, symbols)
    for k in range(K):
        norm = power = 0.0
        for t in range(matrices):
            norm += gram_re[k, k, t]
        for t in range(L):
            power += symbols[0][k, t] ** 2 + symbols[1][k, t] ** 2
        norm, power = norm / matrices, power / L
        most = energy / norm if norm > 0 else energy
        lower[k], upper[k] = math.log(most * limits[2]), math.log(most * limits[3])
        start[k] = math.log(min(max(power, limits[2] * most), most))
    if noise > 0:
        start[K] = lower[K] = upper[K] = math.log(noise)
    else:
        least, most = energy / M * limits[4], energy / M * limits[5]
        lower[K], upper[K] = math.log(least), math.log(most)
        start[K] = math.log(min(max(cost / max(1, L * (M - K)), least), most))
    return total


@_inlined
def _prepare(recording, panel_form, s, which, C):
    """Panel, link and data of a scene as real arrays, work arrays for C fields, and the energies |y_l|^2.

    ``which`` are the places of the problem's sources.
    """
    snapshots, channels, codes, elements, _, unit, ratios, factors, matrices = recording
    L, M, N = snapshots.shape[1], snapshots.shape[2], elements.shape[1]
    # Real rows are padded with zeros to whole vectors, outputs to an even number.
    width, outputs = (N + _VECTOR - 1) // _VECTOR * _VECTOR, M + M % 2
    h = min(s, channels.shape[0] - 1)
    channel_re = np.zeros((max(channels.shape[1], 1), outputs if channels.shape[0] else 0, width), unit.dtype)
    channel_im = np.zeros_like(channel_re)
    for f in range(channel_re.shape[0]):
        for m in range(M if channels.shape[0] else 0):
            for n in range(N):
                channel_re[f, m, n] = channels[h, f, m, n].real
                channel_im[f, m, n] = channels[h, f, m, n].imag
    h = min(s, codes.shape[0] - 1)
    codes_re = np.zeros((codes.shape[1], width), unit.dtype)
    codes_im = np.zeros_like(codes_re)
    for t in range(codes_re.shape[0]):
        for n in range(N):
            codes_re[t, n], codes_im[t, n] = codes[h, t, n].real, codes[h, t, n].imag
    h = min(s, factors.shape[0] - 1)
    each = min(len(which), factors.shape[2])
    factor_re = np.zeros((factors.shape[1], each, outputs))
    factor_im = np.zeros_like(factor_re)
    for t in range(factors.shape[1]):
        for k in range(each):
            own = which[k] if factors.shape[2] > 1 else 0
            for m in range(M):
                factor_re[t, k, m] = factors[h, t, own, m].real
                factor_im[t, k, m] = factors[h, t, own, m].imag
    energy, y_re, y_im = np.zeros(L), np.zeros((L, outputs)), np.zeros((L, outputs))
    for t in range(L):
        for m in range(M):
            y_re[t, m], y_im[t, m] = snapshots[s, t, m].real, snapshots[s, t, m].imag
            energy[t] += y_re[t, m] ** 2 + y_im[t, m] ** 2
    h = min(s, elements.shape[0] - 1)
    places = np.empty((3, N))
    for n in range(N):
        for i in range(3):
            places[i, n] = elements[h, n, i]
    system = (
        (places, panel_form[0], panel_form[1], panel_form[2]),
        (channel_re, channel_im, codes_re, codes_im, ratios, factor_re, factor_im),
        (y_re, y_im),
    )
    scratch = (
        (np.zeros((C, width), unit.dtype), np.zeros((C, width), unit.dtype)),
        np.empty((12, N)),
        (np.zeros((4, width), unit.dtype), np.zeros((4, width), unit.dtype)),
        (np.zeros((matrices, C, outputs)), np.zeros((matrices, C, outputs))),
    )
    return system, scratch, energy


@_inlined
def _present(active):
    """Places of the sources of a problem."""
    which = np.empty(active.sum(), np.int64)
    K = 0
    for k in range(len(active)):
        if active[k]:
            which[K] = k
            K += 1
    return which


@_inlined
def _workspace(K, C, matrices, energy):
    """Arrays for the sufficient statistics of C fields of K sources, for their products and for symbols."""
    L = len(energy)
    stats = (
        (np.empty((C, C, matrices)), np.empty((C, C, matrices))),
        (np.empty((C, L)), np.empty((C, L))),
        energy,
    )
    work = (
        (np.empty((K, K, matrices)), np.empty((K, K, matrices))),
        np.empty((K, matrices)),
        (np.empty((K, C, matrices)), np.empty((K, C, matrices))),
        (np.empty((C, C, matrices)), np.empty((C, C, matrices))),
        (np.empty((K, K, matrices)), np.empty((K, K, matrices))),
        (np.empty((K, K, matrices)), np.empty((K, K, matrices))),
        np.zeros(matrices, np.bool_),
    )
    return stats, work, (np.empty((K, L)), np.empty((K, L)), np.empty((K, L)), np.empty((K, L)))


def _fit(first, last, mode, recording, panel_form, problems, box, rules, options, initial, out):
    """Fit the problems ``first`` to ``last`` - 1; see :func:`fit`."""
    snapshots, noise_variance, matrices = recording[0], recording[4], recording[8]
    scenes, positions, active = problems
    limits = rules[1]
    steps, tolerance, power_steps, power_tolerance = options
    start_power, start_noise = initial
    out_positions, out_power, out_noise, out_value, out_converged = out
    M = snapshots.shape[2]
    for p in range(first, last):
        s, which = scenes[p], _present(active[p])
        K = len(which)
        C = K if mode == POWERS else 4 * K
        system, scratch, energy = _prepare(recording, panel_form, s, which, C)
        stats, work, symbols = _workspace(K, C, matrices, energy)
        coordinates = 3 * K
        x, lower, upper = np.empty(4 * K + 1), np.empty(4 * K + 1), np.empty(4 * K + 1)
        for k in range(K):
            for i in range(3):
                x[3 * k + i] = positions[p, which[k], i]
                lower[3 * k + i], upper[3 * k + i] = box[0, i], box[1, i]
                if mode != POWERS:
                    x[3 * k + i] = min(max(x[3 * k + i], box[0, i]), box[1, i])
        value, converged, total = 0.0, True, 1.0
        if mode != CONDITIONAL:
            _statistics(x, K, False, system, scratch, stats)
            noise = noise_variance[s] if noise_variance.shape[0] else 0.0
            rest = slice(coordinates, 4 * K + 1)
            total = _power_noise_limits(
                K, M, noise, limits, stats, work, symbols, x[rest], lower[rest], upper[rest]
            )
            if start_power.shape[0]:
                for k in range(K):
                    x[coordinates + k] = math.log(max(start_power[p, which[k]], _TINY))
                x[4 * K] = math.log(start_noise[p])
        # Powers and noise variance first, where that is wanted; then everything.
        for stage in range(2):
            stage_mode, at, stage_steps, stage_tolerance = POWERS, coordinates, power_steps, power_tolerance
            if stage:
                stage_mode, at, stage_steps, stage_tolerance = mode, 0, steps, tolerance
            if (stage and mode == POWERS) or (stage == 0 and power_steps < 0):
                continue
            value, converged = _minimise(
                stage_mode,
                x[at:],
                lower[at:],
                upper[at:],
                stage_steps,
                stage_tolerance,
                K,
                M,
                rules,
                system,
                scratch,
                stats,
                work,
                symbols,
            )
            if stage == 0 and not total > 0:
                for k in range(K):
                    x[coordinates + k] = math.log(_TINY)
        for k in range(active.shape[1]):
            out_power[p, k] = 0.0
            for i in range(3):
                out_positions[p, k, i] = positions[p, k, i]
        for k in range(K):
            for i in range(3):
                out_positions[p, which[k], i] = x[3 * k + i]
            if mode != CONDITIONAL and (mode != POWERS or total > 0):
                out_power[p, which[k]] = math.exp(x[coordinates + k])
        out_noise[p] = math.exp(x[4 * K]) if mode != CONDITIONAL else 0.0
        out_value[p], out_converged[p] = value, converged


def _summarise(first, last, recording, panel_form, problems, rules, levels, out):
    """Symbols and cost, or the Fisher information, of the problems ``first`` to ``last`` - 1.

    See :func:`least_squares` and :func:`information`.
    """
    snapshots, matrices = recording[0], recording[8]
    scenes, positions, active = problems
    power, noise = levels
    out_symbols, out_cost, out_information, out_alone = out
    L, M = snapshots.shape[1], snapshots.shape[2]
    slopes = len(noise) > 0
    for p in range(first, last):
        s, which = scenes[p], _present(active[p])
        K, width = len(which), active.shape[1]
        C = 4 * K if slopes else K
        system, scratch, energy = _prepare(recording, panel_form, s, which, C)
        stats, work, symbols = _workspace(K, C, matrices, energy)
        x = np.empty(3 * K)
        for k in range(K):
            for i in range(3):
                x[3 * k + i] = positions[p, which[k], i]
        _statistics(x, K, slopes, system, scratch, stats)
        if not slopes:
            out_cost[p] = _least_squares(K, rules[1], stats, work, symbols)
            for k in range(K):
                for t in range(L):
                    out_symbols[p, which[k], t] = complex(symbols[0][k, t], symbols[1][k, t])
            continue
        U = 4 * K + 1
        own, place = np.empty(K), np.empty(U, np.int64)
        for k in range(K):
            own[k] = power[p, which[k]]
            for i in range(3):
                place[3 * k + i] = 3 * which[k] + i
            place[3 * K + k] = 3 * width + which[k]
        place[4 * K] = 4 * width
        gradient, J = np.empty(U), np.empty((U, U))
        _unconditional(K, True, M, own, noise[p], rules[1][0], stats, work, symbols, gradient, J)
        for i in range(U):
            for j in range(U):
                out_information[p, place[i], place[j]] = J[i, j]
        (re, im), _, _ = stats
        for k in range(K):
            for i in range(3):
                for j in range(3):
                    a, b, total = K + 3 * k + i, K + 3 * k + j, 0.0
                    for t in range(matrices):
                        across = re[k, a, t] * re[k, b, t] + im[k, a, t] * im[k, b, t]
                        total += re[a, b, t] - across / max(re[k, k, t], rules[1][1])
                    out_alone[p, which[k], i, j] = total


def _disperse(first, last, recording, panel_form, problems, rules, spreads, out):
    """Motion and spread of the sources of the problems ``first`` to ``last`` - 1; see :func:`dispersion`."""
    snapshots, matrices = recording[0], recording[8]
    scenes, positions, active, power = problems
    steps, directions = spreads
    out_gain, out_rest, out_path, out_spread, out_size = out
    L, M = snapshots.shape[1], snapshots.shape[2]
    for p in range(first, last):
        s, which = scenes[p], _present(active[p])
        K = len(which)
        C = 4 * K
        system, scratch, energy = _prepare(recording, panel_form, s, which, C)
        stats, work, symbols = _workspace(K, C, matrices, energy)
        (gram_re, gram_im), (cross_re, cross_im), _ = stats
        (E_re, E_im), scale, (Z_re, Z_im) = work[0], work[1], work[2]
        x = np.empty(3 * K)
        for k in range(K):
            for i in range(3):
                x[3 * k + i] = positions[p, which[k], i]
        _statistics(x, K, True, system, scratch, stats)
        sigma2 = _least_squares(K, rules[1], stats, work, symbols) / (L * (M - K) - 1.5 * K)
        s_re, s_im = symbols[0], symbols[1]
        z_re, z_im = np.empty((2, L)), np.empty((2, L))
        norm = np.empty((2, 2, matrices))  # real parts
        factor, root, path = np.empty((4, 4)), np.empty(4), np.empty(4)
        for k in range(K):
            # Derivatives by azimuth and elevation outside the sources' fields, and their products with y.
            for i in range(2):
                c = K + 3 * k + i
                for t in range(L):
                    f = t if matrices > 1 else 0
                    a, b = cross_re[c, t], cross_im[c, t]
                    for j in range(K):
                        a -= gram_re[c, j, f] * s_re[j, t] - gram_im[c, j, f] * s_im[j, t]
                        b -= gram_re[c, j, f] * s_im[j, t] + gram_im[c, j, f] * s_re[j, t]
                    z_re[i, t], z_im[i, t] = a, b
                for j in range(K):
                    for t in range(matrices):
                        Z_re[j, c, t] = scale[j, t] * gram_re[j, c, t]
                        Z_im[j, c, t] = scale[j, t] * gram_im[j, c, t]
                _forward(E_re, E_im, K, 0, Z_re, Z_im, c)
            for i in range(2):
                for j in range(2):
                    c, d = K + 3 * k + i, K + 3 * k + j
                    for t in range(matrices):
                        norm[i, j, t] = gram_re[c, d, t]
                        for n in range(K):
                            norm[i, j, t] -= Z_re[n, c, t] * Z_re[n, d, t] + Z_im[n, c, t] * Z_im[n, d, t]
            # Normal equations of u and v; see :class:`rismusic.estimation.model_error._PathEquations`.
            G, h = np.zeros((4, 4)), np.zeros(4)
            for t in range(L):
                f = t if matrices > 1 else 0
                time = t / (L - 1) - 0.5 if L > 1 else -0.5
                level = s_re[k, t] ** 2 + s_im[k, t] ** 2
                for i in range(2):
                    pull = s_re[k, t] * z_re[i, t] + s_im[k, t] * z_im[i, t]
                    h[i] += pull
                    h[2 + i] += time * pull
                    for j in range(2):
                        both = level * norm[i, j, f]
                        G[i, j] += both
                        G[2 + i, j] += time * both
                        G[i, 2 + j] += time * both
                        G[2 + i, 2 + j] += time * time * both
            mean = (G[0, 0] + G[1, 1] + G[2, 2] + G[3, 3]) / 4
            for i in range(4):
                G[i, i] += 1e-9 * mean if mean > 0 else 1.0
                root[i] = 1 / math.sqrt(G[i, i])
            place = which[k]
            # The solution is minus the step.
            _solve(G, h, root, 0.0, 2, factor, path)
            for i in range(2):
                out_rest[p, place] -= h[i] * path[i] / sigma2
            _solve(G, h, root, 0.0, 4, factor, path)
            for i in range(4):
                out_gain[p, place] -= h[i] * path[i] / sigma2
                out_path[p, place, i] = -path[i]
            if not power[p, place] > 0:
                continue
            # See :func:`rismusic.estimation.model_error.spread_gain`.
            for step in steps:
                eta = step * step * power[p, place]
                for d in range(directions.shape[1]):
                    vx, vy = directions[0, d], directions[1, d]
                    value = 0.0
                    for t in range(L):
                        f = t if matrices > 1 else 0
                        along = (vx * z_re[0, t] + vy * z_re[1, t]) ** 2
                        along += (vx * z_im[0, t] + vy * z_im[1, t]) ** 2
                        total = (
                            vx * vx * norm[0, 0, f] + vy * vy * norm[1, 1, f] + 2 * vx * vy * norm[0, 1, f]
                        )
                        total = sigma2 + eta * total
                        value += math.log(sigma2 / total) + eta * along / (sigma2 * total)
                    if value > out_spread[p, place]:
                        out_spread[p, place] = value
                        out_size[p, place, 0], out_size[p, place, 1] = step * vx, step * vy


def _climb(first, last, elements, panel_form, vectors, starts, reach, box, rules, options, out):
    """Newton's method on the spectra of the problems ``first`` to ``last`` - 1; see :func:`climb`."""
    out_points, out_value, out_converged = out
    N, C, each = vectors.shape[1], vectors.shape[2], starts.shape[1]
    places = np.empty((3, N))
    for n in range(N):
        for i in range(3):
            places[i, n] = elements[n, i]
    panel = (places, panel_form[0], panel_form[1], panel_form[2])
    V = np.empty((C, N)), np.empty((C, N))
    waves, ray = (np.empty((4, N)), np.empty((4, N))), np.empty((12, N))
    re, im = waves
    system, scratch = (panel, V), (waves, ray)
    x, lower, upper = np.empty(3), np.empty(3), np.empty(3)
    for p in range(first, last):
        scene, k = p // each, p % each
        if k == 0 or p == first:
            for n in range(N):
                for c in range(C):
                    V[0][c, n], V[1][c, n] = vectors[scene, n, c].real, vectors[scene, n, c].imag
        for i in range(3):
            x[i] = starts[scene, k, i]
        _waves(panel, x, True, 0, waves, ray)
        for i in range(3):
            # Beam width or depth of focus, from the spread of the phase derivative.
            first_moment = second_moment = 0.0
            for n in range(N):
                level = re[0, n] ** 2 + im[0, n] ** 2
                if level > 0:
                    slope = (re[0, n] * im[1 + i, n] - im[0, n] * re[1 + i, n]) / level
                    first_moment += slope / N
                    second_moment += slope * slope / N
            spread = second_moment - first_moment * first_moment
            width = reach * 2 * math.pi / math.sqrt(12 * spread) if spread > 0 else math.inf
            lower[i], upper[i] = max(x[i] - width, box[0, i]), min(x[i] + width, box[1, i])
        value, converged = _minimise(
            SPECTRUM, x, lower, upper, options[0], options[1], 1, 0, rules, system, scratch, 0, 0, 0
        )
        for i in range(3):
            out_points[scene, k, i] = x[i]
        out_value[scene, k], out_converged[scene, k] = -value, converged


def _gains(first, last, recording, panel_form, problems, fields, rules, out):
    """What a source at each candidate is worth to the problems ``first`` to ``last`` - 1; see :func:`gains`.

    With E and S as above, the products with the basis Q of the sources are :math:`Q^H g = E^{-1} S C^H g`.
    """
    scenes, positions, active, powers, noise_variance = problems
    floor, coincide, steps = rules
    L, M = recording[0].shape[1], recording[0].shape[2]
    matrices, C = fields.shape[1], fields.shape[4]
    known = noise_variance.shape[0] > 0
    for p in range(first, last):
        s, which = scenes[p], _present(active[p])
        K = len(which)
        x, power = np.empty(3 * K), np.ones(K)
        for k in range(K):
            for i in range(3):
                x[3 * k + i] = positions[p, which[k], i]
            if known:
                power[k] = powers[p, which[k]]
        noise = noise_variance[p] if known else 0.0
        system, scratch, _ = _prepare(recording, panel_form, s, which, K)
        f_re, f_im = scratch[3]
        y_re, y_im = system[2]
        _fields(x, K, False, system, scratch)
        E_re, E_im, scale = np.empty((K, K)), np.empty((K, K)), np.empty(K)
        q_re, q_im = np.empty((K, C)), np.empty((K, C))
        u_re, u_im = np.empty(K), np.empty(K)
        energy, left, pull = np.empty(C), np.empty((matrices, C)), np.empty((L, C))
        a_re, a_im = np.empty(C), np.empty(C)
        for t in range(L):
            f = t if matrices > 1 else 0
            if matrices > 1 or t == 0:
                # Cholesky factor of the fields' Gram matrix, plus the noise where powers are known.
                for i in range(K):
                    norm = noise
                    for m in range(M):
                        norm += power[i] * (f_re[f, i, m] ** 2 + f_im[f, i, m] ** 2)
                    scale[i] = 1 / math.sqrt(norm) if norm > 0 else 0.0
                for i in range(K):
                    for j in range(i + 1):
                        re = im = 0.0
                        for m in range(M):
                            re += f_re[f, i, m] * f_re[f, j, m] + f_im[f, i, m] * f_im[f, j, m]
                            im += f_re[f, i, m] * f_im[f, j, m] - f_im[f, i, m] * f_re[f, j, m]
                        both = scale[i] * scale[j] * math.sqrt(power[i] * power[j])
                        re, im = re * both, im * both
                        if i == j:
                            re += noise * scale[i] * scale[i]
                        for k in range(j):
                            re -= E_re[i, k] * E_re[j, k] + E_im[i, k] * E_im[j, k]
                            im -= E_im[i, k] * E_re[j, k] - E_re[i, k] * E_im[j, k]
                        if i == j:
                            # Columns in the span of others are rounding errors.
                            E_re[i, i], E_im[i, i] = math.sqrt(re) if re > coincide else math.inf, 0.0
                        else:
                            E_re[i, j], E_im[i, j] = re / E_re[j, j], im / E_re[j, j]
                # Q^H g of all candidates, and |g|^2 - |Q^H g|^2.
                for c in range(C):
                    energy[c] = 0.0
                for m in range(M):
                    for c in range(C):
                        energy[c] += fields[s, f, m, 0, c] ** 2 + fields[s, f, m, 1, c] ** 2
                for c in range(C):
                    left[f, c] = energy[c]
                for i in range(K):
                    root = scale[i] * math.sqrt(power[i])
                    for c in range(C):
                        q_re[i, c], q_im[i, c] = 0.0, 0.0
                    for m in range(M):
                        a, b = root * f_re[f, i, m], root * f_im[f, i, m]
                        for c in range(C):
                            q_re[i, c] += a * fields[s, f, m, 0, c] + b * fields[s, f, m, 1, c]
                            q_im[i, c] += a * fields[s, f, m, 1, c] - b * fields[s, f, m, 0, c]
                    for j in range(i):
                        a, b = E_re[i, j], E_im[i, j]
                        for c in range(C):
                            q_re[i, c] -= a * q_re[j, c] - b * q_im[j, c]
                            q_im[i, c] -= a * q_im[j, c] + b * q_re[j, c]
                    inverse = 1 / E_re[i, i]
                    for c in range(C):
                        q_re[i, c] *= inverse
                        q_im[i, c] *= inverse
                        left[f, c] -= q_re[i, c] ** 2 + q_im[i, c] ** 2
                for c in range(C):
                    left[f, c] = max(left[f, c], floor * energy[c])
            # The data's share of the basis, u = Q^H y, and x^H g = y^H g - u^H Q^H g.
            for c in range(C):
                a_re[c], a_im[c] = 0.0, 0.0
            for m in range(M):
                a, b = y_re[t, m], y_im[t, m]
                for c in range(C):
                    a_re[c] += a * fields[s, f, m, 0, c] + b * fields[s, f, m, 1, c]
                    a_im[c] += a * fields[s, f, m, 1, c] - b * fields[s, f, m, 0, c]
            for i in range(K):
                root = scale[i] * math.sqrt(power[i])
                re = im = 0.0
                for m in range(M):
                    re += f_re[f, i, m] * y_re[t, m] + f_im[f, i, m] * y_im[t, m]
                    im += f_re[f, i, m] * y_im[t, m] - f_im[f, i, m] * y_re[t, m]
                re, im = re * root, im * root
                for j in range(i):
                    re -= E_re[i, j] * u_re[j] - E_im[i, j] * u_im[j]
                    im -= E_re[i, j] * u_im[j] + E_im[i, j] * u_re[j]
                u_re[i], u_im[i] = re / E_re[i, i], im / E_re[i, i]
                for c in range(C):
                    a_re[c] -= u_re[i] * q_re[i, c] + u_im[i] * q_im[i, c]
                    a_im[c] -= u_re[i] * q_im[i, c] - u_im[i] * q_re[i, c]
            for c in range(C):
                pull[t, c] = a_re[c] ** 2 + a_im[c] ** 2
        # See :func:`rismusic.estimation.search._worth`.
        for c in range(C):
            out[p, c] = 0.0
        if not known:
            for t in range(L):
                f = t if matrices > 1 else 0
                for c in range(C):
                    out[p, c] += pull[t, c] / left[f, c]
            continue
        for c in range(C):
            gamma, value = 0.0, 0.0
            top = bottom = 0.0
            for t in range(L):
                a, b = left[t if matrices > 1 else 0, c], pull[t, c] / noise
                top += b - a
                bottom += a * a
            gamma = max(top / bottom, 0.0)
            for _ in range(steps):
                top = bottom = 0.0
                for t in range(L):
                    a, b = left[t if matrices > 1 else 0, c], pull[t, c] / noise
                    damped = 1 / (1 + gamma * a)
                    top += (b * damped - a) * damped
                    bottom += (a * damped) ** 2
                gamma = max(gamma + top / bottom, 0.0)
            for t in range(L):
                a, b = gamma * left[t if matrices > 1 else 0, c], pull[t, c] / noise
                value += gamma * b / (1 + a) - math.log1p(a)
            out[p, c] = value


def applies(recording: Recording) -> bool:
    """Whether the compiled fits cover a recording: on the CPU, without gradients.

    Long snapshots without a channel, or on many subcarriers with a large channel, take the torch form.
    """
    link = recording.link
    if recording.frequencies is not None:
        long = 16 * link.subcarriers * recording.snapshots.shape[-1] * recording.panel.size
        if link.subcarriers == 1 or (link.coherent and long > memory_budget(recording.snapshots.device) // 4):
            return False
    parts = (recording.snapshots, recording.channel, recording.codes, recording.elements)
    return (
        all(part is None or (part.device.type == "cpu" and not part.requires_grad) for part in parts)
        and not (link.coherent and link.channel is None)
        and link.matrices in (1, recording.snapshots.shape[1])
    )


def fit_positions(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    volume: Volume,
    criterion: str,
    options: FitOptions,
    powers: FitOptions,
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None,
) -> tuple[
    Float[Tensor, "S K 3"], Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"], Bool[Tensor, "S"]
]:
    """Fit positions; see :func:`rismusic.estimation.maximum_likelihood.refine`.

    Args:
        recording: S scenes, of a kind that :func:`applies` accepts.
        positions: azimuth, elevation, 1/range of the start.
        active: which entries hold a source.
        volume: limits of the positions.
        criterion: ``conditional`` or ``unconditional``.
        options: when the fit stops.
        powers: when the fit of powers and noise variance before it stops.
        power_noise: initial powers and noise variance of the unconditional likelihood.

    Returns:
        Positions, powers and noise variances (0 under the conditional likelihood), values in nats, and
        whether the fits converged.
    """
    first = None
    if criterion == "unconditional" and power_noise is None and options.powers_first:
        first = powers
    mode = UNCONDITIONAL if criterion == "unconditional" else CONDITIONAL
    return _run(mode, recording, positions, active, volume.box, options, first, power_noise)


def fit_powers(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"], options: FitOptions
) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S"], Float[Tensor, "S"]]:
    """Powers (0 without a source), noise variances and values (nats) at given positions."""
    return _run(POWERS, recording, positions, active, _NO_BOX, options, options)[1:4]


def fit_powers_without_each(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"], options: FitOptions
) -> Float[Tensor, "S K"]:
    """Values (nats) at the best powers and noise variance, without each source in turn."""
    S, K = active.shape
    there = (active[:, None] & ~torch.eye(K, dtype=torch.bool)).flatten(0, 1)
    scenes = np.arange(S).repeat(K)
    x = positions.repeat_interleave(K, dim=0)
    return _run(POWERS, recording, x, there, _NO_BOX, options, options, scenes=scenes)[3].view(S, K)


def least_squares(
    recording: Recording, positions: Float[Tensor, "S K 3"], active: Bool[Tensor, "S K"]
) -> tuple[Complex[Tensor, "S K L"], Float[Tensor, "S"]]:
    """Least-squares symbols (0 without a source), and the energy that they leave."""
    return _summary(recording, positions, active, None)[:2]


def information(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    power: Float[Tensor, "S K"],
    noise_variance: Float[Tensor, "S"],
) -> tuple[Float[Tensor, "S U U"], Float[Tensor, "S K 3 3"]]:
    """Fisher information of :func:`rismusic.estimation.likelihood.unconditional`, and on each source alone.

    The second is :func:`rismusic.crb.information_alone`. Both are 0 without a source.
    """
    _, _, J, alone = _summary(recording, positions, active, (power, noise_variance))
    return J, alone


def climb(
    panel: Panel,
    vectors: Complex[Tensor, "S N C"],
    start: Float[Tensor, "S K 3"],
    reach: float,
    box: tuple[tuple[float, ...], tuple[float, ...]],
    options: FitOptions,
) -> tuple[Float[Tensor, "S K 3"], Float[Tensor, "S K"], Bool[Tensor, "S K"]]:
    """Newton's method on the spectra of S scenes; see :func:`rismusic.estimation.spectra.newton`.

    Args:
        panel: a narrowband panel on the CPU.
        vectors: V of each spectrum.
        start: azimuth, elevation, 1/range of each peak.
        reach: largest distance of the peak from the start, in beam widths.
        box: limits of the positions.
        options: when the method stops.

    Returns:
        Positions, values of the spectra, and whether the method converged.
    """
    real, (S, K, _) = torch.float64, start.shape
    form = (float(panel.wavenumber), WAVES.index(panel.wave), float(panel.pattern_exponent))
    out = np.empty((S, K, 3)), np.empty((S, K)), np.empty((S, K), np.bool_)
    arguments = (
        *(_numbers(panel.elements, 2, real), form, _numbers(vectors, 3, torch.complex128)),
        *(_numbers(start, 3, real), float(reach), np.array(box, dtype=np.float64), _rules()),
        *((options.steps, float(options.tolerance)), out),
    )
    call(_climb, S * K, arguments)
    point, value, converged = (torch.from_numpy(part) for part in out)
    return point, value, converged


def dispersion(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    power: Float[Tensor, "S K"],
    steps: Sequence[float],
    directions: int,
) -> tuple[
    Float[Tensor, "S K"],
    Float[Tensor, "S K"],
    Float[Tensor, "S K 4"],
    Float[Tensor, "S K"],
    Float[Tensor, "S K 2"],
]:
    """Motion of each source to first order, and its spread; see :mod:`rismusic.estimation.model_error`.

    Args:
        recording: S scenes, of a kind that :func:`applies` accepts.
        positions: azimuth, elevation, 1/range.
        active: which entries hold a source.
        power: of the sources.
        steps: standard deviations of the place that are tried (rad).
        directions: number of directions that are tried.

    Returns:
        Log-likelihood ratios (nats) of a motion and of another place at rest, u and v; that of a spread, and
        its standard deviation times its direction, NaN where there is none.
    """
    data, form = _recorded(recording, active.shape[1])
    real, (P, K) = torch.float64, active.shape
    problems = (
        *(np.arange(P), _numbers(positions, 3, real), _numbers(active, 2, torch.bool)),
        _numbers(power, 2, real),
    )
    angle = np.arange(directions) * (math.pi / directions)
    spreads = (np.array(steps), np.stack((np.cos(angle), np.sin(angle))))
    out = (
        *(np.zeros((P, K)) for _ in range(2)),
        np.zeros((P, K, 4)),
        np.zeros((P, K)),
        np.full((P, K, 2), np.nan),
    )
    call(_disperse, P, (data, form, problems, _rules(), spreads, out))
    in_all, at_rest, path, gain, size = (torch.from_numpy(part) for part in out)
    return in_all, at_rest, path, gain, size


def _summary(
    recording: Recording, positions: Tensor, active: Tensor, levels: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data, form = _recorded(recording, active.shape[1])
    real, (P, K) = torch.float64, active.shape
    problems = (np.arange(P), _numbers(positions, 3, real), _numbers(active, 2, torch.bool))
    power, noise = (None, None) if levels is None else levels
    U = 0 if levels is None else 4 * K + 1
    out = (
        np.zeros((P, K, 0 if U else recording.snapshots.shape[1]), np.complex128),
        np.empty(P),
        np.zeros((P, U, U)),
        np.zeros((P, K if U else 0, 3, 3)),
    )
    levels_given = (_numbers(power, 2, real), _numbers(noise, 1, real))
    call(_summarise, P, (data, form, problems, _rules(), levels_given, out))
    symbols, cost, J, alone = (torch.from_numpy(part) for part in out)
    return symbols, cost, J, alone


def _rules() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Constants of the torch form: arguments, since the code on disk would outlive a change of constants."""
    control = (
        *(lm._FIRST_DAMPING, lm._LEAST_DAMPING, lm._MOST_DAMPING, lm._NO_DAMPING, lm._LEAST_CURVATURE),
        *(lm._RIDGE, lm._MEMORY, lm._ROUGH, lm._ROUNDING, lm._NEAR),
    )
    powers, noise = maximum_likelihood._POWER, maximum_likelihood._NOISE
    return control, (likelihood._RIDGE, likelihood._SMALLEST_COST, *powers, *noise)


def gains(
    recording: Recording,
    fields: Float[Tensor, "S G M 2 C"],
    scenes: Int64[Tensor, "P"],
    positions: Float[Tensor, "P K 3"],
    active: Bool[Tensor, "P K"],
    power_noise: tuple[Float[Tensor, "P K"], Float[Tensor, "P"]] | None,
) -> Float[Tensor, "P C"]:
    """What a source at each candidate is worth to P problems beside the sources that are there.

    :func:`rismusic.estimation.search.likelihood_gain` of the residual is the torch form.

    Args:
        recording: S scenes, of a kind that :func:`applies` accepts.
        fields: real and imaginary parts of the candidates' fields at the receiver.
        scenes: scene of each problem.
        positions: azimuth, elevation, 1/range of the sources.
        active: which entries hold a source.
        power_noise: powers and noise variance, for the unconditional likelihood.
    """
    data, form = _recorded(recording, active.shape[1])
    power, noise = (None, None) if power_noise is None else power_noise
    problems = (
        *(scenes.numpy(), _numbers(positions, 3, torch.float64), _numbers(active, 2, torch.bool)),
        *(_numbers(power, 2, torch.float64), _numbers(noise, 1, torch.float64)),
    )
    rules = (search._FLOOR, likelihood.COINCIDENT if power_noise is None else 0.0, search._STEPS)
    out = np.empty((len(active), fields.shape[-1]))
    arguments = (data, form, problems, fields.numpy(), rules, out)
    call(_gains, len(active), arguments)
    return torch.from_numpy(out)


def _recorded(recording: Recording, sources: int) -> tuple[tuple[Any, ...], tuple[float, int, float]]:
    """A recording as arrays, the number of its operators G_l, and the form of the wave.

    The array without data tells the precision of fields. The factors behind the ratios of the frequencies are
    weights [..., t, 1, m] or pilots [..., 1, k, m] of the outputs.

    Raises:
        InputError: pilots for another number of sources.
    """
    link, y, panel = recording.link, recording.snapshots, recording.panel
    channel, codes, factors = link.channel, link.codes, None
    if link.coherent:
        channel, codes = _long_channel(link), None
        if link.pilots is not None:
            if link.pilots.shape[-1] != sources:
                raise InputError(
                    "pilots", f"are for K = {link.pilots.shape[-1]} sources; got {sources} positions"
                )
            antennas = y.shape[-1] // link.pilots.shape[-2]
            factors = link.pilots.mT.repeat_interleave(antennas, dim=-1).unsqueeze(-3)
    elif link.weights is not None:
        factors = link.weights.unsqueeze(-2)
    ratios = np.ones(1)
    if panel.subcarriers > 1:
        ratios = panel.relative_frequencies(recording.elements.double())[:, 0].numpy()
    by_subcarrier = link.coherent or link.subcarriers > 1
    data = (
        _numbers(y, 3, y.dtype),
        _numbers(channel, 4, y.dtype) if by_subcarrier else _numbers(channel, 3, y.dtype)[:, None],
        _numbers(codes, 3, y.dtype),
        _numbers(recording.elements, 3, torch.float64),
        _numbers(recording.noise_variance, 1, torch.float64),
        np.zeros(1, np.float32 if y.dtype == torch.complex64 else np.float64),
        ratios,
        _numbers(factors, 4, torch.complex128),
        link.matrices,
    )
    return data, (float(panel.wavenumber), WAVES.index(panel.wave), float(panel.pattern_exponent))


def _long_channel(link: Link) -> Tensor:
    """The G_l of all snapshots of a coherent link below one another, [..., F, L M, N]."""
    F = link.subcarriers
    each = replace(link, coherent=False, pilots=None).dense().unflatten(-3, (F, -1))
    if link.pilots is not None:
        each = each.expand(*each.shape[:-3], link.pilots.shape[-2], -1, -1)
    return each.flatten(-3, -2)


@lru_cache
def _nothing(axes: int, dtype: torch.dtype) -> npt.NDArray[Any]:
    return torch.empty((0,) * axes, dtype=dtype).numpy()


def _numbers(value: Tensor | None, axes: int, dtype: torch.dtype) -> npt.NDArray[Any]:
    """A contiguous array with this number of axes; an empty one for ``None``."""
    if value is None:
        return _nothing(axes, dtype)
    value = value if value.ndim == axes else value[None]
    if value.dtype != dtype or value.is_conj() or value.is_neg() or not value.is_contiguous():
        value = value.to(dtype).resolve_conj().resolve_neg().contiguous()
    return value.numpy()


def _run(
    mode: int,
    recording: Recording,
    positions: Tensor,
    active: Tensor,
    box: tuple[tuple[float, ...], tuple[float, ...]],
    options: FitOptions,
    powers: FitOptions | None,
    power_noise: tuple[Tensor, Tensor] | None = None,
    scenes: npt.NDArray[Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fit P problems, each in the scene that ``scenes`` names (by default the one of its number)."""
    data, form = _recorded(recording, active.shape[1])
    real, (P, K) = torch.float64, active.shape
    index = np.arange(P) if scenes is None else scenes
    problems = (index, _numbers(positions, 3, real), _numbers(active, 2, torch.bool))
    power_steps = (-1, 0.0) if powers is None else (powers.steps, float(powers.tolerance))
    steps = (options.steps, float(options.tolerance), *power_steps)
    power, noise = (None, None) if power_noise is None else power_noise
    out = (np.empty((P, K, 3)), np.zeros((P, K)), np.zeros(P), np.empty(P), np.empty(P, np.bool_))
    arguments = (
        *(mode, data, form, problems, np.array(box, dtype=np.float64), _rules(), steps),
        *((_numbers(power, 2, real), _numbers(noise, 1, real)), out),
    )
    call(_fit, P, arguments)
    end, power, noise, value, converged = (torch.from_numpy(part) for part in out)
    return end, power, noise, value, converged
