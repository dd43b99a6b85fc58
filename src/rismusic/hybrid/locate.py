"""``rismusic.locate``: every locator behind one call, the hybrid one and the classical ones."""

from __future__ import annotations

from functools import partial

from jaxtyping import Int64
from torch import Tensor

from rismusic.estimate.grid import SearchGrid
from rismusic.estimate.locate import Located, by_blocks, locate_classically, searched_grid, told
from rismusic.estimate.sparse import source_count
from rismusic.hybrid.seen import Seen
from rismusic.hybrid.trained import Trained, trained
from rismusic.recording import Recording
from rismusic.spec import LocateSpec


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
    if chosen.method != "hybrid":
        return by_blocks(recording, count, partial(locate_classically, grid=grid, spec=chosen))
    network = trained(chosen.weights, recording.snapshots.device, untrained=chosen.hybrid.untrained)
    return by_blocks(recording, count, partial(_locate_block, trained=network, grid=grid, spec=chosen))


def _locate_block(
    recording: Recording,
    count: Int64[Tensor, "S"] | None,
    *,
    trained: Trained,
    grid: SearchGrid,
    spec: LocateSpec,
) -> Located:
    seen = Seen.by(trained, recording, spec)
    if count is None and spec.sources == "auto":
        count = seen.log_count.argmax(-1)
    else:
        count = source_count(recording, int(spec.sources) if count is None else count)
    return told(recording, seen.fit(count, grid, spec), None, grid.volume, spec)
