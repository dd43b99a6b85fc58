"""The figures of the documentation, each drawn by the package's own functions; no formula stands here."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from torch import Tensor

import benchmark_tables
import large_panel_tables
import learning_test_tables
from rismusic.array import Panel, direction, path_difference, steering
from rismusic.hybrid import locate
from rismusic.plots import COLOURS, new_axes, save, scene_top
from rismusic.room import locate_room
from rismusic.scene_view import Scene
from rismusic.simulation.random_numbers import Draws
from rismusic.simulation.scene import (
    dft_codes,
    draw_channel,
    draw_codes,
    draw_sources,
    line_of_sight,
    spread_order,
)
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import ChannelSpec, CodebookSpec, PanelSpec, SceneSpec, SystemSpec, Wave
from wave_bias import BINS, fits, rms

MEASURED = Path(__file__).parent / "measured"
ROOM = SystemSpec(
    panel=PanelSpec(rows=6, columns=6),
    channel=ChannelSpec(kind="direct"),
    codebook=CodebookSpec(snapshots=16),
)


def point(azimuth_deg: Tensor, elevation_deg: Tensor, distance: Tensor | float = 1.0) -> np.ndarray:
    """Cartesian points [..., 3] in metres at these angles and distances."""
    direction_cosines = torch.broadcast_tensors(*direction(azimuth_deg.deg2rad(), elevation_deg.deg2rad()))
    return (torch.as_tensor(distance) * torch.stack(direction_cosines)).movedim(0, -1).double().numpy()


def panel_frame() -> Any:
    """Element numbers as seen by someone before the panel, and the angles of a source in space."""
    panel = Panel.uniform_planar(rows=4, columns=6)
    front, space = new_axes(None, "3d", size=(9.6, 4.3))
    front.get_gridspec().set_width_ratios((1, 1.2))
    x, y, z = panel.elements.T.numpy()
    front.plot(x, y, "s", ms=21, mfc="white", mec=COLOURS[0])
    for n in range(panel.size):
        front.text(x[n], y[n], str(n), ha="center", va="center")
    for tip, name in (((0.5, 0), "x"), ((0, 0.36), "y")):
        front.annotate("", xy=tip, xytext=(0, 0), arrowprops={"arrowstyle": "->", "lw": 1.4})
        front.text(tip[0] + 0.015, tip[1] + 0.015, name, fontsize=12, style="italic")
    front.set(xlabel="x / m (horizontal)", ylabel="y / m (vertical)", aspect="equal")
    front.set(xlim=(-0.56, 0.6), ylim=(-0.42, 0.46), title="seen from in front: z points at the reader")

    # Drawn as (z, x, y), a rotation of (x, y, z): a plain exchange of y and z would be a mirror image.
    def line(points: np.ndarray, *style: str, **looks: Any) -> None:
        space.plot(points[:, 2], points[:, 0], points[:, 1], *style, **looks)

    def label(place: np.ndarray, text: str, **looks: Any) -> None:
        space.text(place[2], place[0], place[1], text, fontsize=12, **looks)

    azimuth, elevation, distance = torch.tensor(40.0), torch.tensor(30.0), 1.0
    turn, zero = torch.linspace(0, 1, 40), torch.tensor(0.0)
    space.scatter(z, x, y, s=22, marker="s", c=COLOURS[0], depthshade=False)
    for axis, name in zip(np.diag((0.75, 0.62, 1.1)), "xyz", strict=True):
        line(np.stack((np.zeros(3), axis)), "-", color="0.35", lw=1)
        label(1.06 * axis, name, style="italic")
    source = point(azimuth, elevation, distance)
    floor = source * (1, 0, 1)
    line(np.stack((np.zeros(3), source)), "-", color=COLOURS[1], lw=1.6)
    line(np.stack((np.zeros(3), floor, source)), ":", color="0.4", lw=1.2)
    line(source[None], "o", color=COLOURS[1], ms=8)
    line(point(azimuth * turn, zero * turn, 0.5), "-", color=COLOURS[2], lw=2)
    line(point(azimuth + 0 * turn, elevation * turn, 0.65), "-", color=COLOURS[3], lw=2)
    label(point(azimuth * 0.45, zero, 0.56), "φ", color=COLOURS[2], weight="bold")
    label(point(azimuth, elevation * 0.4, 0.69), "θ", color=COLOURS[3], weight="bold")
    label(point(azimuth, elevation + 5, 0.55), "r", color=COLOURS[1], weight="bold")
    label(source * 1.05, "source", color=COLOURS[1])
    space.set_box_aspect((1.3, 1.1, 1.0), zoom=0.9)
    space.set(xlim=(0, 1.2), ylim=(-0.4, 0.8), zlim=(-0.25, 0.7), title="φ = 40°, θ = 30°, r = 1 m")
    space.view_init(elev=18, azim=-52)
    space.set(xlabel="z / m", ylabel="x / m", zlabel="y / m")
    space.locator_params(nbins=4)
    return front


def steering_phase() -> Any:
    """Phase of the exact wave of a near and a far source, and what the two approximations get wrong."""
    panel = Panel.uniform_planar()
    figure = Figure(figsize=(10.4, 5.6), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    edge = float(panel.elements[:, 0].max()) + panel.spacing / 2
    look: dict[str, Any] = {"origin": "lower", "extent": (-edge, edge, -edge, edge)}
    azimuth, elevation = torch.tensor([40.0]).deg2rad().double(), torch.tensor([15.0]).deg2rad().double()
    for row, distance in zip(axes, (2.0, 8.0), strict=True):
        r = torch.tensor([distance], dtype=torch.float64)
        phase = steering(panel, azimuth, elevation, r)[:, 0].angle().reshape(12, 12)
        image = row[0].imshow(phase, cmap="twilight", vmin=-np.pi, vmax=np.pi, **look)
        bar = figure.colorbar(image, ax=row[0], shrink=0.85, label="phase of a / rad")
        bar.set_ticks([-np.pi, 0, np.pi], labels=["-π", "0", "π"])
        row[0].set_title(f"spherical, r = {distance:g} m")
        towards = direction(azimuth, elevation)
        exact = path_difference(panel, towards, r)
        waves: tuple[Wave, ...] = ("fresnel", "paraxial")
        for ax, wave in zip(row[1:], waves, strict=True):
            error = panel.wavenumber * (
                path_difference(panel.replace(wave=wave), towards, r) - exact
            ).reshape(12, 12)
            worst = float(error.abs().max())
            image = ax.imshow(error, cmap="PuOr", vmin=-worst, vmax=worst, **look)
            figure.colorbar(image, ax=ax, shrink=0.85, label="phase error / rad")
            ax.set_title(f"{wave} − spherical, {distance:g} m")
    for ax in axes.flat:
        ax.set(xlabel="x / m", ylabel="y / m")
    return axes[0, 0]


def wave_bias() -> Any:
    """Azimuth error and quality of the best fit of each approximate wave to exact ones, against range."""
    error_ax, match_ax = new_axes(None, None, size=(9.6, 4.2))
    waves: tuple[Wave, ...] = ("paraxial", "fresnel")
    for wave, colour, marker in zip(waves, (COLOURS[1], COLOURS[0]), "o^", strict=True):
        for number, (bounds, found) in enumerate(zip(BINS, fits(wave), strict=True)):
            distance, error = found.truth[:, 2], found.azimuth_error_deg
            dots = {"ms": 2, "c": colour, "alpha": 0.35}
            error_ax.loglog(distance, error.abs(), marker, **dots)
            match_ax.semilogx(distance, found.match, marker, **dots)
            name = f"{wave}, rms in the bin" if number == 0 else None
            style = "-" if wave == "paraxial" else "--"
            error_ax.plot(bounds, 2 * [rms(error)], style, c=colour, lw=3, label=name)
        match_ax.plot([], [], marker, c=colour, label=wave)
    error_ax.set(ylim=(1e-3, 70), ylabel="|azimuth error| of the best fit / deg")
    match_ax.set(ylim=(0, 1.03), ylabel=r"$|a_\mathrm{fitted}^{\,H}\;a_\mathrm{exact}|^2$ (1 is perfect)")
    for ax in (error_ax, match_ax):
        ax.set_xlabel("range / m")
        ax.set_xticks([0.5, 1, 2, 4, 10], labels=["0.5", "1", "2", "4", "10"])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(loc="lower left" if ax is error_ax else "lower right", fontsize="small", framealpha=1)
    return error_ax


def near_field() -> Any:
    """The default panel and volume from above, with the two distances that divide the field."""
    panel, scene = Panel.uniform_planar(), SceneSpec()
    wide, close = new_axes(None, None, size=(9.6, 3.6))
    truth = draw_sources(scene, 5, 1, Draws(0, "test", torch.arange(1)))[0]
    scene_top(Scene(panel, truth=truth), ax=close)
    reach = 1.14 * scene.range_max_m
    close.set(xlim=(reach, -reach), ylim=(-0.5, reach), title="the default volume, one scene of five sources")
    limit = scene.azimuth_max_deg
    turn, zero = torch.linspace(-limit, limit, 121), torch.zeros(121)
    near, far = (point(turn, zero, edge)[:, [0, 2]] for edge in (scene.range_min_m, scene.range_max_m))
    for ax in (wide, close):
        outline = np.concatenate((far, near[::-1]))
        ax.add_patch(Polygon(outline, fc=COLOURS[4], alpha=0.3, zorder=0, label="default volume"))
    turn = torch.linspace(-90, 90, 181)
    for name, distance, style in (
        ("Fresnel", panel.fresnel_distance, ":"),
        ("Fraunhofer", panel.fraunhofer_distance, "--"),
    ):
        arc = point(turn, torch.zeros(181), distance)
        label = f"{name} distance, {distance:.3g} m"
        wide.plot(arc[:, 0], arc[:, 2], style, c=COLOURS[0], lw=1.4, label=label)
    label = f"panel, {panel.aperture:.3g} m across"
    wide.plot(*panel.elements[:, [0, 2]].T.numpy(), "s", c="0.3", ms=2, label=label)
    wide.set(
        xlabel="x / m (horizontal, seen from above)",
        xlim=wide.get_xlim()[::-1],
        ylabel="z / m (normal)",
        aspect="equal",
        title="the near field",
        ylim=(-2, 40),
    )
    for ax in (wide, close):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize="small")
        ax.grid(alpha=0.3)
    return wide


def codebook_order() -> Any:
    """The order in which the DFT codebook takes its beams, and how often many scenes visit each."""
    panel, rows, columns = PanelSpec(), PanelSpec().rows, PanelSpec().columns
    order_ax, count_ax = new_axes(None, None, size=(9.6, 4.6))
    beams = spread_order(rows * columns)
    when = torch.empty_like(beams)
    when[beams] = torch.arange(len(beams))
    order_ax.imshow(when.reshape(rows, columns), origin="lower", cmap="cividis")
    for beam, number in enumerate(when.tolist()):
        colour, weight = ("white", "normal") if number < 90 else ("black", "normal")
        if number < CodebookSpec().snapshots:
            weight = "bold"
            order_ax.plot(beam % columns, beam // columns, "s", ms=20, mfc="none", mec=COLOURS[4], mew=1.6)
        looks = {"c": colour, "weight": weight, "size": 7, "ha": "center", "va": "center"}
        order_ax.text(beam % columns, beam // columns, str(number), **looks)
    order_ax.set(
        xlabel="beam p (along x)", ylabel="beam q (along y)", title="place of each beam in the order"
    )
    spec = CodebookSpec(kind="dft", bits="continuous")
    visits = torch.zeros(rows * columns)
    for start in range(0, 1440, 144):
        codes = draw_codes(panel, spec, Draws(0, "test", torch.arange(start, start + 144)))
        every = dft_codes(rows, columns, torch.arange(rows * columns)).to(codes.dtype)
        visits += (codes @ every.mH).abs().argmax(-1).flatten().bincount(minlength=rows * columns)
    mean, most = float(visits.mean()), float(visits.max())
    count_ax.bar(range(len(visits)), visits, width=1.0, color=COLOURS[0])
    count_ax.axhline(mean, c=COLOURS[1], ls="--", label=f"mean, {mean:g}")
    count_ax.set(xlabel="beam number b = 12 q + p", ylabel="visits in 1440 scenes of 16 snapshots")
    count_ax.set(title=f"{int((visits > 0).sum())} of {len(visits)} beams visited", ylim=(0, 1.3 * most))
    count_ax.legend(frameon=False)
    return order_ax


def rician_factor() -> Any:
    """Shares of energy of line of sight and scatter in drawn channels, measured by projection."""
    panel, draws = Panel.uniform_planar(), Draws(0, "test", torch.arange(48))
    share_ax, ratio_ax = new_axes(None, None, size=(9.6, 4.0))
    factors = torch.arange(-20.0, 31.0, 5.0)
    sight = line_of_sight(panel, ChannelSpec(), draws).flatten(1)
    direct, rest = [], []
    for factor in factors.tolist():
        H = draw_channel(panel, ChannelSpec(rician_factor_db=factor), draws)
        assert H is not None
        along = (sight.conj() * H.flatten(1)).mean(-1, keepdim=True) * sight
        direct.append(float(along.abs().square().mean()))
        rest.append(float((H.flatten(1) - along).abs().square().mean()))
    share_ax.plot(factors, direct, "-o", c=COLOURS[0], label="line of sight")
    share_ax.plot(factors, rest, "--s", c=COLOURS[1], label="scatter")
    share_ax.axvspan(-3, 10, color="0.9", zorder=0, label="default draw")
    share_ax.set(xlabel="Rician factor set / dB", ylabel="mean energy of an entry of H")
    share_ax.legend(frameon=False, loc="center left")
    ratio_ax.plot(factors, factors, "-", c="0.5", label="as set")
    measured = 10 * np.log10(np.array(direct) / np.array(rest))
    ratio_ax.plot(factors, measured, "o", c=COLOURS[0], label="measured in drawn channels")
    ratio_ax.set(xlabel="Rician factor set / dB", ylabel="line of sight over scatter / dB")
    ratio_ax.legend(frameon=False)
    for ax in (share_ax, ratio_ax):
        ax.grid(alpha=0.3)
    return share_ax


def calibration() -> Any:
    """Share of errors within the stated bars against the share that a normal distribution has there."""
    with (MEASURED / "calibration.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    levels = sorted({float(row["snr_db"]) for row in rows})
    axes = new_axes(None, None, None, size=(9.6, 3.6))
    for ax, name in zip(axes, ("azimuth", "elevation", "1/range"), strict=True):
        for colour, style, snr_db in zip(COLOURS, ("o", "s", "^", "D"), levels, strict=False):
            here = [row for row in rows if row["coordinate"] == name and float(row["snr_db"]) == snr_db]
            steps = sorted({float(row["level"]) for row in here})
            shares = []
            for step in steps:
                cells = [row for row in here if float(row["level"]) == step]
                hits = np.array([int(row["hits"]) for row in cells])
                shares.append(float(hits @ [float(row["share"]) for row in cells] / hits.sum()))
            ax.plot(steps, shares, style + "-", ms=4, lw=1, c=colour, label=f"{snr_db:g} dB")
        ax.plot((0, 1), (0, 1), c="0.6", lw=1, zorder=0)
        ax.axvline(0.6827, c="0.8", lw=1, zorder=0)
        ax.set(title=name, xlabel="nominal level", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("share of hits in the interval")
    axes[0].legend(frameon=False, fontsize=8)
    return axes[0]


def reliability() -> Any:
    """What was stated against what came true, in the signal model and off it."""
    with (MEASURED / "probabilities.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    axes = new_axes(None, None, size=(8.4, 4.2))
    quantities = ("existence of a source", "number of sources", "error bars")
    for ax, name in zip(axes, ("in the model", "off the model"), strict=True):
        for colour, style, quantity in zip(COLOURS, ("o", "s", "^"), quantities, strict=False):
            here = [row for row in rows if row["set"] == name and row["quantity"] == quantity]
            stated, observed, cases = (
                np.array([float(row[key]) for row in here]) for key in ("stated", "observed", "cases")
            )
            spread = np.sqrt(np.clip(observed * (1 - observed), 0.01, None) / cases)
            label = f"{quantity}, ECE {float(here[0]['ece']):.3f}"
            ax.errorbar(stated, observed, spread, fmt=style + "-", ms=4, lw=1, c=colour, label=label)
        ax.plot((0, 1), (0, 1), c="0.6", lw=1, zorder=0)
        ax.set(title=name, xlabel="stated", xlim=(0, 1.02), ylim=(0, 1.05), aspect="equal")
        ax.legend(frameon=False, fontsize=8, loc="upper left")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("came true")
    return axes[0]


def room() -> Any:
    """Error ellipses of two sources in a room, of each of two panels alone and of both together."""
    rotations = ([[0, 0, 1, 0], [1, 0, 0, 2], [0, 1, 0, 1.5]], [[-1, 0, 0, 3], [0, 0, 1, 0], [0, 1, 0, 1.5]])
    poses = [torch.tensor([*rows, [0, 0, 0, 1]], dtype=torch.float64) for rows in rotations]
    places = torch.tensor([[2.0, 2.5, 1.3], [3.0, 1.5, 1.6]], dtype=torch.float64)
    made = []
    for seed, pose in enumerate(poses):
        sources = Sources.from_room(pose, places)
        one = simulate(ROOM, scenes=1, sources=sources, snr_db=5, seed=seed)
        made.append(replace(one, pose=pose))
    settings: dict[str, Any] = {"n_sources": 2, "method": "omp"}
    estimates = [*(locate(one, **settings) for one in made), locate_room(made, **settings)]
    (ax,) = new_axes(None, size=(6.4, 5.0))
    turn = np.linspace(0, 2 * np.pi, 200)
    circle = np.sqrt(-2 * np.log(0.05)) * np.stack((np.cos(turn), np.sin(turn)))
    for estimate, colour, name in zip(
        estimates, COLOURS, ("west panel alone", "south panel alone", "both together"), strict=False
    ):
        for source in range(2):
            middle = estimate.position_room[0, source, :2].numpy()
            root = np.linalg.cholesky(estimate.position_covariance_room[0, source, :2, :2].numpy())
            outline = middle[:, None] + root @ circle
            label, filled = (name if source == 0 else None), estimate is estimates[-1]
            ax.fill(*outline, fill=filled, fc=colour, ec=colour, lw=1.4, label=label, zorder=2 + filled)
    ax.plot(*places[:, :2].T.numpy(), "+", c="k", ms=11, mew=0.8, label="true positions", zorder=5)
    for one in made:
        assert one.pose is not None
        corners = one.elements[[0, -1]] * torch.tensor([1.0, 0, 1])
        on_wall = corners @ one.pose[:3, :3].mT + one.pose[:3, 3]
        ax.plot(*on_wall[:, :2].T.numpy(), c="0.2", lw=6, solid_capstyle="butt")
    ax.set(xlim=(-0.2, 4.6), ylim=(-0.2, 3.6), aspect="equal", xlabel="x / m (east)", ylabel="y / m (north)")
    ax.legend(frameon=False, loc="upper right")
    ax.grid(alpha=0.3)
    return ax


FIGURES: tuple[Callable[[], Any], ...] = (
    panel_frame,
    steering_phase,
    wave_bias,
    near_field,
    codebook_order,
    rician_factor,
    calibration,
    reliability,
    room,
    large_panel_tables.large_panel_growth,
    learning_test_tables.learning_curves,
)


def draw_all(folder: Path) -> None:
    """Draw every figure into ``folder``, a PNG named after its function."""
    for draw in FIGURES:
        save(draw(), folder / f"{draw.__name__}.png", overwrite=True)
    benchmark_tables.draw(folder)
