"""Which scenes the network knows: what lies outside its training is located classically, and says so.

A network answers anything it is asked. What it was not trained for, its card tells: another panel, a larger
volume, more sources, another kind of link, stronger signals.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float, Int64
from torch import Tensor

from rismusic.estimate.grid import Volume
from rismusic.estimate.locate import searched_volume
from rismusic.hybrid.trained import Trained
from rismusic.learn.weights import other_panel
from rismusic.recording import Recording
from rismusic.spec import LocateSpec, limits

# How far beyond the SNR of the training a scene may lie, in dB: the noise is guessed to within a few.
_MARGIN_DB = 10.0
# Limits of the searched volume that pass the trained ones by less than this share are the same.
_SAME = 1e-6


def strange_system(trained: Trained, recording: Recording, spec: LocateSpec) -> str | None:
    """What of panel, link, searched volume or number of sources the network does not know; none if nothing.

    Args:
        trained: the network.
        recording: the scenes.
        spec: the settings.
    """
    own, system = trained.network.grid, trained.card.system
    if (panel := other_panel(own.panel, recording.panel)) is not None:
        return f"they are for another panel, {panel}"
    direct = recording.channel is None
    if direct != (system.channel.kind == "direct"):
        return f"they were trained {'through a channel' if direct else 'without a channel'}"
    searched, scale = searched_volume(spec), own.panel.wavelength / recording.wavelength
    if not _within(
        replace(searched, **{name: getattr(searched, name) * scale for name in _RANGES}), own.volume
    ):
        return "the searched volume is larger than the one they were trained on"
    if spec.sources == "auto" and spec.sources_max > trained.card.sources_max:
        return f"they know at most {trained.card.sources_max} sources"
    return None


def strange_scenes(
    trained: Trained, snr_db: Float[Tensor, "S"], count: Int64[Tensor, "S"] | None
) -> dict[int, str]:
    """Scenes, by number, that the network does not know for what is in them, and why.

    Args:
        trained: the network.
        snr_db: of S scenes.
        count: K of each scene; none where it is to be found.
    """
    said = {}
    most, (_, highest) = trained.card.sources_max, limits(trained.card.system.snr_db)
    for scene in (snr_db > highest + _MARGIN_DB).nonzero()[:, 0].tolist():
        said[scene] = f"they were trained up to {highest:g} dB SNR"
    if count is not None:
        said |= dict.fromkeys((count > most).nonzero()[:, 0].tolist(), f"they know at most {most} sources")
    return said


_RANGES = ("range_min", "range_max")


def _within(inner: Volume, outer: Volume) -> bool:
    return all(
        low >= known_low - _SAME * abs(known_low) and high <= known_high + _SAME * abs(known_high)
        for low, high, known_low, known_high in zip(
            inner.lower, inner.upper, outer.lower, outer.upper, strict=True
        )
    )
