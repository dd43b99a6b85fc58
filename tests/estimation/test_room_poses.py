"""Errors of the poses of several panels: derivatives, test, fit, and the error bars that contain them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from rismusic import InputError, Recording, Sources, locate_room, simulate, write
from rismusic.cli import main
from rismusic.estimation.grid import Volume
from rismusic.estimation.room_fit import View, complete, joint_unconditional, refine_points
from rismusic.estimation.room_poses import PoseInformation, PoseStd, moved_pose
from rismusic.room import _with_pose_test
from rismusic.spec import SystemSpec

DIRECT = {
    "panel": {"rows": 6, "columns": 6},
    "channel": {"kind": "direct"},
    "codebook": {"snapshots": 16},
}
WEST, SOUTH, NORTH = (
    torch.tensor([*rows, [0, 0, 0, 1]], dtype=torch.float64)
    for rows in (
        [[0, 0, 1, 0], [1, 0, 0, 2], [0, 1, 0, 1.5]],
        [[-1, 0, 0, 3], [0, 0, 1, 0], [0, 1, 0, 1.5]],
        [[1, 0, 0, 2], [0, 0, -1, 4.5], [0, 1, 0, 1.2]],
    )
)
# A displacement (m) and a rotation (rad) of 3.7 cm and 0.8 deg.
ERROR = torch.tensor([0.03, -0.02, 0.01, 0.006, 0.01, -0.008], dtype=torch.float64)


def places(scenes: int, sources: int, seed: int = 0) -> torch.Tensor:
    """Positions in a room; the sources of a scene are in different halves."""
    generator = torch.Generator().manual_seed(seed)
    box = torch.tensor([3.6, 2.6 / sources, 1.0], dtype=torch.float64)
    points = torch.rand(scenes, sources, 3, dtype=torch.float64, generator=generator) * box
    points[..., 1] += torch.arange(sources) * 3.0 / sources
    return points + torch.tensor([0.8, 0.8, 1.0])


def room(
    points: torch.Tensor, errors: dict[int, torch.Tensor], poses=(WEST, SOUTH), snr_db=15.0, seed=0
) -> list[Recording]:
    """Recordings of panels, some of which stand elsewhere than recorded, off by their errors."""
    made = []
    for number, pose in enumerate(poses):
        there = moved_pose(pose, errors[number]) if number in errors else pose
        recording = simulate(
            SystemSpec(**({"snr_db": snr_db, "sources": points.shape[1]} | DIRECT)),
            scenes=len(points),
            sources=Sources.from_room(there, points),
            seed=100 * seed + number,
            dtype=torch.float64,
        )
        made.append(replace(recording, pose=pose, truth=None))
    return made


def standardised(found, points) -> torch.Tensor:
    """Mahalanobis distances of the positions from the nearest true ones, squared."""
    scene, source = found.sources.active.nonzero(as_tuple=True)
    error = found.position_room[scene, source][:, None] - points[scene]
    error = error[torch.arange(len(error)), error.norm(dim=-1).argmin(1)]
    solved = torch.linalg.solve(found.position_covariance_room[scene, source], error[..., None])[..., 0]
    return (error * solved).sum(-1)


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    return places(6, 2)


@pytest.fixture(scope="module")
def turned(points) -> list[Recording]:
    return room(points, {1: ERROR})


def views(made: list[Recording]) -> list[View]:
    return [View(recording.stacked(), recording.pose) for recording in made]


def test_gradient_by_the_poses(points, turned):
    part, active = views(turned), torch.ones(6, 2, dtype=torch.bool)
    levels = torch.tensor([0.3, -0.2, -2.0, 0.1, 0.4, -1.5], dtype=torch.float64).expand(6, 6)
    x = torch.cat((points.flatten(1) + 0.01, levels), dim=1)

    def value(errors: torch.Tensor) -> torch.Tensor:
        moved = [
            replace(view, pose=moved_pose(view.pose, error))
            for view, error in zip(part, errors.view(2, 6), strict=True)
        ]
        return joint_unconditional((moved, active), x, 2)[0]

    step = 1e-5
    moves = step * torch.eye(12, dtype=torch.float64)
    numeric = torch.stack([(value(d) - value(-d)) / (2 * step) for d in moves], dim=1)
    _, gradient, J = joint_unconditional((part, active), x, 2, poses=True)
    torch.testing.assert_close(gradient[:, :12], numeric, rtol=1e-4, atol=1e-2)
    _, plain, information = joint_unconditional((part, active), x, 2)
    torch.testing.assert_close(gradient[:, 12:], plain)
    torch.testing.assert_close(J[:, 12:, 12:], information)


@pytest.fixture(scope="module")
def solution(points, turned):
    active = torch.ones(6, 2, dtype=torch.bool)
    fit = refine_points(views(turned), points, active, Volume(1.0, 1.0, 1.0, 9.0))
    return fit, complete(views(turned), fit, Volume(1.0, 1.0, 1.0, 9.0))


def test_a_motion_of_everything_does_not_show(solution):
    """It displaces and turns all panels about one point of the room."""
    _, complete_fit = solution
    V = complete_fit.poses.information.sum(0)
    for axis in torch.eye(3, dtype=torch.float64):
        together = torch.cat([torch.cat((axis, torch.zeros(3)))] * 2)
        about = torch.cat([torch.cat((torch.linalg.cross(axis, p[:3, 3]), axis)) for p in (WEST, SOUTH)])
        for motion in (together, about):
            assert float(motion @ V @ motion) < 1e-8 * float(motion @ (V.diagonal() * motion))
    assert int((torch.linalg.eigvalsh(V) > 1e-9 * V.diagonal().max()).sum()) == 6


def test_error_bars_with_the_poses_unknown_are_those_of_the_joint_information(turned, solution):
    """One scene: the bound of poses, points and levels together, with the prior of the poses."""
    fit, _ = solution
    one, part = fit[torch.tensor([0])], [view[torch.tensor([0])] for view in views(turned)]
    plain = complete(part, one, Volume(1.0, 1.0, 1.0, 9.0))
    std = PoseStd(0.03, math.radians(1.0))
    _, covariance = plain.poses.total(torch.tensor([True])).fitted(std)
    wide = complete(part, one, Volume(1.0, 1.0, 1.0, 9.0), covariance).covariance[0].reshape(6, 6)
    levels = [
        torch.cat((panel.sources.power, panel.noise_variance[:, None]), dim=1).log() for panel in plain.panels
    ]
    x = torch.cat((one.points.flatten(1), *levels), dim=1)
    _, _, J = joint_unconditional((part, one.active), x, 2, poses=True)
    J = J[0] + torch.cat((1 / std.of_all(plain.poses.score[0]) ** 2, torch.zeros(12))).diag()
    torch.testing.assert_close(wide, J.inverse()[12:18, 12:18], rtol=1e-5, atol=0)
    assert (wide.diagonal() > 4 * plain.covariance[0].reshape(6, 6).diagonal()).all()


def test_p_values_and_fitted_errors_have_the_stated_distributions():
    """Drawn from the linear model: scores N(V e, V) of errors e ~ N(0, std^2)."""
    generator = torch.Generator().manual_seed(1)
    U, draws = 12, 2000
    scale = PoseStd(0.3, math.radians(6.0)).of_all(torch.zeros(U, dtype=torch.float64))
    root = torch.randn(U, 7, dtype=torch.float64, generator=generator) * 5 / scale[:, None]
    V = root @ root.mT  # as with a null space of all motions
    for std in (PoseStd(0.0, 0.0), PoseStd(0.05, math.radians(2.0))):
        spread = std.of_all(scale)
        errors = torch.randn(draws, U, dtype=torch.float64, generator=generator) * spread
        noise = torch.randn(draws, 7, dtype=torch.float64, generator=generator) @ root.mT
        made = [PoseInformation(u, V, V, 1, 1) for u in errors @ V + noise]
        p = torch.tensor([one.p_value(std) for one in made])
        for level in (0.01, 0.1, 0.5):
            margin = 4 * math.sqrt(level * (1 - level) / draws)
            assert abs(float((p < level).double().mean()) - level) < margin
        if std:
            left = torch.stack([one.fitted(std)[0] for one in made]) - errors
            _, covariance = made[0].fitted(std)
            root_of = torch.linalg.cholesky(covariance)
            whitened = torch.linalg.solve_triangular(root_of, left.mT, upper=False)
            torch.testing.assert_close(
                whitened @ whitened.mT / draws, torch.eye(U, dtype=torch.float64), rtol=0, atol=0.15
            )


def test_scores_at_fitted_poses_are_taken_back_to_the_recorded_ones():
    V = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    u, e = torch.ones(6, dtype=torch.float64), torch.full((6,), 0.1, dtype=torch.float64)
    there = PoseInformation(u - V @ e, V, V, 3, 1)
    torch.testing.assert_close(there.at_recorded(e).score, u)


def sizes(sentence: str) -> list[float]:
    """Rotation (deg) and displacement (cm) that a warning states, each with its standard deviation."""
    found = re.search(r"wrong by about ([\d.]+) \+- ([\d.]+) deg and ([\d.]+) \+- ([\d.]+) cm", sentence)
    assert found is not None, sentence
    return [float(value) for value in found.groups()]


def test_right_poses_are_not_doubted(points):
    found = locate_room(room(points, {}), n_sources=2, method="omp")
    assert found.pose_p_value.shape == (6,)
    assert float(found.pose_p_value[0]) > 1e-3
    assert found.warnings == [[]] * 6


def test_all_scenes_together_show_a_pose_that_is_a_little_wrong(points, turned):
    found = locate_room(turned, n_sources=2, method="omp")
    assert float(standardised(found, points).median()) > 25
    assert found.status == ["doubtful"] * 6
    reasons = {one for reasons in found.reasons for one in reasons if "the pose of" in one}
    assert len(reasons) == 1
    sentence = reasons.pop()
    assert sentence.startswith("the pose of panel 1 relative to panel 0 is wrong by about ")
    degrees, degrees_std, centimetres, centimetres_std = sizes(sentence)
    assert abs(degrees - 0.81) < 2 * degrees_std < 1.5
    assert abs(centimetres - 3.7) < 2 * centimetres_std < 7
    bars = re.search(r"moves the positions by ([\d.]+) of their error bars", sentence)
    assert float(bars[1]) == pytest.approx(float(standardised(found, points).mean() / 3) ** 0.5, rel=0.3)


def test_of_three_panels_the_wrong_one_is_named():
    places_of = places(3, 1)
    made = room(places_of, {0: 2 * ERROR}, (WEST, SOUTH, NORTH), snr_db=20.0)
    found = locate_room(made, n_sources=1, method="omp")
    assert all(
        any("the pose of panel 0 relative to the others is wrong" in one for one in reasons)
        for reasons in found.reasons
    )


def test_an_error_within_the_error_bars_is_a_note(points, solution):
    """Many scenes show it. None of their positions is off by much."""
    right = locate_room(room(points, {}), n_sources=2, method="omp")
    poses, certain = solution[1].poses.total(torch.ones(6, dtype=torch.bool)), PoseStd(0.0, 0.0)
    doubted = _with_pose_test(right, poses, certain)
    assert doubted.status == ["doubtful"] * 6
    small = replace(poses, pull=poses.pull / 1e4)
    noted = _with_pose_test(right, small, certain)
    assert noted.status == ["ok"] * 6
    assert all("moves the positions by 0.0" in words[0] for words in noted.warnings)


def test_one_odd_scene_does_not_condemn_the_poses(points):
    """Its recordings are of different sources."""
    made = room(points, {})
    others = room(points.flip(0) + torch.tensor([0.4, 0.1, 0.2]), {}, seed=1)[1]
    snapshots = made[1].snapshots.clone()
    snapshots[2] = others.snapshots[2]
    found = locate_room([made[0], replace(made[1], snapshots=snapshots)], n_sources=2, method="omp")
    assert found.status == ["ok", "ok", "doubtful", "ok", "ok", "ok"]
    assert float(found.pose_p_value[0]) > 1e-3


def test_scenes_without_sources_keep_their_status(points, turned):
    number = torch.tensor([2, 2, 2, 2, 2, 0])
    found = locate_room(turned, n_sources=number, method="omp")
    named = [any("the pose of" in one for one in words) for words in found.warnings]
    assert named == [True] * 5 + [False]


def test_the_command_line_fits_poses_as_well(turned, tmp_path, capsys):
    for name, recording in zip(("west.h5", "south.h5"), turned, strict=True):
        write(tmp_path / name, recording)
    command = ["locate", str(tmp_path / "west.h5"), "--sources", "2", "--method", "omp"]
    accuracy = ["--pose-std-deg", "0.5", "--pose-std-m", "0.02"]
    fused = [*command, "--fuse", str(tmp_path / "south.h5"), *accuracy, "-o", str(tmp_path / "a.json")]
    assert main(fused) == 0
    found = locate_room(turned, n_sources=2, method="omp", pose_std_deg=0.5, pose_std_m=0.02)
    scenes = json.loads((tmp_path / "a.json").read_text())["scenes"]
    x = [source["x_room_m"] for scene in scenes for source in scene["sources"]]
    np.testing.assert_allclose(x, found.position_room[..., 0].flatten(), rtol=1e-3)
    assert main([*command, *accuracy]) == 0
    assert "--pose-std-deg has no effect: it needs --fuse" in capsys.readouterr().err


@pytest.mark.parametrize("n_sources", [2, None])
def test_poses_are_fitted(points, turned, n_sources):
    """Twice the standard deviation is allowed for, and the number of sources need not be known."""
    found = locate_room(turned, n_sources=n_sources, method="omp", pose_std_deg=0.5, pose_std_m=0.02)
    assert found.n_sources.tolist() == [2] * 6
    assert found.status == ["ok"] * 6
    assert float(standardised(found, points).max()) < 16
    # The frame is that of the recorded pose, in which all panels have the same positions.
    torch.testing.assert_close(found.pose, WEST)
    for panel in found.panels:
        torch.testing.assert_close(found.position_room, panel.position_room, equal_nan=True)
    # Only the relative pose is known: where the second panel sees the first one.
    first, second = (one.pose for one in found.panels)
    relative = torch.linalg.solve(second, first)
    true = torch.linalg.solve(moved_pose(SOUTH, ERROR), WEST)
    recorded = torch.linalg.solve(SOUTH, WEST)
    assert float((relative - true).norm()) < 0.25 * float((recorded - true).norm())


def test_a_fit_of_poses_that_does_not_converge_is_named(turned, monkeypatch):
    monkeypatch.setattr("rismusic.room._POSE_STEPS", 1)
    found = locate_room(turned, n_sources=2, method="omp", pose_std_deg=0.5, pose_std_m=0.02)
    assert all("the fit of the poses did not converge" in reasons for reasons in found.reasons)


def test_error_bars_contain_the_errors_of_the_poses():
    """Poses of all panels drawn from the stated distribution."""
    std = PoseStd(0.03, math.radians(1.0))
    generator = torch.Generator().manual_seed(5)
    distances = []
    for seed in range(12):
        points = places(4, 1, seed)
        drawn = torch.randn(2, 6, dtype=torch.float64, generator=generator)
        errors = drawn * std.of_all(drawn[0])
        made = room(points, dict(enumerate(errors)), seed=seed + 1)
        found = locate_room(made, n_sources=1, method="omp", pose_std_deg=1.0, pose_std_m=0.03)
        distances.append(standardised(found, points))
        assert float(found.pose_p_value[0]) > 1e-4
    # 12 independent rooms: chi-squared with 3 degrees of freedom each.
    mean = torch.stack(distances).mean() / 3
    assert 0.4 < float(mean) < 1.8


def test_errors_beyond_the_stated_ones_are_noticed(turned):
    found = locate_room(turned, n_sources=2, method="omp", pose_std_deg=0.02, pose_std_m=0.001)
    assert all(
        any("more than the given standard deviations allow" in one for one in reasons)
        for reasons in found.reasons
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"pose_std_deg": -1.0}, "pose_std_deg: must be 0 to 20 deg; got -1"),
        ({"pose_std_m": math.nan}, "pose_std_m: must be 0 to 1 m; got nan"),
        ({"pose_std_m": 3.0}, "pose_std_m: must be 0 to 1 m; got 3"),
    ],
)
def test_standard_deviations_that_cannot_be(turned, given, sentence):
    with pytest.raises(InputError, match=f"^{sentence}"):
        locate_room(turned, **given)


def test_information_that_rounding_made_indefinite():
    """The Schur complement of large numbers leaves errors of either sign, which are no information."""
    V = torch.diag(torch.tensor([-1e6] * 3 + [1e8] * 3 + [4.0] * 6, dtype=torch.float64))
    score = torch.full((12,), 1e3, dtype=torch.float64)
    poses = PoseInformation(score, V, V.abs(), 3, 1)
    _, covariance = poses.fitted(PoseStd(0.1, 0.1))
    assert torch.linalg.eigvalsh(covariance).min() >= 0
    assert covariance[0, 0] == pytest.approx(0.01)
    assert covariance[3, 3] == pytest.approx(1e-8, rel=1e-3)
    poses.likeliest()
