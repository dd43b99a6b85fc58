r"""Searches for one more source: which point of the grid raises the likelihood the most.

Let :math:`x_l = (I - Q_l Q_l^H) y_l` be the data with the sources found so far projected out, :math:`g_{lp} =
G_l a_p` the field of grid point p at the receiver, and :math:`h_{lp} = |g_{lp}|^2 - |Q_l^H g_{lp}|^2`.

* *conditional*: Q_l [M, K] is an orthonormal basis of the sources' fields. A new source lowers the cost by

  .. math:: \sum_l \frac{|g_{lp}^H x_l|^2}{h_{lp}},

  which is orthogonal least squares (Chen, Billings and Luo, Int. J. Control 50 (1989)) with its own gain in
  each snapshot.

* *unconditional*: :math:`I - Q_l Q_l^H = \sigma^2 R_l^{-1}` with the covariance R_l of sources and noise. At
  the best power :math:`\gamma` of the new source, the log-likelihood rises by

  .. math:: \max_\gamma \sum_l \left[ \frac{\gamma b_{lp}}{1 + \gamma a_{lp}}
      - \log(1 + \gamma a_{lp}) \right],
      \qquad a = h / \sigma^2, \quad b = |g^H x|^2 / \sigma^4

  (Tipping and Faul, "Fast marginal likelihood maximisation for sparse Bayesian models", AISTATS 2003).

:math:`g_{lp}^H x = a_p^H (G_l^H x)` needs only the steering matrix, which all scenes share.
:math:`|g_{lp}|^2` depends on the link alone; it is computed once and kept.

The dictionary of all grid points, :math:`D_l = G_l A`, is never formed as a whole. Complex products are
written as real ones, with :math:`[\mathrm{Re}\,w, -\mathrm{Im}\,w] \cdot [\mathrm{Re}\,a; \mathrm{Im}\,a]`
the real part of a row w times a column a and :math:`[\mathrm{Im}\,w, \mathrm{Re}\,w] \cdot [\mathrm{Re}\,a;
\mathrm{Im}\,a]` the imaginary part. This makes one large real matrix product of many scenes, whose squares
are summed several times faster than complex moduli. Float32 is accurate enough for a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from rismusic.array import steering
from rismusic.batch import Batch, takes_all
from rismusic.devices import block_size, blocks, memory_budget
from rismusic.estimation.grid import REMADE, SearchGrid
from rismusic.estimation.likelihood import orthonormal
from rismusic.estimation.maximum_likelihood import compiled_fits, kernel_for
from rismusic.estimation.subarrays import Subarrays, subarrays_of
from rismusic.io import Recording
from rismusic.operator import Link

# Least share of a point's energy outside the span of the sources found so far. Below it they are
# indistinguishable.
_FLOOR = 1e-3
# The same where the energy is an approximation, whose errors would otherwise look like sources.
_ROUGH_FLOOR = 0.2
# Number of leading points whose gain is computed exactly: with the steering vectors of all points, and with
# their approximation by subarrays.
_CHECKED, _CHECKED_BY_SUBARRAYS = 32, 256
# Powers of a new source that are compared, relative to the largest one that the data allow.
_POWERS = (1.0, 1 / 4, 1 / 16, 1 / 64)
_STEPS = 3  # iterations for the best power of a new source

# Channel directions that are treated exactly in the approximate energies: the strongest ones; of a large
# panel only those that are this much stronger than the mean.
_STRONG, _DOMINANCE = 4, 2.0


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The points of a grid that lie inside its volume, as columns of large matrix products."""

    grid: SearchGrid
    points: Int64[Tensor, "P"]  # numbers of the points that are inside

    @classmethod
    def of(cls, grid: SearchGrid) -> Dictionary:
        """The dictionary of a grid's points inside the volume."""
        return cls(grid, grid.inside.nonzero()[:, 0])

    def __len__(self) -> int:
        return len(self.points)

    def positions(self, index: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch 3"]:
        """Azimuth (rad), elevation (rad) and inverse range (1/m) of points by their place among P."""
        number = self.points[index]
        return torch.stack(
            (self.grid.azimuth[number], self.grid.elevation[number], 1 / self.grid.range[number]), dim=-1
        )

    def columns(self) -> Iterator[tuple[slice, Float[Tensor, "*F _ B"]]]:
        """Blocks of points and their steering vectors as real columns [Re a; Im a], [2N, B] or [F, 2N, B]."""
        each, device = self.grid.bytes_per_point, self.points.device
        kept = each * len(self) <= memory_budget(device)
        for block in blocks(len(self), each if kept else REMADE * each, device):
            yield (
                block,
                self.grid.inside_steering[..., block]
                if kept
                else self.grid.real_columns(self.grid.at(self.points[block], torch.complex64)),
            )

    def fields(self, link: Link, columns: Float[Tensor, "*F _ B"]) -> Float[Tensor, "_ _ M2 B"]:
        r"""The dictionary :math:`G_l a_p` itself, rows Re and Im of each output in turn, [S, L, 2M, B].

        Axes S and L have length 1 where the link is the same for all scenes or snapshots.
        """
        if link.channel is not None or link.subcarriers > 1:
            return real_products(scenes_first(link.dense(), 3), columns).flatten(2, 3)
        real, imaginary = columns.chunk(2)
        fields = scenes_first(link.matmul(torch.complex(real, imaginary)), 3)
        return torch.view_as_real(fields).movedim(-1, -2).flatten(2, 3).float()

    def energies(
        self, link: Link, columns: Float[Tensor, "*F _ B"], strongest: Strongest | None = None
    ) -> Float[Tensor, "_ _ B"]:
        r"""Nearly what a source of unit power at each point sends to the receiver, :math:`|G_l a_p|^2`.

        With :math:`H H^H = \sum_j \lambda_j u_j u_j^H` and :math:`v_j = H^H u_j / \sqrt{\lambda_j}`, the
        strongest J directions of the channel (its line of sight among them) are exact, and the others meet a
        coded wave as if it came from everywhere:

        .. math:: |G_l a_p|^2 \approx \sum_{j \le J} \lambda_j |v_j^H (c_l \odot a_p)|^2 + \bar\lambda \Big(
            |c_l \odot a_p|^2 - \sum_{j \le J} |v_j^H (c_l \odot a_p)|^2 \Big), \qquad
            \bar\lambda = \sum_{j > J} \frac{\lambda_j}{N - J}.

        It costs J / M of the exact form, and a search only needs to know which few points to look at. A
        coherent link is taken as one channel of L M outputs. The result is [S, L, B], with axes of length 1
        where the link is the same for all.
        """
        strongest = strongest or Strongest.of(link, self.grid.panel.size)
        if strongest.rows is None:
            return strongest.level.expand(-1, -1, columns.shape[-1])
        S, L, strong, _ = strongest.rows.shape
        step = block_size(8 * L * strong * columns.shape[-1], columns.device)
        parts = [
            real_products(strongest.rows[i : i + step], columns).flatten(2, 3).square().sum(dim=2)
            for i in range(0, S, step)
        ]
        return torch.cat(parts) + strongest.level


@dataclass(frozen=True, eq=False)
class Strongest(Batch):
    r"""The strongest directions of a link; see :meth:`Dictionary.energies`."""

    rows: Complex[Tensor, "S L J N"] | None  # sqrt(lambda_j - mean) v_j^H diag(c_l)
    level: Float[Tensor, "S L 1"]  # energy of the other directions
    directions: Complex[Tensor, "_ M J"] | None = None  # u_j; none without rows, and with subcarriers

    @classmethod
    def of(cls, link: Link, size: int, dominance: float = 0.0) -> Strongest:
        """The strongest directions of a link from a panel of ``size`` elements.

        They are those of at least ``dominance`` times the mean energy over all; with 0, the strongest four.
        """
        if link.coherent and link.channel is None and link.codes is not None:
            # Snapshots of the panel itself: no direction is stronger than another.
            gain, F = link.codes.abs().square().unsqueeze(-3), link.subcarriers  # [..., 1, L, N]
            if link.weights is not None:
                gain = gain * link.weights.square().unflatten(-2, (F, -1))  # [..., F, L, N]
            total = scenes_first(gain.mean(-1).sum(-1), 1).float()
            return cls(None, total[..., None].repeat(1, F // total.shape[1], 1))
        if link.coherent:
            F, G = link.subcarriers, link.dense()  # [..., F, LM, N]
            return cls.of(Link(G if F > 1 else G.squeeze(-3), subcarriers=F), size, dominance)
        if link.weights is not None:
            # Nearly: with the same mean weight of all outputs of a snapshot.
            mean = scenes_first(link.weights.square().mean(-1, keepdim=True), 2).float()
            plain = cls.of(Link(link.channel, link.codes, subcarriers=link.subcarriers), size, dominance)
            rows = None if plain.rows is None else plain.rows * mean[..., None].sqrt()
            return cls(rows, plain.level * mean, plain.directions)
        # |a_n|^2 is near 1 / N: only their sum, 1, is exact.
        N, F, device = size, link.subcarriers, link.device
        level = torch.ones(1, 1, device=device)
        if link.codes is not None:
            level = link.codes.abs().square().mean(-1)
        level = scenes_first(level, 1).float()[..., None].repeat(1, F, 1)
        if link.channel is None:
            return cls(None, level)
        H = link.channel
        values, basis = torch.linalg.eigh(H @ H.mH)
        values, M = values.clamp_min(0), values.shape[-1]
        strong, least = min(_STRONG, M), dominance * values.mean(-1, keepdim=True)
        if dominance:
            strong = int((values[..., M - strong :] >= least).sum(-1).max())
        rest, kept = values[..., : M - strong], values[..., M - strong :]
        rest = rest.sum(-1, keepdim=True) / max(1, N - strong)
        # A direction as weak as rounding takes no part.
        share = rest / kept.clamp_min(torch.finfo(kept.dtype).tiny)
        weight = torch.where(kept > 0, 1 - share, 0).clamp_min(0)
        basis = basis[..., M - strong :]
        kept_channel = weight.sqrt()[..., None] * (basis.mH @ H)
        ones = torch.ones(1, N, dtype=H.dtype, device=H.device)
        codes = ones if link.codes is None else link.codes
        dense = scenes_first(Link(kept_channel, codes, subcarriers=F).dense(), 3)
        rest = scenes_first(rest, 1 if F == 1 else 2).flatten(1)[..., None]  # [S, F, 1]
        L = dense.shape[1]
        level = level * rest.repeat_interleave(L // F if F > 1 else 1, dim=1)
        return cls(dense, level, scenes_first(basis, 2) if F == 1 else None)

    @property
    def count(self) -> int:
        """J."""
        return 0 if self.rows is None else self.rows.shape[2]

    def rows_or_none(self, snapshots: int, like: Complex[Tensor, "S L N"]) -> Complex[Tensor, "_ L J N"]:
        """The rows of all snapshots; no rows where there are none."""
        rows = like.new_zeros(1, 1, 0, like.shape[-1]) if self.rows is None else self.rows
        return rows.expand(-1, snapshots, -1, -1)

    def outside(
        self, basis: Complex[Tensor, "S _ M K"]
    ) -> tuple[Float[Tensor, "S _ 1"], Float[Tensor, "S _ J"]]:
        """Shares of the energy outside a span: of the other directions, and of each strong one."""
        directions = basis[:, 0, :, :0] if self.directions is None else self.directions
        along = (directions.mH[:, None] @ basis).abs().square().sum(-1)
        others = basis.abs().square().sum((-2, -1)) - along.sum(-1)
        return 1 - others[..., None] / max(1, basis.shape[-2] - along.shape[-1]), 1 - along

    def __getitem__(self, scenes: slice | Tensor | int) -> Strongest:
        """Those of some scenes; what all scenes share is kept whole."""
        return self.each(lambda part: part if len(part) == 1 else part[scenes])


def compiled_search(grid: SearchGrid) -> ModuleType | None:
    """The compiled products with all points of a grid, if they are wanted and the grid is not too large."""
    # Its tables are made in double precision, and products with all points at once.
    dense = grid.bytes_per_point * len(grid) <= memory_budget(grid.inside.device) // 4
    return _search_kernel(grid.inside.device) if dense and grid.panel.subcarriers == 1 else None


def _search_kernel(device: torch.device) -> ModuleType | None:
    """The compiled functions of a search, if they are wanted and cover the device."""
    if device.type != "cpu" or compiled_fits() is None:
        return None
    return import_module("rismusic.estimation.search_kernel")


def real_products(
    rows: Complex[Tensor, "*batch N"], columns: Float[Tensor, "*F _ B"]
) -> Float[Tensor, "*batch 2 B"]:
    """Real and imaginary part of rows times real columns [2N, B] of :meth:`Dictionary.columns`; float32.

    With columns of each subcarrier, [F, 2N, B], the last axis of the batch (or that before M outputs) counts
    snapshots subcarrier by subcarrier.
    """
    both = real_rows(rows)
    if columns.ndim == 3:
        # Rows [S, F L, 2, 2N] of snapshots, or [S, F L, M, 2, 2N] of their outputs.
        each = both.unflatten(1, (len(columns), -1)).movedim(1, 0)
        return (each.flatten(1, -2) @ columns).unflatten(1, each.shape[1:-1]).movedim(0, 1).flatten(1, 2)
    return (both.flatten(0, -2) @ columns).unflatten(0, both.shape[:-1])


def real_rows(rows: Complex[Tensor, "*batch N"]) -> Float[Tensor, "*batch 2 _"]:
    """Rows whose products with real columns [2N, B] are real and imaginary part of the rows' own; float32."""
    real, imaginary = rows.real.float(), rows.imag.float()
    return torch.stack((torch.cat((real, -imaginary), dim=-1), torch.cat((imaginary, real), dim=-1)), dim=-2)


def scenes_first(value: Tensor, keep: int) -> Tensor:
    """Exactly one scene axis before the last ``keep`` axes, of length 1 if there was none."""
    return value if value.ndim > keep else value[None]


@dataclass(frozen=True, eq=False)
class Residual(Batch):
    """Data of some scenes with the sources found so far projected out."""

    data: Complex[Tensor, "B L M"]  # x_l
    basis: Complex[Tensor, "B _ M K"]  # Q_l (L = 1 if the same in all snapshots), with zero columns
    noise_variance: Float[Tensor, "B"] | None = None  # for the unconditional criterion


def project_out(
    recording: Recording,
    positions: Float[Tensor, "S K 3"],
    active: Bool[Tensor, "S K"],
    power_noise: tuple[Float[Tensor, "S K"], Float[Tensor, "S"]] | None = None,
) -> Residual:
    """Project sources out of the data.

    With powers and noise variance it is by the unconditional criterion.
    """
    data = recording.snapshots
    azimuth, elevation, q = positions.to(data.real.dtype).unbind(-1)
    A = steering(recording.panel, azimuth, elevation, 1 / q) * active[:, None]
    fields = recording.link.matmul(A)
    if power_noise is None:
        noise = None
        Q = orthonormal(fields.to(torch.complex128)).to(data.dtype)
    else:
        power, noise = power_noise
        scaled = fields.to(torch.complex128) * torch.where(active, power, 0).sqrt()[:, None, None]
        inner = scaled.mH @ scaled + noise[:, None, None, None] * torch.eye(
            active.shape[1], device=data.device
        )
        factor = torch.linalg.cholesky_ex(inner).L
        Q = torch.linalg.solve_triangular(factor.mH, scaled, upper=True, left=False).to(data.dtype)
    return Residual(data - (Q @ (Q.mH @ data[..., None]))[..., 0], Q, noise)


class GridSearch:
    """Search of all grid points for S scenes at once, through the recording's link or another."""

    def __init__(self, dictionary: Dictionary, recording: Recording, link: Link | None = None) -> None:
        self.dictionary, self.recording = dictionary, recording
        self.link = link = recording.link if link is None else link
        scenes = len(recording) if link.per_scene else 1
        self._subarrays = subarrays_of(dictionary.grid)
        dominance = 0.0 if self._subarrays is None else _DOMINANCE
        self._strongest = Strongest.of(link, dictionary.grid.panel.size, dominance)
        plain = link.subcarriers == 1 and recording.sample_weights is None and recording.pilots is None
        covered = plain and self._subarrays is None and kernel_for(recording) is not None
        self._compiled = compiled_search(dictionary.grid) if covered else None
        self._energies: dict[int, Tensor] | None = None
        if 4 * scenes * link.matrices * len(dictionary) <= memory_budget(recording.snapshots.device):
            self._energies = {}

    @property
    def grid(self) -> SearchGrid:
        """The grid of the points."""
        return self.dictionary.grid

    @property
    def is_large(self) -> bool:
        """Whether subarrays take the place of the steering vectors of all points."""
        return self._subarrays is not None

    def __getitem__(self, scenes: Int64[Tensor, "_"]) -> GridSearch:
        """The search of some scenes, with the energies computed so far."""
        if takes_all(scenes, len(self.recording)):
            return self
        part = copy(self)
        part.recording, part.link = self.recording[scenes], self.link[scenes]
        part._strongest = self._strongest_of(scenes)
        if self._energies is not None and self.link.per_scene:
            part._energies = {number: energy[scenes] for number, energy in self._energies.items()}
        return part

    def best(
        self, scenes: Int64[Tensor, "B"], rest: Residual, count: int = 1
    ) -> tuple[Int64[Tensor, "B count"], Float[Tensor, "B"]]:
        """The best points for each of some scenes, the best first, and the gain of a source there.

        All points are compared with nearly their energy at the receiver (see :meth:`Dictionary.energies`),
        the leading few again with exactly theirs.
        """
        checked = _CHECKED if self._subarrays is None else _CHECKED_BY_SUBARRAYS
        wanted = min(max(count, checked), len(self.dictionary))
        best = rest.data.real.new_full((len(scenes), wanted), -torch.inf, dtype=torch.float32)
        index = scenes.new_zeros(len(scenes), wanted)
        for points, part, score in self._scores(scenes, rest):
            value, place = score.topk(min(wanted, score.shape[1]), dim=1)
            values = torch.cat((best[part], value), dim=1)
            places = torch.cat((index[part], place + points.start), dim=1)
            best[part], order = values.topk(wanted, dim=1)
            index[part] = places.gather(1, order)
        leaders = index[:, :checked]
        exact = likelihood_gain(
            rest,
            received_fields(self.recording[scenes], self.dictionary.positions(leaders), self.link[scenes]),
        )
        exact, order = exact.sort(dim=1, descending=True)
        return torch.cat((leaders.gather(1, order), index[:, checked:]), dim=1)[:, :count], exact[:, 0]

    def place(self, scenes: Int64[Tensor, "B"], rest: Residual) -> Float[Tensor, "B 3"]:
        """The best place for one more source: azimuth, elevation, 1/range."""
        return self.dictionary.positions(self.best(scenes, rest)[0][:, 0])

    def place_beside(
        self,
        scenes: Int64[Tensor, "B"],
        positions: Float[Tensor, "B K 3"],
        active: Bool[Tensor, "B K"],
        power_noise: tuple[Float[Tensor, "B K"], Float[Tensor, "B"]] | None,
    ) -> Float[Tensor, "B 3"]:
        """The best place for one more source beside those of :func:`project_out`."""
        return self.place(scenes, project_out(self.recording[scenes], positions, active, power_noise))

    def best_gain_beyond(
        self, scenes: Int64[Tensor, "B"], rest: Residual, center: Float[Tensor, "B 3"], angle: float
    ) -> Float[Tensor, "B"]:
        """Log-likelihood (nats) of one more source at the best point more than an angle away."""
        best = torch.zeros(len(scenes), dtype=torch.float64, device=center.device)
        for points, part, score in self._scores(scenes, rest):
            there = torch.arange(points.start, points.stop, device=center.device)
            apart = (self.dictionary.positions(there)[:, :2] - center[part, None, :2]).abs().amax(-1)
            highest = score.double().masked_fill(apart <= angle, -torch.inf).amax(1)
            best[part] = torch.maximum(best[part], highest)
        return best

    def _scores(self, scenes: Tensor, rest: Residual) -> Iterator[tuple[slice, slice, Float[Tensor, "_ _"]]]:
        """Places of a block of points and of scenes, and how much each point is worth to each scene."""
        if self._subarrays is not None:
            yield from self._scores_by_subarrays(self._subarrays, scenes, rest)
            return
        if self._compiled is not None:
            yield self._scores_compiled(self._compiled, scenes, rest)
            return
        data, times = few_snapshots(self.link, rest.data)
        squared, worth = _squared, _worth_beside
        if (kernel := _search_kernel(self.grid.inside.device)) is not None:
            squared, worth = kernel.squared, kernel.worth_beside
        rows = 3 * data.shape[1] + rest.basis.shape[1] * rest.basis.shape[-1]
        for number, (points, columns) in enumerate(self.dictionary.columns()):
            step = block_size(8 * rows * columns.shape[-1], columns.device)
            for start in range(0, len(scenes), step):
                part = slice(start, start + step)
                link = self.link[scenes[part]]
                compute = partial(self.dictionary.energies, columns=columns)
                energy = self._energy(number, scenes[part], compute)
                left = energy
                for column in rest.basis[part].unbind(-1):
                    left = left - squared(real_products(link.adjoint(column).conj(), columns))
                pull = squared(real_products(link.adjoint(data[part]).conj(), columns))
                if times > 1:
                    pull = pull.sum(1, keepdim=True) / times
                noise = rest.noise_variance
                yield points, part, times * worth(pull, left, energy, None if noise is None else noise[part])

    def _scores_compiled(
        self, compiled: ModuleType, scenes: Tensor, rest: Residual
    ) -> tuple[slice, slice, Float[Tensor, "_ _"]]:
        """The same by classes of the grid's symmetry, for all points and scenes."""
        products = compiled.class_products(self.grid)
        energy = self._energy(0, scenes, lambda _, strongest: compiled.energies(products, strongest))
        worth = compiled.worth(products, self.link[scenes], rest, energy)
        return slice(0, len(self.dictionary)), slice(0, len(scenes)), worth

    def _energy(
        self, number: int, scenes: Tensor, compute: Callable[..., Tensor]
    ) -> Float[Tensor, "_ _ *points"]:
        """Energies of a block of points for some scenes, kept if they are to be."""
        if self._energies is None:
            return compute(self.link[scenes], strongest=self._strongest_of(scenes))
        if number not in self._energies:
            self._energies[number] = compute(self.link, strongest=self._strongest)
        energy = self._energies[number]
        return energy if len(energy) == 1 else energy[scenes]

    def _strongest_of(self, scenes: Tensor) -> Strongest:
        return self._strongest[scenes] if self.link.per_scene else self._strongest

    def _scores_by_subarrays(
        self, subarrays: Subarrays, scenes: Tensor, rest: Residual
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "_ _"]]]:
        """The same for a large panel and all points at once; the sums over the snapshots grow in parts."""
        strong = self._strongest.count
        most = block_size(8 * subarrays.size * (1 + strong), scenes.device)
        L = 1 if self.link.coherent else rest.data.shape[1]
        step = max(1, most // L)
        kernel = _search_kernel(scenes.device)
        for start in range(0, len(scenes), step):
            part = slice(start, start + step)
            link, here = self.link[scenes[part]], rest[part]
            strongest = self._strongest_of(scenes[part])
            rows = link.adjoint(here.data).conj()
            level, directions = strongest.level.expand(-1, L, -1), strongest.rows_or_none(L, rows)
            other, share = (value.expand(-1, L, -1) for value in strongest.outside(here.basis))
            powers = noise = None
            if here.noise_variance is not None:
                noise = here.noise_variance.float()[:, None, None]
                mean = level * other + (share * directions.abs().square().mean(-1)).sum(-1, keepdim=True)
                most_power = here.data.abs().square().sum(-1).mean(-1) / (noise[:, 0, 0] * mean.mean((1, 2)))
                powers = most_power[:, None, None, None] * rows.real.new_tensor(_POWERS)[:, None, None]
            worth = rows.real.new_zeros(
                len(rows), 1 if powers is None else len(_POWERS), len(self.dictionary)
            )
            for now in (slice(first, first + most) for first in range(0, L, most)):
                data, along = rows[:, now], directions[:, now]
                both = torch.cat((data.flatten(0, 1), along.flatten(0, 2)))
                if kernel is not None:
                    weights = level[:, now], other[:, now], share[:, now]
                    for points, sums in subarrays.sums(both):
                        kernel.add_worth_at(
                            worth[..., points], sums, subarrays.norm[points], weights, powers, noise
                        )
                    continue
                for points, squares in subarrays.squares(both):
                    pull, energies = squares.split((len(data) * data.shape[1], along[..., 0].numel()))
                    pull, energies = pull.unflatten(0, data.shape[:2]), energies.unflatten(0, along.shape[:3])
                    energy = level[:, now] + energies.sum(2)
                    left = level[:, now] * other[:, now] + (share[:, now, :, None] * energies).sum(2)
                    left = torch.maximum(left, _ROUGH_FLOOR * energy)
                    worth[..., points] += _worth_at(powers, pull, left, noise)
            yield slice(0, len(self.dictionary)), part, worth.amax(1)


class CandidateSearch:
    """A search of a few places in each of S scenes, whose fields at the receiver are kept."""

    def __init__(
        self,
        grid: SearchGrid,
        recording: Recording,
        places: Float[Tensor, "S C 3"],
        fields: Complex[Tensor, "S _ M C"] | None = None,
    ) -> None:
        self.grid, self.recording, self.places = grid, recording, places
        self._fields = received_fields(recording, places) if fields is None else fields
        self._kernel = kernel_for(recording)
        if self._kernel is not None:
            self._parts = torch.view_as_real(self._fields).movedim(-1, -2).contiguous()

    def place(self, scenes: Int64[Tensor, "B"], rest: Residual) -> Float[Tensor, "B 3"]:
        """The best of them for one more source; see :meth:`GridSearch.place`."""
        return self._best(scenes, likelihood_gain(rest, self._fields[scenes]))

    def place_beside(
        self,
        scenes: Int64[Tensor, "B"],
        positions: Float[Tensor, "B K 3"],
        active: Bool[Tensor, "B K"],
        power_noise: tuple[Float[Tensor, "B K"], Float[Tensor, "B"]] | None,
    ) -> Float[Tensor, "B 3"]:
        """The best of them beside other sources; see :meth:`GridSearch.place_beside`."""
        if self._kernel is None:
            return self.place(scenes, project_out(self.recording[scenes], positions, active, power_noise))
        gain = self._kernel.gains(self.recording, self._parts, scenes, positions, active, power_noise)
        return self._best(scenes, gain)

    def _best(self, scenes: Int64[Tensor, "B"], gain: Float[Tensor, "B C"]) -> Float[Tensor, "B 3"]:
        best = gain.argmax(dim=1)
        return self.places[scenes].take_along_dim(best[:, None, None], dim=1)[:, 0]


def received_fields(
    recording: Recording, places: Float[Tensor, "B C 3"], link: Link | None = None
) -> Complex[Tensor, "B _ M C"]:
    """Fields at the receiver of a unit source at C places in each of B scenes."""
    azimuth, elevation, q = places.to(recording.snapshots.real.dtype).unbind(-1)
    return (link or recording.link).matmul(steering(recording.panel, azimuth, elevation, 1 / q))


def few_snapshots(link: Link, data: Complex[Tensor, "B L M"]) -> tuple[Complex[Tensor, "B few M"], int]:
    """Snapshots with which a search may take the place of all L, and the number that each point counts.

    Snapshots through one matrix count by their sum of squares alone, which at most M others have: a point is
    worth L times as much to them as to one snapshot with the mean. Others count by themselves, 1.
    """
    _, L, M = data.shape
    if link.matrices > 1:
        return data, 1
    return torch.linalg.qr(data).R if L > M else data, L


def likelihood_gain(rest: Residual, fields: Complex[Tensor, "B _ M C"]) -> Float[Tensor, "B C"]:
    """What a source at some places is worth to each scene, from its own field at the receiver."""
    energy = fields.abs().square().sum(-2)
    left = energy - (rest.basis.mH @ fields).abs().square().sum(-2)
    pull = (rest.data[..., None, :].conj() @ fields)[..., 0, :].abs().square()
    return _worth(pull, torch.maximum(left, _FLOOR * energy), rest.noise_variance)


def _worth_at(powers: Tensor | None, pull: Tensor, left: Tensor, noise: Tensor | None) -> Tensor:
    """The same at given powers over the noise variance, [B, G, 1, 1]; [B, L, P] to [B, G, P]."""
    if powers is None or noise is None:
        return (pull / left).sum(dim=1, keepdim=True)
    gain = powers * left[:, None]
    return (powers * (pull / noise)[:, None] / (1 + gain) - gain.log1p()).sum(dim=2)


def _squared(products: Float[Tensor, "S R 2 B"]) -> Float[Tensor, "S R B"]:
    """Squared moduli of products of which real and imaginary part are given."""
    return products.square().sum(-2)


def _worth_beside(pull: Tensor, left: Tensor, energy: Tensor, noise: Tensor | None) -> Tensor:
    """:func:`_worth` where approximate energies leave at least a part of the whole energy."""
    return _worth(pull, torch.maximum(left, _ROUGH_FLOOR * energy), noise)


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
