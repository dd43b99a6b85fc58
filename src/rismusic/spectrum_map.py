"""``rismusic.spectrum``: a spectrum of each scene on the search grid, with its axes and a plot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rismusic.covariance import recording_covariance
from rismusic.devices import device_of
from rismusic.errors import InputError
from rismusic.estimation.classical import counts_of, spectrum_method, spectrum_of
from rismusic.estimation.estimate import whole_numbers
from rismusic.estimation.grid import SearchGrid, Volume, find_peaks, searched_grid
from rismusic.estimation.noise import noise_of
from rismusic.io import Recording, check_recording
from rismusic.nn.checkpoint import other_panel
from rismusic.nn.inference import LoadedNetwork, NetworkOutput
from rismusic.registry import SPECTRA
from rismusic.sources import Sources
from rismusic.spec import LocateSpec
from rismusic.text import short_repr

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FLOOR_DB = 30.0


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectrumMap:
    """A spectrum of S scenes on a grid with equal steps in direction cosines and inverse range.

    Args:
        values: [S, X, Y, Z], linear, larger where a source is likelier; NaN outside the search volume.
        azimuth_deg: [X, Y] degrees. Axis X is the direction cosine along x, so azimuth varies with both axes.
        elevation_deg: [Y] degrees.
        range_m: [Z] metres, descending.
        method: the method.
        grid: the points, flattened with Z fastest.
    """

    values: Float[Tensor, "S X Y Z"]
    azimuth_deg: Float[Tensor, "X Y"]
    elevation_deg: Float[Tensor, "Y"]
    range_m: Float[Tensor, "Z"]
    method: str
    grid: SearchGrid

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.values)

    def peaks(self, n_sources: int) -> Sources:
        """The highest separated peaks of every scene, interpolated between the points of the grid.

        Args:
            n_sources: K peaks per scene.
        """
        found = find_peaks(self.values.flatten(1).nan_to_num(0.0).double(), self.grid, n_sources)
        return Sources(azimuth=found.azimuth, elevation=found.elevation, range=found.range)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        scene: int = 0,
        range_m: float | None = None,
        floor_db: float = _FLOOR_DB,
    ) -> Axes:
        """Draw azimuth and elevation of one scene, in dB below the highest value.

        The azimuth is positive to the left, as seen from the panel and in all other plots.

        Args:
            ax: axes to draw into; a new figure if none.
            scene: which scene.
            range_m: draw the slice at the grid's range nearest to this one; the maximum over range if none.
            floor_db: values further below the maximum are drawn like this one.

        Raises:
            InputError: matplotlib is not installed, there is no such scene, or the range is not positive.
        """
        if not -len(self) <= scene < len(self):
            raise InputError("scene", f"there are {len(self)} scenes, counted from 0; got {scene}")
        if range_m is not None and not range_m > 0:
            raise InputError("range_m", f"must be positive, in metres; got {range_m:g}")
        from rismusic.plots import new_axes

        ax = ax or new_axes(None)[0]
        values = self.values[scene].nan_to_num(0.0)
        if range_m is None:
            flat, what = values.amax(-1), "maximum over range"
        else:
            nearest = int((1 / self.range_m - 1 / range_m).abs().argmin())
            flat, what = values[..., nearest], f"range {float(self.range_m[nearest]):.2f} m"
        level = 10 * (flat / flat.max()).clamp_min(10 ** (-floor_db / 10)).log10()
        level = torch.where(self.values[scene].isnan().all(-1), math.nan, level)
        azimuth, elevation = (angle.rad2deg().cpu().numpy() for angle in _corners(self.grid))
        mesh = ax.pcolormesh(azimuth, elevation, level.cpu().numpy(), rasterized=True)
        ax.figure.colorbar(mesh, ax=ax, label="relative spectrum / dB")
        ax.set(xlabel="azimuth / deg", ylabel="elevation / deg", title=f"{self.method}, {what}")
        if not ax.xaxis_inverted():
            ax.invert_xaxis()
        return ax


def spectrum(
    recording: Recording,
    *,
    method: str = "music",
    n_sources: int | Tensor = 1,
    spec: LocateSpec | None = None,
    device: torch.device | str | None = None,
    **settings: object,
) -> SpectrumMap:
    """The spectrum of every scene on the search grid.

    Of a wideband recording it is that of the middle subcarrier. Coloured noise is whitened first.

    Args:
        recording: S scenes.
        method: ``music``, ``soft_music``, ``mvdr``, ``bartlett``, a registered spectrum, or ``hybrid``: MUSIC
            on the blend of the network's covariance with the sample covariance.
        n_sources: one number or one per scene [S], at least 1.
        spec: search volume, oversampling, weights; the default if none.
        device: where to compute; the recording's device if none.
        settings: fields of :class:`~rismusic.spec.LocateSpec` to change, such as ``oversampling=5.0``.

    Raises:
        InputError: the method is no spectrum, or a number of sources is below 1 or too large.

    Example:
        >>> values = spectrum(recording, method="music", n_sources=2)
        >>> values.plot(range_m=2.0)
    """
    if method not in SPECTRA and method != "hybrid":
        known = ", ".join(("hybrid", *SPECTRA.names()))
        raise InputError("method", f"no spectrum is named {method!r}. Known: {known}")
    check_recording(recording)
    home = recording.snapshots.device
    if device is not None:
        recording = recording.to(device_of(device))
    chosen = (spec or LocateSpec()).replace(method=method, **settings)
    numbers = whole_numbers(n_sources)
    count = None
    if numbers is not None and not isinstance(numbers, str):
        count = counts_of(recording.stacked(), numbers, Volume.from_spec(chosen))
    if count is None:
        raise InputError("n_sources", f"a spectrum needs the number of sources; got {n_sources!r}")
    if int(count.min()) < 1:
        raise InputError(
            "n_sources", f"a spectrum needs at least 1 source in every scene; got {int(count.min())}"
        )
    if method == "hybrid" and recording.frequencies is not None:
        raise InputError("method", "'hybrid' takes narrowband recordings; this one is wideband")
    seen, noise = recording.subcarrier(), noise_of(recording.stacked())
    grid = searched_grid(seen, chosen)
    name = "music" if method == "hybrid" else method
    with torch.inference_mode():
        if method == "hybrid":
            network = LoadedNetwork.load(
                chosen.weights, recording.snapshots.device, untrained=chosen.hybrid.untrained
            )
            if (panel := other_panel(network.network.grid.panel, recording.panel)) is not None:
                raise InputError(
                    "method", f"the weights {chosen.weights!r} of 'hybrid' are for another panel, {panel}"
                )
            covariance = NetworkOutput.compute(network, recording, noise_of(recording), chosen).blend
        else:
            covariance = recording_covariance(seen, noise, full_shrinkage=spectrum_method(name).shrink)
        values = spectrum_of(name, covariance, count).on_grid(grid)
    values = torch.where(grid.inside, values, math.nan).view(-1, *grid.shape).clone()
    u_x, u_y = torch.meshgrid(grid.u_x, grid.u_y, indexing="ij")
    azimuth, _, _ = grid.from_axes(u_x, u_y, torch.ones_like(u_x))
    return SpectrumMap(
        values=values.to(home),
        azimuth_deg=azimuth.rad2deg().to(home),
        elevation_deg=grid.u_y.asin().rad2deg().to(home),
        range_m=(1 / grid.q).to(home),
        method=method,
        grid=grid.to(home),
    )


def _corners(grid: SearchGrid) -> tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]:
    """Azimuth and elevation (rad) of the corners of the grid's cells, [X + 1, Y + 1]."""
    edges = [
        torch.cat((axis - step / 2, axis[-1:] + step / 2))
        for axis, step in zip((grid.u_x, grid.u_y), grid.step[:2], strict=True)
    ]
    u_x, u_y = torch.meshgrid(*edges, indexing="ij")
    return grid.from_axes(u_x, u_y, torch.ones_like(u_x))[:2]
