"""A stub for the spectral search of a validation, which takes most of the time of a short training."""

from __future__ import annotations

import torch

from rismusic.sources import Sources


def nowhere(spectrum, grid, count):
    """The requested number of sources, at most two, all at one position, as ``rap_music_sources`` returns."""
    values = torch.where(torch.arange(2) < count[:, None], 0.1, torch.nan)
    return Sources(azimuth=values, elevation=values, range=values), torch.ones_like(count, dtype=torch.bool)
