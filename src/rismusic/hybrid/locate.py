"""``rismusic.locate``: every locator behind one call, the hybrid one and the classical ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.locate import (
    Located,
    by_blocks,
    calibrated,
    joined,
    locate_classically,
    searched_grid,
    told,
)
from rismusic.estimate.noise import noise_of, snr_db
from rismusic.estimate.sparse import source_count
from rismusic.hybrid.domain import strange_scenes, strange_system
from rismusic.hybrid.fits import count_and_fit, fit_known
from rismusic.hybrid.seen import Seen
from rismusic.hybrid.trained import Trained, missing, trained
from rismusic.recording import Recording
from rismusic.spec import LocateSpec

FALLBACK: Literal["sbl"] = "sbl"
"""The classical method for what the network does not know."""

_UNKNOWN = "the weights {!r} do not know this case"


def locate(
    recording: Recording,
    *,
    sources: Int64[Tensor, "S"] | int | str | None = None,
    spec: LocateSpec | None = None,
    **settings: object,
) -> Located:
    """Locate the sources of every scene; the twin of ``rismusic locate``.

    Args:
        recording: S scenes.
        sources: K: one number, one for each scene [S], or ``auto``; that of ``spec`` if not given.
        spec: method, searched volume and so on; the default if none.
        settings: fields of :class:`~rismusic.spec.LocateSpec` to change, such as ``method="omp"``.

    Returns:
        Positions with error bars, in float64 and on the recording's device.

    Raises:
        InputError: an unknown setting, or more sources than the data can carry.
    """
    chosen = (spec or LocateSpec()).replace(**settings)
    if isinstance(sources, (int, str)):
        chosen = chosen.replace(sources=sources)
    count = sources if isinstance(sources, Tensor) else None
    grid = searched_grid(recording, chosen)
    one, chosen = _way(recording, chosen, grid)
    # Descents of small matrices are mostly calls, each a sixth cheaper without a record for gradients.
    with torch.inference_mode():
        located = by_blocks(recording, count, partial(one, spec=chosen))
    return located.cloned()


def _way(
    recording: Recording, spec: LocateSpec, grid: SearchGrid
) -> tuple[Callable[..., Located], LocateSpec]:
    """What locates a block of these scenes, and the settings for it."""
    if spec.method != "hybrid":
        return partial(locate_classically, grid=grid), spec
    if missing(spec.weights):
        return partial(_fall_back, why=f"the weights {spec.weights!r} are not installed", grid=grid), spec
    network = trained(spec.weights, recording.snapshots.device, untrained=spec.hybrid.untrained)
    if spec.panel_error == "trained":
        spec = spec.replace(panel_error=network.card.system.hardware.response_error)
    strange = strange_system(network, recording, spec)
    if strange is not None:
        return partial(_fall_back, why=f"{_UNKNOWN.format(spec.weights)}: {strange}", grid=grid), spec
    return partial(_locate_block, trained=network, grid=grid), spec


def _locate_block(
    recording: Recording,
    count: Int64[Tensor, "S"] | None,
    *,
    trained: Trained,
    grid: SearchGrid,
    spec: LocateSpec,
) -> Located:
    """One block of scenes of a system that the network knows; scenes that it does not know go another way."""
    if count is not None or spec.sources != "auto":
        count = source_count(recording, int(spec.sources) if count is None else count)
    noise = noise_of(recording)
    strange = strange_scenes(trained, snr_db(replace(recording, noise_variance=noise)), count)
    device = recording.snapshots.device
    away = torch.tensor([scene in strange for scene in range(len(recording))], device=device)
    here, there = (~away).nonzero()[:, 0], away.nonzero()[:, 0]
    parts = []
    if len(here):
        known = None if count is None else count[here]
        parts.append(_hybrid(recording[here], noise[here], known, trained, grid, spec))
    if len(there):
        classical = _classical(recording[there], None if count is None else count[there], grid, spec)
        why = [f"{_UNKNOWN.format(spec.weights)}: {strange[scene]}" for scene in there.tolist()]
        parts.append(_warned(classical, why))
    return _in_order(parts, here, there)


def _hybrid(
    recording: Recording,
    noise: Float[Tensor, "S"],
    count: Int64[Tensor, "S"] | None,
    trained: Trained,
    grid: SearchGrid,
    spec: LocateSpec,
) -> Located:
    seen = Seen.by(trained, recording, noise, spec)
    if count is None:
        chosen = count_and_fit(seen, grid, spec)
        located = told(seen.recording, chosen.fit, chosen.probability, grid.volume, spec)
    else:
        located = told(seen.recording, fit_known(seen, count, grid, spec), None, grid.volume, spec)
    if spec.allowed_error:
        return calibrated(located, recording, grid.volume, spec)
    return _doubted(located, seen, count, grid, spec) if spec.polish else located


def _doubted(
    located: Located, seen: Seen, count: Int64[Tensor, "S"] | None, grid: SearchGrid, spec: LocateSpec
) -> Located:
    """Another search where what was found does not explain the data; a p value of NaN cannot tell."""
    # Peaks that were left unpolished are not meant to explain the data.
    unpolished = seen.snr_db > spec.hybrid.polish_up_to_db
    doubtful = ((located.p_value < spec.hybrid.doubt) & ~unpolished).nonzero()[:, 0]
    if len(doubtful) == 0:
        return located
    other = _classical(seen.recording[doubtful], None if count is None else count[doubtful], grid, spec)
    first = located[doubtful]
    # With K given the likelihoods compare; fits of different K by how well they explain the data.
    better = other.p_value > first.p_value if count is None else other.likelihood < first.likelihood
    kept = torch.ones_like(unpolished)
    kept[doubtful] = ~better
    here, there = kept.nonzero()[:, 0], doubtful[better]
    return _in_order([located[here], other[better.nonzero()[:, 0]]], here, there)


def _in_order(parts: list[Located], here: Int64[Tensor, "_"], there: Int64[Tensor, "_"]) -> Located:
    """Scenes that went two ways, in their order; the ways that nobody went are empty or missing."""
    return joined([part for part in parts if len(part.warnings)])[torch.cat((here, there)).argsort()]


def _fall_back(
    recording: Recording, count: Int64[Tensor, "S"] | None, *, why: str, grid: SearchGrid, spec: LocateSpec
) -> Located:
    return _warned(_classical(recording, count, grid, spec), [why] * len(recording))


def _classical(
    recording: Recording, count: Int64[Tensor, "S"] | None, grid: SearchGrid, spec: LocateSpec
) -> Located:
    return replace(
        locate_classically(recording, count, grid=grid, spec=spec.replace(method=FALLBACK)), spec=spec
    )


def _warned(located: Located, why: list[str]) -> Located:
    said = [
        [f"located by {FALLBACK}, not by the network: {one}", *more]
        for one, more in zip(why, located.warnings, strict=True)
    ]
    return replace(located, warnings=said)
