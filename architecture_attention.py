"""Attention over elements and snapshots.

Tokens are made of the raw data, taken back to the panel once, x_l = G_l^H R_l^-1 y_l under flat powers: one
for each element (its row of sum_l x_l x_l^H, by the lag to the other element: the directions seen from
there), one for each snapshot (its spectrum over the grid). Queries, one for each direction of the grid, ask
them and each other. Sums of squared moduli know no order of snapshots and no phase; scenes are scaled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from rismusic.estimate.grid import SearchGrid
from rismusic.learn.network import Network, _log
from rismusic.learn.prediction import Prediction
from rismusic.learn.spec import NetworkSpec
from rismusic.learn.statistics import GridStatistics, Observed
from rismusic.recording import Recording

ENCODER, DECODER = 2, 4


class Asking(nn.Module):
    """Attention of tokens to others, or to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.answer = nn.Linear(width, width)

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        others = x if others is None else others
        parts = (self.query(self.norm(x)), *self.keys(self.other(others)).chunk(2, dim=-1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return x + self.answer(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Thinking(nn.Module):
    """A small network per token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(gelu(self.widen(self.norm(x))))


class TokenAttention(Network):
    lag: Tensor
    there: Tensor

    def __init__(self, spec: NetworkSpec, grid: SearchGrid, generator: torch.Generator | None = None) -> None:
        nn.Module.__init__(self)
        self.spec, self.grid = spec, grid
        self._statistics = GridStatistics(grid)
        X, Y, Z = grid.shape
        width, heads = spec.width, spec.heads
        self.stages = nn.ModuleList()
        N = grid.panel.size
        side = math.isqrt(N)
        row, column = torch.arange(N) // side, torch.arange(N) % side
        lags = torch.arange(1 - side, side)
        to_row, to_column = row[:, None, None] + lags[:, None], column[:, None, None] + lags[None, :]
        there = (to_row >= 0) & (to_row < side) & (to_column >= 0) & (to_column < side)
        other = to_row.clamp(0, side - 1) * side + to_column.clamp(0, side - 1)
        self.register_buffer("lag", other.flatten(1), persistent=False)
        self.register_buffer("there", there.flatten(1), persistent=False)
        self.element = nn.Linear(2 * self.lag.shape[1], width)
        self.element_place = nn.Parameter(torch.randn(N, width, generator=generator) / 2)
        self.snapshot = nn.Linear(len(grid), width)
        self.direction = nn.Linear(2 * Z + 1, width)
        self.direction_place = nn.Parameter(torch.randn(X * Y, width, generator=generator) / 2)
        self.encoder = nn.ModuleList(
            module for _ in range(ENCODER) for module in (Asking(width, heads), Thinking(width))
        )
        self.decoder = nn.ModuleList(
            module
            for _ in range(DECODER)
            for module in (Asking(width, heads), Asking(width, heads), Thinking(width))
        )
        self.write = nn.Linear(width, Z)
        self.details = nn.Conv2d(width, 6 * Z, 1)
        self.count = nn.Sequential(
            nn.Linear(2 * width + 1 + spec.sources_max + 1, width),
            nn.GELU(),
            nn.Linear(width, spec.sources_max + 1),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for weight in (self.details.weight, self.count[-1].weight, self.write.weight):
                weight.mul_(0.1)
            for module in self.modules():
                if isinstance(module, Asking):
                    module.answer.weight.mul_(0.5)
                elif isinstance(module, Thinking):
                    module.narrow.weight.mul_(0.5)

    def fields(self, observed: Observed, power: Tensor) -> tuple[Tensor, Tensor]:
        """x_l^H under the given powers in the basis of the panel's fields [S, L, D], and own [S, P]."""
        statistics = self._statistics
        B = observed.fields
        BC = (B.flatten(1, 2) @ statistics._unpacked(power @ statistics._table.mT)).view_as(B)
        identity = torch.eye(B.shape[-2], dtype=B.dtype, device=B.device)
        R = BC @ B.mH + observed.noise_variance[:, None, None, None] * identity
        white = torch.linalg.solve_triangular(
            torch.linalg.cholesky_ex(R).L, torch.cat((B, observed.data), dim=-1), upper=False
        )
        Z, w = white[..., : B.shape[-1]], white[..., B.shape[-1] :]
        rows = Z.flatten(1, 2)
        own = statistics._quadratic(rows.mH @ rows) * observed.repeats
        return (w.mH @ Z).flatten(1, 2), own.clamp_min(1e-9)

    @torch.no_grad()
    def tokens(self, recording: Recording) -> tuple[Observed, Tensor, Tensor, Tensor]:
        """Elements [S, N, 2 lags], snapshots [S, L, P] and maps [S, 3, P]."""
        statistics = self._statistics
        observed = statistics.observe(recording)
        power = statistics.flat(observed)
        x, own = self.fields(observed, power)
        L = x.shape[1]
        shown = torch.view_as_real(x @ statistics.columns).square().sum(-1)  # [S, L, P]
        seen = (_log(shown.sum(1) / own), _log(own * power), _log(power * observed.reach))
        field = x @ statistics.basis.mH
        outer = field.mH @ field  # sum_l x_l x_l^H
        level = outer.diagonal(dim1=-2, dim2=-1).real.mean(-1)
        outer = outer / level[:, None, None]
        rows = outer.gather(2, self.lag.expand(len(outer), -1, -1)) * self.there
        return (
            observed,
            torch.view_as_real(rows).flatten(2),
            _log(shown * L / own[:, None]),
            torch.stack(seen, 1),
        )

    def forward(self, recording: Recording) -> Prediction:
        observed, elements, snapshots, seen = self.tokens(recording)
        X, Y, Z = self.grid.shape
        S = len(seen)
        held = torch.cat((self.element(elements) + self.element_place, self.snapshot(snapshots)), dim=1)
        for module in self.encoder:
            held = module(held)
        maps = seen[:, :2].unflatten(-1, (X * Y, Z)).movedim(1, 2).flatten(2)
        noise = observed.noise_variance.log()[:, None, None].expand(S, X * Y, 1) / 4
        asked = self.direction(torch.cat((maps, noise), dim=-1)) + self.direction_place
        for i, module in enumerate(self.decoder):
            asked = module(asked, held) if i % 3 == 1 else module(asked)
        logits = self.write(asked).flatten(1) + seen[:, 2] + seen[:, 0]
        logits = logits.masked_fill(~self.grid.inside, -30.0)
        memory = asked.mT.unflatten(-1, (X, Y))
        return self._sources([logits], memory, seen, observed)
