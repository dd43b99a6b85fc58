"""Peaks of the map of source powers that sparse Bayesian learning (SBL) makes on the search grid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimate.dictionary import STEERING
from rismusic.estimate.peaks import find_peaks
from rismusic.estimate.powers import learn_powers, shares_outer
from rismusic.estimate.search import Search, take_out
from rismusic.wave import steering

# Bytes of the dictionary of a block of scenes; a scene whose own would be larger takes its best points only.
_FIELDS = 2**25
_FEWEST = 512


def map_peaks(
    search: Search, noise_variance: Float[Tensor, "S"], count: int, *, iterations: int = 15
) -> Float[Tensor, "S K 3"]:
    """Azimuth, elevation and 1/range of the highest peaks of each scene's power map.

    Args:
        search: over the grid, of S scenes.
        noise_variance: sigma^2.
        count: K, how many peaks.
        iterations: see :func:`~rismusic.estimate.powers.learn_powers`.
    """
    recording, dictionary = search.recording, search.dictionary
    found = []
    for part, fields, index, shared in _dictionaries(search):
        data, noise = recording.snapshots[part], noise_variance[part]
        power = learn_powers(fields, data, noise, shared=shared, iterations=iterations)
        values = power.new_zeros(len(power), len(dictionary.grid))
        values.scatter_(1, dictionary.points[index].expand_as(power), power)
        peaks = find_peaks(values, dictionary.grid, count)
        found.append(torch.stack((peaks.azimuth, peaks.elevation, 1 / peaks.range), dim=-1).double())
    return torch.cat(found)


def _dictionaries(search: Search) -> Iterator[tuple[slice, Tensor, Int64[Tensor, "_ P"], bool]]:
    """Blocks of scenes, their dictionary [_, R, 2M, P], its points, whether its outer products are shared."""
    recording, dictionary = search.recording, search.dictionary
    link, scenes = recording.link, len(recording)
    R = 1 if link.codes is None else link.codes.shape[-2]
    _, L, M = recording.snapshots.shape
    most = min(_FIELDS // (8 * R * M), STEERING // (8 * recording.panel.size))
    affordable = max(_FEWEST, most)
    if len(dictionary) > affordable:
        best = _best_points(search, affordable)
        for i in range(scenes):
            part, points = slice(i, i + 1), best[i : i + 1]
            azimuth, elevation, q = dictionary.positions(points[0]).float().unbind(-1)
            A = steering(dictionary.grid.panel, azimuth, elevation, 1 / q)
            yield part, dictionary.fields(link[part], torch.cat((A.real, A.imag))), points, False
        return
    index = torch.arange(len(dictionary), device=dictionary.points.device)[None]
    columns = torch.cat([part for _, part in dictionary.columns()], dim=1)
    if link.per_scene:
        step = max(1, affordable // len(dictionary))
        for i in range(0, scenes, step):
            yield slice(i, i + step), dictionary.fields(link[i : i + step], columns), index, False
    else:
        fields = dictionary.fields(link, columns)
        shared = shares_outer(fields)
        # Rows of a scene's own beside the dictionary: its matches, or copies of the dictionary itself.
        rows = 2 * L + 8 if shared else 3 * R * 2 * M
        step = max(1, _FIELDS // (4 * rows * len(dictionary)))
        for i in range(0, scenes, step):
            yield slice(i, i + step), fields, index, shared


def _best_points(search: Search, count: int) -> Int64[Tensor, "S count"]:
    """The points that explain each scene best, each by itself."""
    device = search.dictionary.points.device
    nothing = torch.zeros(len(search.recording), 0, 3, dtype=torch.float64, device=device)
    rest = take_out(search.recording, nothing, nothing[..., 0].bool())
    return search.best(torch.arange(len(search.recording), device=device), rest, count)
