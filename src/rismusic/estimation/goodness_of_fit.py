r"""Goodness of fit: do the estimated sources explain the data, so that the residual is noise?

**Residual.** With :math:`C_l = G_l A` [M, K] the sources' fields, b_il [M] the derivative of the field of
source k(i) by one of its coordinates and s_kl the least-squares symbols, the residual of the snapshots y is

.. math:: r = \Pi\, y, \qquad \Pi \perp C_l \text{ in each snapshot, and } \Pi \perp t_i
    = \left( b_{il}\, s_{k(i)l} \right)_{l = 1 \ldots L}.

Each symbol removes one complex dimension, and each free coordinate one real dimension of all snapshots
together. To first order r is therefore the residual at maximum likelihood, whichever method found the
sources. Noise alone is white in the remaining :math:`\nu = 2 L (M - K) - 3 K` real dimensions. A coordinate
held at the boundary of the search volume is not free and removes no dimension.

**p-value.**

* *Noise variance known*: :math:`2 |r|^2 / \sigma^2` is chi-square distributed with :math:`\nu` degrees of
  freedom.
* *Unknown*: r must be white at any level. Two sphericity statistics (John, "Some optimal multivariate tests",
  Biometrika 58 (1971)) are tested,

  .. math:: T = \frac{\| \sum_l x_l x_l^H \|_F^2}{(\sum_l |r_l|^2)^2}
      = \frac{\sum_{l,l'} |x_l^H x_{l'}|^2}{(\sum_l |r_l|^2)^2},

  one of the residual at the receiver, :math:`x_l = r_l` [M], which detects signals that did not come through
  the panel as recorded, and one of the residual back-projected to the panel, :math:`x_l = G_l^H
  (H H^H)^{-1/4} r_l` [N], which detects missing sources and hardware impairments. (The root is between the
  matched filter and the whitened field. It had the most power of the three over the misfits that were tried.)

The null distribution of T depends on the link. It is sampled by passing noise through the same projection and
link; the noise is seeded, so that a scene always gets the same p-value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from rismusic.array import steering_with_log_derivatives
from rismusic.batch import Batch
from rismusic.devices import block_size
from rismusic.estimation.grid import Volume
from rismusic.estimation.likelihood import orthonormal, scene_blocks, sufficient_statistics, symbols
from rismusic.estimation.maximum_likelihood import compiled_fits, unpack
from rismusic.io import Recording
from rismusic.operator import Link
from rismusic.sources import Sources

SIGNIFICANCE = 1e-3
"""Significance level of the warning: one in 1000 scenes that fit the model gets it."""

# Noise draws, the number of the largest ones that the tail is fitted to, and their seed.
_DRAWS, _TAIL, _SEED = 255, 51, 20261122
_FIRST, _CLEAR = 63, 0.1  # draws of a first pass. Scenes with a larger p-value than this need no more.
_NOTHING = 1e-10  # smaller residuals, relative to the energy of the data, are rounding errors
_CONSTANT = 1e-4  # a log statistic that varies by less than this carries no information
_CHANNEL_ROUNDING = 1e-6  # smaller eigenvalues of H H^H, relative to the largest, are rounding errors

# The residual of one antenna or snapshot stands out below the first p-value if above the second for the next
# one. It takes this many to compare with.
_OUTLIER, _HOMOGENEOUS, _FEWEST_ROWS = 1e-4, 1e-2, 4


@dataclass(frozen=True, eq=False)
class Projection(Batch):
    r"""The projection :math:`\Pi` of S scenes.

    Args:
        fields: orthonormal basis of C_l, [S, L, M, K] complex (L = 1 if it is the same in all snapshots);
            columns without a source are zero.
        tangents: orthonormal basis of the t_i orthogonal to the C_l, real parts above imaginary parts,
            [S, 2LM, 3K] real; columns without a source are zero.
    """

    fields: Complex[Tensor, "S _ M K"]
    tangents: Float[Tensor, "S _ _"]

    @classmethod
    def off(
        cls,
        recording: Recording,
        positions: Float[Tensor, "S K 3"],
        active: Bool[Tensor, "S K"],
        free: Bool[Tensor, "S K 3"],
    ) -> Projection:
        """What the sources explain, with the coordinates that are free."""
        azimuth, elevation, q = positions.unbind(-1)
        A, slopes = steering_with_log_derivatives(recording.panel, azimuth, elevation, 1 / q)
        # An element that does not see the position has no field, and no logarithmic derivative.
        seen = (active[..., None] & free)[:, None] & (A != 0)[..., None]
        D = torch.where(seen, slopes * A[..., None], 0)
        columns = torch.cat((A * active[:, None], D.flatten(-2)), dim=-1)
        fields, changes = (
            recording.link.to(torch.complex128).matmul(columns).split((K := A.shape[-1], 3 * K), -1)
        )
        fields = orthonormal(fields)
        s = symbols(sufficient_statistics(recording, positions, active)).repeat_interleave(3, dim=-1)
        t = (outside(fields, changes) * s[..., None, :]).flatten(1, 2)  # [S, LM, 3K]
        return cls(fields, orthonormal(torch.cat((t.real, t.imag), dim=1)))

    def freedom(self, snapshots: int) -> Float[Tensor, "S"]:
        r"""Remaining real dimensions of L snapshots, :math:`\nu`."""
        taken = (self.fields != 0).any(-2).sum(-1).expand(-1, snapshots).sum(-1)
        tangents = (self.tangents != 0).any(-2).sum(-1)
        return (2 * (snapshots * self.fields.shape[-2] - taken) - tangents).to(self.tangents.dtype)

    def single(self) -> Projection:
        """The same in single precision."""
        return Projection(self.fields.to(torch.complex64), self.tangents.float())

    def of(self, data: Complex[Tensor, "S Q L M"]) -> Complex[Tensor, "S Q L M"]:
        """The residuals of Q sets of snapshots."""
        # One matrix product for all sets: rows are sets of one snapshot, y^T less (y^T Q^*) Q^T.
        rows = data.transpose(1, 2)
        rest = (rows - (rows @ self.fields.conj()) @ self.fields.mT).transpose(1, 2)
        flat = torch.cat((rest.real.flatten(2), rest.imag.flatten(2)), dim=-1)
        flat = flat - (flat @ self.tangents) @ self.tangents.mT
        real, imaginary = flat.chunk(2, dim=-1)
        return torch.complex(real, imaginary).reshape(data.shape)


def outside(
    basis: Complex[Tensor, "*S M K"], columns: Complex[Tensor, "*S M J"]
) -> Complex[Tensor, "*S M J"]:
    """What an orthonormal basis leaves of some columns."""
    return columns - basis @ (basis.mH @ columns)


@dataclass(frozen=True, eq=False)
class GoodnessOfFit:
    """How well the sources of each scene explain its data.

    The p-value is the probability of a residual with at least this energy (noise variance known) or at least
    this far from white (unknown), if the sources explain the data; NaN where there is nothing to compare, as
    for a single snapshot of a directly sampled panel. The excess is the energy of the residual over its
    expectation, NaN where the noise variance is unknown. The causes are what the residual points to, empty
    where nothing stands out.
    """

    p_value: Float[Tensor, "S"]
    excess: Float[Tensor, "S"]
    causes: list[str]

    def sentence(self, scene: int) -> str | None:
        """The warning for a scene whose fit is rejected; ``None`` otherwise."""
        p, excess = float(self.p_value[scene]), float(self.excess[scene])
        if math.isnan(p) or p >= SIGNIFICANCE:
            return None
        left = (
            "the residual is not white noise"
            if math.isnan(excess)
            else f"the residual has {excess:.3g} times the energy of the noise"
        )
        unclear = (
            "there may be more sources, sources outside the search volume, a panel that differs from its "
            "description, or a wrong convention such as conjugated data, which rismusic check looks for"
        )
        return f"{left} (p = {p:.1g}): {self.causes[scene] or unclear}"


def goodness_of_fit(recording: Recording, sources: Sources, volume: Volume | None = None) -> GoodnessOfFit:
    """Test how well sources near maximum likelihood (K < M) explain the snapshots.

    Without a volume, all coordinates count as free.
    """
    given, recording = recording, recording.stacked()
    as_received = recording is given and not given.is_stacked
    positions, active = unpack(sources, recording)
    parts, causes = [], []
    for block in scene_blocks(recording, 8 * active.shape[1]):
        part, here = recording[block], positions[block]
        free = torch.ones_like(here, dtype=torch.bool) if volume is None else ~volume.at_boundary(here)
        off = Projection.off(part, here, active[block], free)
        parts.append(
            _p_value_unknown_noise(part, off)
            if part.noise_variance is None
            else _p_value_known_noise(part, off)
        )
        rejected = parts[-1][0] < SIGNIFICANCE
        named = [""] * len(part)
        # Whitened and stacked data are sums over antennas, or have snapshots in place of them.
        for scene in rejected.nonzero()[:, 0].tolist() if as_received else ():
            named[scene] = _outlier(part[scene : scene + 1], off[scene : scene + 1])
        causes += named
    p_value, excess = (torch.cat(part) for part in zip(*parts, strict=True))
    return GoodnessOfFit(p_value, excess, causes)


def _outlier(recording: Recording, off: Projection) -> str:
    r"""The one antenna or snapshot in which the residual of a scene is much stronger than in the others.

    Noise of variance :math:`\sigma^2` leaves :math:`\mathrm{E} |r_{lm}|^2 = \sigma^2 h_{lm}`, h being the
    diagonal of the projection. The ratio of the mean of :math:`|r|^2 / h` over an antenna (a snapshot) to
    that over the others has nearly an F distribution with the numbers of real dimensions. The largest ratio
    has to be significant, and the next one, without the largest, must not be.
    """
    from scipy.stats import f as f_distribution  # takes long to import

    rest = off.of(recording.snapshots.to(torch.complex128)[:, None])[0, 0]  # [L, M]
    tangents = off.tangents[0].square().sum(-1).reshape(2, *rest.shape).sum(0) / 2
    left = (1 - off.fields[0].abs().square().sum(-1) - tangents).clamp_min(0)
    energy = rest.abs().square()
    found = {}
    for noun, axis in (("antenna", 0), ("snapshot", 1)):
        e, dimensions = energy.sum(axis).numpy(force=True), 2 * left.sum(axis).numpy(force=True)
        if (dimensions < 1).any() or len(e) < _FEWEST_ROWS:
            continue
        mean, others, steps = e / dimensions, np.full(len(e), True), []
        least = max(np.finfo(e.dtype).eps * e.sum(), np.finfo(e.dtype).tiny)  # rounding
        for row in (-mean).argsort()[:2]:
            others[row] = False
            rest_dimensions = dimensions[others].sum()
            ratio = mean[row] * rest_dimensions / max(e[others].sum(), least)
            p = len(e) * f_distribution.sf(ratio, dimensions[row], rest_dimensions)
            steps.append((p, int(row), ratio))
        if steps[0][0] < _OUTLIER < _HOMOGENEOUS < steps[1][0]:
            found[noun] = steps[0]
    if not found:
        return ""
    noun, (_, number, ratio) = min(found.items(), key=itemgetter(1))
    advice = {
        "antenna": "it may be dead, loud or wrongly calibrated; leave it out",
        "snapshot": "interference, or another RIS configuration than recorded; leave it out, or try "
        "--noise impulsive",
    }
    return f"{noun} {number} has {ratio:.2g} times the residual of the others: {advice[noun]}"


def sphericity(link: Link, rest: Complex[Tensor, "S Q L M"]) -> Float[Tensor, "S 2 Q"]:
    """Logarithm of John's statistic T at the receiver and on the panel."""
    if link.coherent:
        rest, link = link.separate(rest)
    energy = torch.view_as_real(rest).square().sum((-3, -2, -1)).log()
    receiver = _gram_energy(rest) - 2 * energy
    if link.channel is None or link.subcarriers > 1:  # the panel is the receiver, or differs by subcarrier
        return torch.stack((receiver, receiver), dim=1)
    H = link.channel.to(rest.dtype)
    values, basis = torch.linalg.eigh(H @ H.mH)
    root = values.clamp_min(_CHANNEL_ROUNDING * values[..., -1:]).pow(-0.25)
    back = (basis * root[..., None, :]) @ (basis.mH @ H)  # (H H^H)^(-1/4) H
    codes = None if link.codes is None else link.codes.to(rest.dtype)
    if codes is not None and rest.shape[-1] == 1 and rest.shape[-2] <= back.shape[-1]:
        panel = _gram_energy_of_one_output(codes * back, rest) - 2 * energy
    elif codes is not None and _is_compiled(rest, back):
        kernel = import_module("rismusic.estimation.goodness_kernel")
        panel = kernel.gram_energy(back, codes, rest).log() - 2 * energy
    else:
        behind = Link(_for_draws(back), None if codes is None else _for_draws(codes))
        panel = _gram_energy(behind.adjoint(rest)) - 2 * energy
    return torch.stack((receiver, panel), dim=1)


