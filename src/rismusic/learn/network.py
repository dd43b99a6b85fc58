"""The hybrid network: learned steps of sparse Bayesian learning on the grid, and the factors of R_pred.

A stage looks at what the data say of every point under the present map of powers
(:mod:`rismusic.learn.statistics`), and makes a better map; after the last one the map's highest peaks become
sources. Between two stages the data are asked again, with the new powers in place: what the network claimed
is then either supported or not.

No gradient flows through the statistics: each stage is taught by the sources themselves, and hands what it
remembers to the next.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rismusic.estimate.grid import SearchGrid, from_cosines
from rismusic.estimate.peaks import highest_points
from rismusic.learn.blocks import Stage
from rismusic.learn.prediction import Prediction
from rismusic.learn.spec import NetworkSpec
from rismusic.learn.statistics import GridStatistics, Observed
from rismusic.recording import Recording
from rismusic.wave import steering

# Maps that a stage is given for each point: log ratio, log own, log power, two of them under flat powers.
_MAPS = 5
# Ratios and powers are looked at on a logarithmic scale within these limits (nats).
_LOWEST, _HIGHEST = -8.0, 8.0


class Network(nn.Module):
    r"""From recordings to :class:`~rismusic.learn.prediction.Prediction`.

    It does not care for the order of the snapshots, a global phase, or the scale of y: its input are sums
    over snapshots of squared moduli, of scenes scaled to unit power.

    Args:
        spec: sizes.
        grid: the search grid, P = X Y Z points, whose panel is the one the network is for.
    """

    place: Tensor

    def __init__(self, spec: NetworkSpec, grid: SearchGrid, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.spec, self.grid = spec, grid
        self._statistics = GridStatistics(grid)
        X, Y, Z = grid.shape
        width = spec.width
        # Where a point lies, for all scenes.
        place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (X, Y)), indexing="ij"))
        inside = grid.inside.view(X, Y, Z).any(-1).float()[None].cpu()
        self.register_buffer("place", torch.cat((place, inside)), persistent=False)
        given = _MAPS * Z + 3 + 1
        self.stages = nn.ModuleList(
            Stage(given + (width if stage else 0), width, spec.depth, spec.kernel, spec.heads, Z)
            for stage in range(spec.stages)
        )
        # Of each point: shifts along u_x, u_y, q; log amplitude in either factor; existence.
        self.details = nn.Conv2d(width, 6 * Z, 1)
        self.count = nn.Sequential(
            nn.Linear(2 * width + 1 + spec.sources_max + 1, width),
            nn.GELU(),
            nn.Linear(width, spec.sources_max + 1),
        )
        self._reset(generator)

    def _reset(self, generator: torch.Generator | None) -> None:
        """All weights from one generator; outputs start small."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan = module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan**-0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            for weight in (self.details.weight, cast(nn.Linear, self.count[-1]).weight):
                weight.mul_(0.1)
            for stage in self._each_stage():
                stage.write.weight.mul_(0.1)

    def _each_stage(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.stages]

    def forward(self, recording: Recording, kept: Float[Tensor, "S T B 2 W"] | None = None) -> Prediction:
        """Predict for S scenes.

        Args:
            recording: S scenes of the grid's panel; noise variance as known or not at all.
            kept: the channels that dropout leaves, see :func:`~rismusic.learn.dropout.kept_channels`; all of
                them if none.
        """
        observed, maps, power = self.look(recording)
        return self.predict(observed, maps, power, kept)

    @torch.no_grad()
    def look(self, recording: Recording) -> tuple[Observed, Float[Tensor, "S 2 P"], Float[Tensor, "S P"]]:
        """What does not depend on the weights: scenes, statistics of flat powers, powers after some steps."""
        statistics = self._statistics
        observed = statistics.observe(recording)
        power = statistics.flat(observed)
        pull, own = statistics(observed, power)
        first = torch.stack((_log(pull / own), _log(own * power)), dim=1)
        power = statistics.climb(observed, power * pull / own, self.spec.climbs - 1)
        return observed, first, power

    def predict(
        self,
        observed: Observed,
        first: Float[Tensor, "S 2 P"],
        power: Float[Tensor, "S P"],
        kept: Float[Tensor, "S T B 2 W"] | None = None,
    ) -> Prediction:
        """The stages, and the sources that come of them."""
        X, Y, Z = self.grid.shape
        S = len(power)
        memory: Tensor | None = None
        all_logits = []
        for number, stage in enumerate(self._each_stage()):
            with torch.no_grad():
                pull, own = self._statistics(observed, power)
                seen = torch.stack((_log(pull / own), _log(own * power), _log(power * observed.reach)), dim=1)
            maps = torch.cat((first, seen), dim=1).view(S, _MAPS, X, Y, Z).movedim(-1, 2).flatten(1, 2)
            noise = observed.noise_variance.log().view(S, 1, 1, 1).expand(S, 1, X, Y)
            given = [maps, self.place.expand(S, -1, -1, -1), noise / 4]
            if memory is not None:
                given.append(memory)
            left = None if kept is None else kept[:, number]
            memory, logits = stage(torch.cat(given, dim=1), left)
            # What the data say is where the stage starts from.
            logits = logits + seen[:, 2] + seen[:, 0]
            logits = logits.masked_fill(~self.grid.inside, -30.0)
            all_logits.append(logits)
            with torch.no_grad():
                share = logits.detach().softmax(-1) + 1e-7 * self.grid.inside
                power = self._statistics.spread(observed, share)
        assert memory is not None
        return self._sources(all_logits, memory, seen, observed)

    def _sources(
        self, all_logits: list[Tensor], memory: Tensor, seen: Tensor, observed: Observed
    ) -> Prediction:
        grid, most = self.grid, self.spec.sources_max
        logits = all_logits[-1]
        X, Y, Z = grid.shape
        S = len(logits)
        index = highest_points(logits.detach(), grid, most)
        details = self.details(memory).view(S, 6, Z, X, Y).movedim(2, -1).flatten(2)
        here = details.gather(2, index[:, None, :].expand(-1, 6, -1))  # [S, 6, K]
        azimuth, elevation, distance = self._between(logits, index, here[:, :3])
        height = logits.log_softmax(-1).gather(1, index)
        amplitude = (height[:, None] / 2 + here[:, 3:5]).exp()
        panel = grid.panel
        A = steering(panel, azimuth, elevation, distance)
        # The range factor learns the range alone; where nothing learns, it is the same.
        B = steering(panel, azimuth.detach(), elevation.detach(), distance) if A.requires_grad else A
        pooled = torch.cat((memory.mean((2, 3)), memory.amax((2, 3))), dim=1)
        told = torch.cat(
            (pooled, observed.noise_variance.log()[:, None] / 4, height, seen.amax((1, 2))[:, None]), 1
        )
        return Prediction(
            angle_factor=A * amplitude[:, :1],
            range_factor=B * amplitude[:, 1:],
            count_logits=self.count(told),
            azimuth=azimuth,
            elevation=elevation,
            inverse_range=1 / distance,
            existence_logits=here[:, 5] + 4 + height,
            grid_logits=torch.stack(all_logits, dim=1),
        )

    def _between(
        self, logits: Float[Tensor, "S P"], index: Int64[Tensor, "S K"], shift: Float[Tensor, "S 3 K"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Azimuth, elevation and range of peaks: the mean of the map around each, and a learned shift."""
        X, Y, Z = self.grid.shape
        around = torch.tensor(
            [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)], device=index.device
        )
        cell = torch.stack((index // (Y * Z), index // Z % Y, index % Z), dim=-1)
        near = cell[:, :, None] + around
        size = torch.tensor((X, Y, Z), device=index.device)
        there = ((near >= 0) & (near < size)).all(-1)
        near = torch.minimum(near.clamp_min(0), size - 1)
        flat = (near[..., 0] * Y + near[..., 1]) * Z + near[..., 2]
        value = logits.gather(1, flat.flatten(1)).view(flat.shape).masked_fill(~there, -torch.inf)
        weight = value.softmax(-1)
        mean = (weight[..., None] * around.to(weight.dtype)).sum(-2) + shift.mT.tanh()
        axes = (self.grid.u_x, self.grid.u_y, self.grid.q)
        u_x, u_y, q = (
            axis.to(mean.dtype)[cell[..., i]] + self.grid.step[i] * mean[..., i]
            for i, axis in enumerate(axes)
        )
        # In front of the panel, and not behind the horizon.
        u_y = u_y.clamp(-0.95, 0.95)
        reach = 0.999 * (1 - u_y.square()).sqrt()
        u_x = torch.minimum(torch.maximum(u_x, -reach), reach)
        return from_cosines(u_x, u_y, q.clamp_min(self.grid.step[2] / 4))


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(1e-30).log().clamp(_LOWEST, _HIGHEST)
