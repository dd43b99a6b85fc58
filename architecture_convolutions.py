"""A convolutional deconvolution of one whitened spectrum over u_x, u_y and 1/r: a U-Net of 3-D convolutions.

The data are asked once, under powers that are the same everywhere; what comes after is image processing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from rismusic.estimate.grid import SearchGrid
from rismusic.learn.network import Network, _log
from rismusic.learn.prediction import Prediction
from rismusic.learn.spec import NetworkSpec
from rismusic.learn.statistics import GridStatistics
from rismusic.recording import Recording

WIDTHS = (24, 56, 96)
BLOCKS = (2, 2, 2)
MAPS = 4 + 5


class Residual(nn.Module):
    """Two 3 x 3 x 3 convolutions that add to what they were given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(gelu(self.first(self.norm(x))))


class UNet(nn.Module):
    """Finer maps in and out, coarser ones between them."""

    def __init__(self, level: int) -> None:
        super().__init__()
        width = WIDTHS[level]
        self.down_blocks = nn.Sequential(*(Residual(width) for _ in range(BLOCKS[level] - 1)))
        self.up_blocks = nn.Sequential(*(Residual(width) for _ in range(1)))
        self.below: UNet | None = None
        if level + 1 < len(WIDTHS):
            self.down = nn.Conv3d(width, WIDTHS[level + 1], 3, stride=2, padding=1)
            self.below = UNet(level + 1)
            self.up = nn.Conv3d(WIDTHS[level + 1], width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down_blocks(x)
        if self.below is not None:
            coarse = self.up(self.below(self.down(x)))
            x = x + interpolate(coarse, size=x.shape[2:], mode="trilinear", align_corners=False)
        return self.up_blocks(x)


class Details(nn.Module):
    """Six values of each point, as the network's own layer gives them."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes
        self.values = nn.Conv3d(WIDTHS[0], 6, 1)

    def forward(self, memory: Tensor) -> Tensor:
        points = memory.unflatten(1, (-1, self.planes)).movedim(2, -1)
        return self.values(points).movedim(-1, 2).flatten(1, 2)


class Convolutions(Network):
    def __init__(self, spec: NetworkSpec, grid: SearchGrid, generator: torch.Generator | None = None) -> None:
        nn.Module.__init__(self)
        self.spec, self.grid = spec, grid
        self._statistics = GridStatistics(grid)
        X, Y, Z = grid.shape
        place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (X, Y, Z)), indexing="ij"))
        inside = grid.inside.view(1, X, Y, Z).float().cpu()
        self.register_buffer("place", torch.cat((place, inside)), persistent=False)
        self.stages = nn.ModuleList()
        self.read = nn.Conv3d(MAPS, WIDTHS[0], 3, padding=1)
        self.unet = UNet(0)
        self.write = nn.Conv3d(WIDTHS[0], 1, 1)
        self.details = Details(Z)
        self.count = nn.Sequential(
            nn.Linear(2 * WIDTHS[0] * Z + 1 + spec.sources_max + 1, spec.width),
            nn.GELU(),
            nn.Linear(spec.width, spec.sources_max + 1),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for weight in (self.details.values.weight, self.count[-1].weight, self.write.weight):
                weight.mul_(0.1)
            for module in self.modules():
                if isinstance(module, Residual):
                    module.second.weight.mul_(0.3)

    def forward(self, recording: Recording) -> Prediction:
        with torch.no_grad():
            statistics = self._statistics
            observed = statistics.observe(recording)
            power = statistics.flat(observed)
            pull, own = statistics(observed, power)
            # What arrives along each point's field without whitening.
            matched = (observed.fields.mH @ observed.data).movedim(-1, -2).flatten(1, 2)
            matched = (matched.conj() @ statistics.columns).abs().square().sum(1)
            matched = matched / observed.reach
            matched = matched / (matched * self.grid.inside).sum(-1, keepdim=True) * self.grid.inside.sum()
            seen = torch.stack((_log(pull / own), _log(own * power), _log(power * observed.reach)), dim=1)
            X, Y, Z = self.grid.shape
            maps = torch.cat((seen, _log(matched)[:, None]), dim=1).view(-1, 4, X, Y, Z)
            S = len(maps)
            noise = observed.noise_variance.log().view(S, 1, 1, 1, 1).expand(S, 1, X, Y, Z) / 4
            given = torch.cat((maps, self.place.expand(S, -1, -1, -1, -1), noise), dim=1)
        points = self.unet(self.read(given))
        logits = self.write(points).flatten(1) + seen[:, 2] + seen[:, 0]
        logits = logits.masked_fill(~self.grid.inside, -30.0)
        memory = points.movedim(-1, 2).flatten(1, 2)
        return self._sources([logits], memory, seen, observed)
