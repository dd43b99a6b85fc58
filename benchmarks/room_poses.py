"""Rooms in which the recorded pose of one panel is wrong: how often a wrong position is silent.

Two or three panels of 8 x 8 elements on walls, 1 to 3 sources at 10 or 20 dB, drawn anew for each recording.
The last panel stands elsewhere than its recorded pose says. A scene is wrong if a position is more than five
error bars off, and silent if its status is ``ok`` and no warning names its poses::

    python benchmarks/room_poses.py --recordings 20 --csv docs/measured/room_poses.csv
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from rismusic.io import Recording
from rismusic.room import RoomEstimate, locate_room
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import ChannelSpec, CodebookSpec, PanelSpec, SystemSpec

WALLS = (
    [[0, 0, 1, 0], [1, 0, 0, 2], [0, 1, 0, 1.5], [0, 0, 0, 1]],
    [[-1, 0, 0, 3], [0, 0, 1, 0], [0, 1, 0, 1.5], [0, 0, 0, 1]],
    [[1, 0, 0, 2], [0, 0, -1, 4.5], [0, 1, 0, 1.2], [0, 0, 0, 1]],
)
SYSTEM = SystemSpec(
    panel=PanelSpec(rows=8, columns=8),
    channel=ChannelSpec(kind="direct"),
    codebook=CodebookSpec(snapshots=16),
)
ERRORS = ((0, 0), (0.3, 0), (1, 0), (3, 0), (0, 0.01), (0, 0.03), (0, 0.1))
"""Rotation (deg) and displacement (m) of the last panel."""
_APART_M, _BARS = 0.8, 5.0


def unit(random: np.random.Generator) -> np.ndarray:
    """A direction at random."""
    value = random.normal(size=3)
    return value / np.linalg.norm(value)


def places(random: np.random.Generator, scenes: int, sources: int) -> np.ndarray:
    """Positions in a room of 4 m x 3 m x 1 m, [scenes, sources, 3], apart from each other."""
    made: list[np.ndarray] = []
    while len(made) < scenes:
        points = np.array([0.7, 0.7, 1.0]) + random.random((sources, 3)) * np.array([4.0, 3.0, 1.0])
        distance = np.linalg.norm(points[:, None] - points, axis=-1)
        if (distance[np.triu_indices(sources, 1)] >= _APART_M).all():
            made.append(points)
    return np.stack(made)


def room(
    random: np.random.Generator, scenes: int, degrees: float, metres: float
) -> tuple[list[Recording], np.ndarray]:
    """Recordings of the panels of one room, and the positions of the sources."""
    panels, sources, snr_db = int(random.integers(2, 4)), int(random.integers(1, 4)), random.choice((10, 20))
    points = places(random, scenes, sources)
    recordings = []
    for number in range(panels):
        pose = np.array(WALLS[number], dtype=float)
        recorded = pose.copy()
        if number == panels - 1:
            turn = Rotation.from_rotvec(math.radians(degrees) * unit(random)).as_matrix()
            recorded[:3, :3] = turn @ pose[:3, :3]
            recorded[:3, 3] += metres * unit(random)
        made = simulate(
            SYSTEM.replace(snr_db=float(snr_db), sources=sources),
            scenes=scenes,
            sources=Sources.from_room(pose, points),
            seed=int(random.integers(2**31)),
        )
        recordings.append(replace(made, pose=torch.from_numpy(recorded), truth=None))
    return recordings, points


def wrong(found: RoomEstimate, points: np.ndarray) -> np.ndarray:
    """Scenes with a position more than five error bars off."""
    error = found.position_room[:, :, None] - torch.from_numpy(points)[:, None]
    nearest = error.norm(dim=-1).nan_to_num(torch.inf).argmin(2)[..., None, None]
    error = error.take_along_dim(nearest, dim=2)[:, :, 0]
    std = found.position_covariance_room.diagonal(dim1=-2, dim2=-1).sqrt()
    return (error.abs() > _BARS * std).any(-1).any(-1).numpy()


def measure(degrees: float, metres: float, scenes: int, options: argparse.Namespace) -> dict[str, object]:
    """One row of the table."""
    random = np.random.default_rng([options.seed, scenes, round(10 * degrees), round(100 * metres)])
    total = dict.fromkeys(("scenes", "wrong", "silent before", "silent", "doubtful", "fitted: wrong"), 0)
    rejected = 0
    for _ in range(options.recordings):
        recordings, points = room(random, scenes, degrees, metres)
        n_sources = None if options.count_unknown else points.shape[1]
        found = locate_room(recordings, n_sources=n_sources, method="omp")
        bad = wrong(found, points)
        of_pose = np.array([any("the pose of" in one for one in reasons) for reasons in found.reasons])
        others = np.array([any("the pose of" not in one for one in reasons) for reasons in found.reasons])
        named = np.array([any("the pose of" in one for one in words) for words in found.warnings])
        rejected += bool(named.any())
        total["scenes"] += scenes
        total["wrong"] += int(bad.sum())
        total["silent before"] += int((bad & ~others).sum())
        total["silent"] += int((bad & ~others & ~named).sum())
        total["doubtful"] += int((of_pose | others).sum())
        fitted = locate_room(
            recordings,
            n_sources=n_sources,
            method="omp",
            pose_std_deg=options.std_deg,
            pose_std_m=options.std_m,
        )
        total["fitted: wrong"] += int(wrong(fitted, points).sum())
    return {"deg": degrees, "m": metres, "scenes each": scenes, "recordings named": rejected, **total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recordings", type=int, default=20, help="of each row")
    parser.add_argument("--scenes", type=int, nargs="+", default=[1, 6, 40], help="of a recording")
    parser.add_argument("--count-unknown", action="store_true", help="the number of sources is not given")
    parser.add_argument("--std-deg", type=float, default=2.0, help="of the poses that are fitted")
    parser.add_argument("--std-m", type=float, default=0.05, help="of the poses that are fitted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for scenes in options.scenes:
        for degrees, metres in ERRORS:
            rows.append(measure(degrees, metres, scenes, options))
            print(rows[-1], flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
