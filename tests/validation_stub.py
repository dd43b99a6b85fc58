"""In place of the search of a validation, which takes most of the time of a training that lasts seconds."""

from __future__ import annotations

import torch

from rismusic.sources import Sources


def nowhere(covariance, count, grid):
    """As many sources as are asked for, up to two, all at one place."""
    places = torch.where(torch.arange(2) < count[:, None], 0.1, torch.nan)
    return Sources(azimuth=places, elevation=places, range=places)
