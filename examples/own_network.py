"""A network of your own: two convolutions that turn the matched-filter map into a heat map of sources.

Train it with ``rismusic train --network.plugins own_network --network.kind heat_map`` and use its weights
with ``rismusic locate FILE --plugins own_network --method hybrid --weights run/best.safetensors``.
"""

import torch
from torch import nn

import rismusic
from rismusic.nn.statistics import GridStatistics


class HeatMap(rismusic.GridNetwork):
    """Heat map and number of sources from the likelihood's slope and curvature at equal powers."""

    def __init__(self, spec, grid):
        super().__init__(spec, grid)
        self.statistics = GridStatistics(grid)
        depth = grid.shape[2]
        self.layers = nn.Sequential(
            nn.Conv2d(2 * depth, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, depth, 3, padding=1)
        )
        self.count = nn.Linear(depth, spec.sources_max + 1)

    def forward(self, recording):
        """Predict for S scenes."""
        X, Y, Z = self.grid.shape
        with torch.no_grad():
            observed = self.statistics.observe(recording)
            power = self.statistics.uniform_power(observed)
            matched, own = self.statistics(observed, power)
            ratio = (matched / own).clamp_min(1e-6).log()
            maps = torch.stack((ratio, (own * power).clamp_min(1e-6).log()), dim=1)
        maps = maps.view(-1, 2, X, Y, Z).movedim(-1, 2).flatten(1, 2)
        heat = ratio + self.layers(maps).movedim(1, -1).flatten(1)
        count = self.count(heat.view(-1, X * Y, Z).amax(1))
        return rismusic.Prediction.from_heat_map(self.grid, heat, count)


rismusic.register_network("heat_map", HeatMap)