def _is_compiled(rest: Complex[Tensor, "S Q L M"], back: Complex[Tensor, "*S M N"]) -> bool:
    """Whether the compiled form covers these draws: in single precision, on the CPU."""
    single = rest.dtype == torch.complex64 and rest.device.type == "cpu"
    return single and rest.shape[-2] <= back.shape[-1] and compiled_fits() is not None


def null_sphericity(
    link: Link, off: Projection, snapshots: int, outputs: int, draws: int = _DRAWS
) -> Float[Tensor, "S 2 Q"]:
    """:func:`sphericity` of the residual of noise alone; the same seeded noise for every scene."""
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(draws, snapshots, outputs, dtype=torch.complex64, generator=generator)
    noise, off = noise.to(off.fields.device), off.single()
    size = outputs if link.channel is None else link.channel.shape[-1]
    step = block_size(8 * snapshots * size, noise.device)  # draws that fit
    scenes = max(1, step // draws)
    rows = []
    for start in range(0, len(off.fields), scenes):
        here = slice(start, start + scenes)
        part, some = off[here], link[here]
        columns = []
        for first in range(0, draws, step):
            drawn = noise[first : first + step].expand(len(part.fields), -1, -1, -1)
            columns.append(sphericity(some, part.of(drawn)))
        rows.append(torch.cat(columns, dim=-1))
    return torch.cat(rows).double()


def tail_probability(
    value: Float[Tensor, "S"], draws: Float[Tensor, "S Q"], tail: int = _TAIL
) -> Float[Tensor, "S"]:
    r"""Probability of a value at least as large, from Q draws of the same distribution.

    :math:`(1 + \#\{\text{draws} \ge \text{value}\}) / (Q + 1)`, exact whatever the distribution, down to the
    largest ``tail`` draws. Beyond them an exponential with their mean excess, which falls no faster than the
    tails that occur here (the tail of Knijnenburg et al., "Fewer permutations, more accurate P-values",
    Bioinformatics 25 (2009), with its shape fixed).
    """
    count = draws.shape[1]
    ordered = draws.sort(dim=1, descending=True).values
    edge = ordered[:, tail]
    excess = (ordered[:, :tail] - edge[:, None]).mean(dim=1)
    counted = (1 + (draws >= value[:, None]).sum(1)) / (count + 1)
    beyond = (tail + 1) / (count + 1) * torch.exp(-(value - edge) / excess)
    return torch.where(value > edge, beyond, counted.to(value.dtype))


def _p_value_known_noise(recording: Recording, off: Projection) -> tuple[Tensor, Tensor]:
    """p-value and excess if the noise variance is known."""
    assert recording.noise_variance is not None
    data = recording.snapshots.to(torch.complex128)
    statistic = 2 * _total_energy(off.of(data[:, None])) / recording.noise_variance.double()
    freedom = off.freedom(data.shape[1])
    return torch.special.gammaincc(freedom / 2, statistic / 2), statistic / freedom


def _p_value_unknown_noise(recording: Recording, off: Projection) -> tuple[Tensor, Tensor]:
    """p-value, and NaN as excess, if the noise variance is unknown."""
    data = recording.snapshots.to(torch.complex128)[:, None]
    rest = off.of(data)
    nothing = _total_energy(rest) <= _NOTHING * _total_energy(data)
    rest = torch.where(nothing[:, None, None, None], data, rest)
    measured = sphericity(recording.link, rest)[..., 0]
    p = _p_value_from_draws(recording.link, off, measured, data, _FIRST)
    # Most scenes fit, and the draws are most of the work.
    unclear = (p < _CLEAR).nonzero()[:, 0]
    if len(unclear):
        link, some = recording.link[unclear], off[unclear]
        p[unclear] = _p_value_from_draws(link, some, measured[unclear], data[unclear], _DRAWS)
    p = torch.where(nothing, 1.0, p)
    return p, torch.full_like(p, torch.nan)


def _p_value_from_draws(link: Link, off: Projection, measured: Tensor, data: Tensor, draws: int) -> Tensor:
    """p-value from a number of draws; NaN where no statistic varies."""
    _, _, L, M = data.shape
    drawn = null_sphericity(link, off, L, M, draws)
    mean, spread = drawn.mean(-1), drawn.std(-1)
    varies = spread > _CONSTANT
    spread = torch.where(varies, spread, torch.inf)
    # The larger of the two standardised statistics; its distribution comes from the same draws.
    most = ((measured - mean) / spread).amax(1)
    among = ((drawn - mean[..., None]) / spread[..., None]).amax(1)
    p = tail_probability(most, among, _TAIL * draws // _DRAWS)
    return torch.where(varies.any(1), p, torch.nan)


def _total_energy(data: Complex[Tensor, "S Q L M"]) -> Float[Tensor, "S"]:
    return torch.view_as_real(data).square().sum((1, 2, 3, 4))


def _gram_energy(x: Complex[Tensor, "S Q L _"]) -> Float[Tensor, "S Q"]:
    r"""Logarithm of :math:`\sum_{l,l'} |x_l^H x_{l'}|^2`, from the smaller of the two Gram matrices."""
    gram = x @ x.mH if x.shape[-2] <= x.shape[-1] else x.mH @ x
    return torch.view_as_real(gram).square().sum((-3, -2, -1)).log()


def _gram_energy_of_one_output(
    rows: Complex[Tensor, "*S _ N"], rest: Complex[Tensor, "S Q L 1"]
) -> Float[Tensor, "S Q"]:
    r"""The same of :math:`x_l = g_l^* r_l`, with the row g_l of snapshot l; one sum over N serves all Q."""
    rows = rows.expand(*rows.shape[:-2], rest.shape[-2], -1)
    gram = torch.view_as_real(rows @ rows.mH).square().sum(-1)
    energy = torch.view_as_real(rest[..., 0]).square().sum(-1)
    return ((energy @ gram) * energy).sum(-1).log()


def _for_draws(value: Tensor) -> Tensor:
    """An axis of draws behind that of the scenes, where there is one of scenes."""
    return value if value.ndim == 2 else value[:, None]
