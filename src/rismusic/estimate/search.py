r"""Which point of the grid, as one more source of a scene, raises its likelihood the most.

Let the sources that are already there be taken out of the data, :math:`x_l = (I - Q_l Q_l^H) y_l`, and
:math:`g_{lp} = G_l a_p` be the field of point p at the receiver,
:math:`h_{lp} = |g_{lp}|^2 - |Q_l^H g_{lp}|^2`.

* *conditional*: Q_l [M, K] an orthonormal basis of the sources' fields; the cost falls by

  .. math:: \sum_l \frac{|g_{lp}^H x_l|^2}{h_{lp}},

  which is orthogonal least squares (Chen, Billings and Luo, Int. J. Control 50 (1989)) with a gain of its own
  in each snapshot;

* *unconditional*: :math:`I - Q_l Q_l^H = \sigma^2 R_l^{-1}`, R_l the covariance of sources and noise; the
  likelihood rises, at the best power :math:`\gamma` of the new source, by

  .. math:: \max_\gamma \sum_l \left[ \frac{\gamma b_{lp}}{1 + \gamma a_{lp}}
      - \log(1 + \gamma a_{lp}) \right],
      \qquad a = h / \sigma^2, \quad b = |g^H x|^2 / \sigma^4

  (Tipping and Faul, "Fast marginal likelihood maximisation for sparse Bayesian models", AISTATS 2003).

:math:`g_{lp}^H x = a_p^H (G_l^H x)` takes the steering matrix only, which all scenes share; what depends on
the link alone, :math:`|g_{lp}|^2`, is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.estimate.dictionary import BLOCK, Dictionary, products
from rismusic.estimate.grid import SearchGrid
from rismusic.recording import Recording
from rismusic.wave import Wave, steering

# Bytes of |g|^2 up to which it is kept.
_KEPT = 2**28
# Share of a point's energy outside the sources already found below which it is not told from them.
_FLOOR = 1e-3
# The same where the energy itself is an approximation: less would let errors stand out as sources.
_ROUGH_FLOOR = 0.2
# Leading points of a search that are looked at exactly.
_CHECKED = 32
# Steps towards the best power of a new source; a search needs no more.
_STEPS = 3


@dataclass(frozen=True, eq=False)
class Rest:
    """What some scenes are without the sources already found.

    Args:
        data: x_l, [B, L, M].
        basis: Q_l, [B, L, M, K] (L = 1 where it is always the same); zero columns stand for nothing.
        noise_variance: sigma^2 for the unconditional criterion; none for the conditional one.
    """

    data: Complex[Tensor, "B L M"]
    basis: Complex[Tensor, "B _ M K"]
    noise_variance: Float[Tensor, "B"] | None = None

    def __getitem__(self, scenes: slice) -> Rest:
        noise = self.noise_variance
        return Rest(self.data[scenes], self.basis[scenes], None if noise is None else noise[scenes])


def take_out(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    levels: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
    wave: Wave = "spherical",
) -> Rest:
    """The scenes without some sources.

    Args:
        recording: S scenes.
        positions: azimuth, elevation, 1/range of the sources.
        active: which places hold a source; empty ones come last.
        levels: powers and noise variance, for the unconditional criterion.
        wave: the form of the wave.
    """
    data = recording.snapshots
    azimuth, elevation, q = positions.to(data.real.dtype).unbind(-1)
    A = steering(recording.panel, azimuth, elevation, 1 / q, wave) * active[:, None]
    fields = recording.link.matmul(A)
    if levels is None:
        noise = None
        Q, R = torch.linalg.qr(fields)
        # A column that the others span is left as rounding and stands for nothing, nor does an empty place.
        Q = Q * (R.diagonal(dim1=-2, dim2=-1).abs() > 1e-5 * fields.norm(dim=-2))[..., None, :]
    else:
        power, noise = levels
        scaled = fields.to(torch.complex128) * torch.where(active, power, 0).sqrt()[:, None, None]
        inner = scaled.mH @ scaled + noise[:, None, None, None] * torch.eye(
            active.shape[1], device=data.device
        )
        factor = torch.linalg.cholesky_ex(inner).L
        Q = torch.linalg.solve_triangular(factor.mH, scaled, upper=True, left=False).to(data.dtype)
    return Rest(data - (Q @ (Q.mH @ data[..., None]))[..., 0], Q, noise)


class Search:
    """A search of all points for S scenes at once; see the head of this module.

    Args:
        dictionary: the points.
        recording: S scenes.
    """

    def __init__(self, dictionary: Dictionary, recording: Recording) -> None:
        self.dictionary, self.recording = dictionary, recording
        link = recording.link
        scenes = len(recording) if link.per_scene else 1
        snapshots = 1 if link.codes is None else link.codes.shape[-2]
        self._energies: list[Tensor] | None = None
        if 4 * scenes * snapshots * len(dictionary) <= _KEPT:
            self._energies = [dictionary.energies(link, columns) for _, columns in dictionary.columns()]

    @property
    def grid(self) -> SearchGrid:
        """The grid of the points."""
        return self.dictionary.grid

    def __getitem__(self, scenes: Int64[Tensor, "_"]) -> Search:
        """The search of some scenes; what was computed for them is kept."""
        part = copy(self)
        part.recording = self.recording[scenes]
        if self._energies is not None and self.recording.link.per_scene:
            part._energies = [energy[scenes] for energy in self._energies]
        return part

    def best(self, scenes: Int64[Tensor, "B"], rest: Rest, count: int = 1) -> Int64[Tensor, "B count"]:
        """The best points for each of some scenes, the best first.

        All points are compared with nearly their energy at the receiver (see
        :meth:`~rismusic.estimate.dictionary.Dictionary.energies`), the leading few again with exactly theirs.

        Args:
            scenes: their numbers.
            rest: what they are without the sources already there.
            count: how many points.
        """
        wanted = min(max(count, _CHECKED), len(self.dictionary))
        best = rest.data.real.new_full((len(scenes), wanted), -torch.inf, dtype=torch.float32)
        index = scenes.new_zeros(len(scenes), wanted)
        for points, part, score in self._scores(scenes, rest):
            value, place = score.topk(min(wanted, score.shape[1]), dim=1)
            values = torch.cat((best[part], value), dim=1)
            places = torch.cat((index[part], place + points.start), dim=1)
            best[part], order = values.topk(wanted, dim=1)
            index[part] = places.gather(1, order)
        leaders = index[:, :_CHECKED]
        exact = worth_of(rest, fields_of(self.recording[scenes], self.dictionary.positions(leaders)))
        order = exact.argsort(dim=1, descending=True)
        return torch.cat((leaders.gather(1, order), index[:, _CHECKED:]), dim=1)[:, :count]

    def place(self, scenes: Int64[Tensor, "B"], rest: Rest) -> Float[Tensor, "B 3"]:
        """The best place for one more source: azimuth, elevation, 1/range."""
        return self.dictionary.positions(self.best(scenes, rest)[:, 0])

    def _scores(self, scenes: Tensor, rest: Rest) -> Iterator[tuple[slice, slice, Float[Tensor, "_ _"]]]:
        """Places of a block of points and of scenes, and how much each point is worth to each scene."""
        rows = 3 * rest.data.shape[1] + rest.basis.shape[1] * rest.basis.shape[-1]
        for number, (points, columns) in enumerate(self.dictionary.columns()):
            step = max(1, BLOCK // (8 * rows * columns.shape[1]))
            for start in range(0, len(scenes), step):
                part = slice(start, start + step)
                link = self.recording.link[scenes[part]]
                if self._energies is None:
                    energy = self.dictionary.energies(link, columns)
                else:
                    energy = self._energies[number]
                    energy = energy if len(energy) == 1 else energy[scenes[part]]
                left = energy
                for column in rest.basis[part].unbind(-1):
                    left = left - products(link.adjoint(column).conj(), columns).square().sum(-2)
                left = torch.maximum(left, _ROUGH_FLOOR * energy)
                pull = products(link.adjoint(rest.data[part]).conj(), columns).square().sum(-2)
                noise = rest.noise_variance
                yield points, part, _worth(pull, left, None if noise is None else noise[part])


class Shortlist:
    """A search of a few places in each of S scenes, whose fields at the receiver are kept.

    Args:
        grid: whose volume and steps are meant.
        recording: S scenes.
        places: azimuth, elevation, 1/range.
    """

    def __init__(self, grid: SearchGrid, recording: Recording, places: Float[Tensor, "S C 3"]) -> None:
        self.grid, self.recording, self.places = grid, recording, places
        self._fields = fields_of(recording, places)

    def place(self, scenes: Int64[Tensor, "B"], rest: Rest) -> Float[Tensor, "B 3"]:
        """The best of them for one more source; see :meth:`Search.place`."""
        best = worth_of(rest, self._fields[scenes]).argmax(dim=1)
        return self.places[scenes].take_along_dim(best[:, None, None], dim=1)[:, 0]


def fields_of(recording: Recording, places: Float[Tensor, "B C 3"]) -> Complex[Tensor, "B _ M C"]:
    """Fields at the receiver of a unit source at some places.

    Args:
        recording: B scenes.
        places: azimuth, elevation, 1/range of C places in each.
    """
    azimuth, elevation, q = places.to(recording.snapshots.real.dtype).unbind(-1)
    return recording.link.matmul(steering(recording.panel, azimuth, elevation, 1 / q))


def worth_of(rest: Rest, fields: Complex[Tensor, "B _ M C"]) -> Float[Tensor, "B C"]:
    """What a source at some places is worth to each scene, from its own field at the receiver.

    Args:
        rest: what B scenes are without the sources already there.
        fields: of the places.
    """
    energy = fields.abs().square().sum(-2)
    left = energy - (rest.basis.mH @ fields).abs().square().sum(-2)
    pull = (rest.data[..., None, :].conj() @ fields)[..., 0, :].abs().square()
    return _worth(pull, torch.maximum(left, _FLOOR * energy), rest.noise_variance)


def _worth(pull: Tensor, left: Tensor, noise: Tensor | None) -> Tensor:
    """The gain in cost or likelihood from |g^H x|^2 and h, [B, L, P] to [B, P]."""
    if noise is None:
        return (pull / left).sum(dim=1)
    # In units of the noise variance: that of a receiver in watts, squared, is nothing in single precision.
    a = left.expand_as(pull)
    b = pull / noise.to(pull.dtype)[:, None, None]
    # Scoring from the power that single snapshots suggest: the slope over the information at that power.
    power = ((b - a).sum(1) / a.square().sum(1)).clamp_min(0)
    for _ in range(_STEPS):
        damped = 1 / (1 + power[:, None] * a)
        slope = ((b * damped - a) * damped).sum(1)
        power = (power + slope / (a * damped).square().sum(1)).clamp_min(0)
    gain = power[:, None] * a
    return (power[:, None] * b / (1 + gain) - gain.log1p()).sum(1)
