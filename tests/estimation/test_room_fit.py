"""Sources of several panels of one room, fitted together, and their bound."""

from __future__ import annotations

import math
from dataclasses import replace

import h5py
import pytest
import torch

from rismusic import (
    InputError,
    Recording,
    RoomEstimate,
    Sources,
    locate,
    locate_room,
    room_crb,
    simulate,
    unconditional_crb,
    write,
)
from rismusic.array import steering
from rismusic.cli import main
from rismusic.estimation.estimate import fit_at
from rismusic.estimation.grid import Volume
from rismusic.estimation.model_order import log_evidence
from rismusic.estimation.room_fit import (
    View,
    conditional_values,
    joint_conditional,
    joint_unconditional,
    refine_points,
    room_evidence,
)
from rismusic.sources import coordinate_derivatives, from_panel_coordinates, to_panel_coordinates
from rismusic.spec import LocateSpec, SystemSpec

DIRECT = {
    "panel": {"rows": 5, "columns": 5},
    "channel": {"kind": "direct"},
    "codebook": {"snapshots": 12},
}
PLACES = torch.tensor([[2.0, 1.5, 1.2], [3.2, 2.6, 1.6]], dtype=torch.float64)


def pose(normal: list[float], at: list[float]) -> torch.Tensor:
    """A panel at a place of the room (z up), with this normal."""
    z = torch.nn.functional.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(z.new_tensor([0.0, 0, 1]), z), dim=0)
    made = torch.eye(4, dtype=torch.float64)
    made[:3, :3] = torch.stack((x, torch.linalg.cross(z, x), z), dim=1)
    made[:3, 3] = z.new_tensor(at)
    return made


WEST, SOUTH = pose([1.0, 0, 0], [0.0, 2, 1.5]), pose([0, 1.0, 0], [3.0, 0, 1.5])


def recordings(
    points: torch.Tensor,
    poses: tuple[torch.Tensor, ...] = (WEST, SOUTH),
    *,
    scenes: int = 1,
    **system: object,
) -> list[Recording]:
    """One recording for each panel, with noise and symbols of its own."""
    return [
        replace(
            simulate(
                SystemSpec(**({"snr_db": 15.0, "sources": len(points)} | DIRECT | system)),
                scenes=scenes,
                sources=Sources.from_room(one, points),
                seed=number,
                dtype=torch.float64,
            ),
            pose=one,
        )
        for number, one in enumerate(poses)
    ]


@pytest.fixture(scope="module")
def made() -> list[Recording]:
    return recordings(PLACES)


def views(made: list[Recording]) -> list[View]:
    return [View(recording.stacked(), recording.pose) for recording in made]


def test_coordinates_of_panel_and_room():
    for one in (WEST, pose([1.0, -2, 0.5], [1.0, 2, 3])):
        q = to_panel_coordinates(one, PLACES)
        torch.testing.assert_close(from_panel_coordinates(one, q), PLACES)
        moves = 1e-6 * torch.eye(3, dtype=torch.float64)
        numeric = [
            (to_panel_coordinates(one, PLACES + d) - to_panel_coordinates(one, PLACES - d)) / 2e-6
            for d in moves
        ]
        torch.testing.assert_close(coordinate_derivatives(one, q), torch.stack(numeric, -1))
    behind = Sources.from_room(WEST, [[-1.0, 2, 1.5], [1, 2, 1.5]])
    assert behind.active.tolist() == [False, True]
    kept = Sources.from_room(WEST, [[-1.0, 2, 1.5]], behind=True)
    assert abs(float(kept.azimuth)) == pytest.approx(math.pi)


def test_gradients_are_those_of_the_likelihoods(made):
    part = views(made), torch.ones(1, 2, dtype=torch.bool)
    levels = torch.tensor([[0.3, -0.2, -2.0, 0.1, 0.4, -1.5]], dtype=torch.float64)
    start = PLACES.flatten()[None] + 0.01

    def unconditional(x):
        return joint_unconditional(part, x, 2)

    for function, x in ((unconditional, torch.cat((start, levels), 1)), (joint_conditional, start)):
        evaluate = function if function is unconditional else (lambda x: joint_conditional(part, x))
        step = 1e-5
        numeric = [
            (evaluate(x + d)[0] - evaluate(x - d)[0]) / (2 * step)
            for d in step * torch.eye(x.shape[1], dtype=x.dtype)
        ]
        torch.testing.assert_close(evaluate(x)[1][0], torch.cat(numeric), rtol=1e-4, atol=1e-3)


def dense_information(made: list[Recording], noise: list[float], power: torch.Tensor) -> torch.Tensor:
    """Fisher information of the joint Gaussian model, from covariance matrices and numeric derivatives."""

    def covariances(x: torch.Tensor) -> torch.Tensor:
        parts = []
        for number, recording in enumerate(made):
            own = x[6 + 3 * number : 9 + 3 * number]
            T = recording.pose
            place = torch.cat((x[:6].view(2, 3), torch.ones(2, 1, dtype=x.dtype)), 1) @ T.inverse().T
            d = place[:, :3]
            A = steering(
                recording.panel,
                torch.atan2(d[:, 0], d[:, 2]),
                torch.asin(d[:, 1] / d.norm(dim=1)),
                d.norm(dim=1),
            )
            R = (A * own[:2]) @ A.mH + own[2] * torch.eye(len(A), dtype=A.dtype)
            parts.append(R)
        return torch.stack(parts)

    x = torch.cat((PLACES.flatten(), *(torch.cat((power[i], torch.tensor([noise[i]]))) for i in range(2))))
    step = 1e-6
    moves = step * torch.eye(len(x), dtype=x.dtype)
    slopes = torch.stack([(covariances(x + d) - covariances(x - d)) / (2 * step) for d in moves])
    inverse = covariances(x).inverse()
    L = made[0].snapshots.shape[1]
    product = inverse @ slopes  # [U, P, N, N]
    return L * torch.einsum("upab,vpba->uv", product, product).real


def test_bound_is_that_of_the_joint_gaussian_model(made):
    power = torch.stack([recording.truth.power[0] for recording in made])
    J = dense_information(made, [float(r.noise_variance) for r in made], power)
    expected = J.inverse()[:6, :6]
    bound = room_crb(made, "unconditional").covariance[0].reshape(6, 6)
    torch.testing.assert_close(bound, expected, rtol=1e-5, atol=0)
    # Without the other panel every variance is larger.
    single = room_crb(made[:1], "unconditional").std
    assert (single > room_crb(made, "unconditional").std).all()


def test_bound_of_one_panel_is_that_of_the_panel(made):
    one = made[0]
    bound = unconditional_crb(one.panel, one.link, one.truth, one.noise_variance, snapshots=12)
    torch.testing.assert_close(
        room_crb([one], "unconditional").position_error, bound.position_error(one.truth.elevation)
    )


def test_a_panel_that_does_not_see_a_source_adds_nothing_on_it():
    place = PLACES[:1]
    away = pose([1.0, 0, 0], [2.5, 2, 1.5])  # the source is behind it
    one, two = recordings(place), recordings(torch.cat((place, PLACES[1:])), (WEST, away))
    assert two[1].truth.active.tolist() == [[False, True]]
    bound = room_crb([two[0], two[1]], "conditional")
    alone = room_crb([two[0]], "conditional")
    assert bound.std.isfinite().all()
    assert (bound.std[0, 1] < alone.std[0, 1]).all()
    del one
    found = locate_room(two, n_sources=2, method="omp")
    order = torch.cdist(PLACES, found.position_room[0]).argmin(1)
    seen = [panel.sources.active[0, order].tolist() for panel in found.panels]
    assert seen == [[True, True], [False, True]]


def test_errors_are_near_the_bound_and_better_than_of_one_panel():
    generator = torch.manual_seed(0)
    points = torch.rand(40, 1, 3, dtype=torch.float64, generator=generator) * torch.tensor([3.0, 3, 1])
    points = points + torch.tensor([1.0, 1, 1])
    made = recordings(points, scenes=40, snr_db=10.0)
    found = locate_room(made, n_sources=1, method="omp")
    error = (found.position_room - points)[:, 0]
    bound = room_crb(made, "unconditional")
    ratio = (error.square().sum(-1) / bound.position_error[:, 0].square()).mean().sqrt()
    assert 0.8 < float(ratio) < 1.25
    C = found.position_covariance_room[:, 0]
    normalised = (error[:, None] @ C.inverse() @ error[..., None]).mean() / 3
    assert 0.7 < float(normalised) < 1.4
    assert (found.agreement_p_value > 1e-4).all()
    assert (found.p_value > 1e-4).all()
    single = locate(made[0], n_sources=1, method="omp").position_covariance_room
    assert float(single.diagonal(dim1=-2, dim2=-1).sum(-1).median()) > 4 * float(
        C.diagonal(dim1=-2, dim2=-1).sum(-1).median()
    )


def test_two_sources_are_not_mixed_up():
    """The rays of two sources cross at four points; the wrong two are ghosts."""
    points = torch.tensor([[2.0, 2.5, 1.5], [3.0, 1.5, 1.5]], dtype=torch.float64)
    found = locate_room(recordings(points, snr_db=20.0), n_sources=2, method="omp")
    assert float(torch.cdist(points, found.position_room[0]).amin(1).max()) < 0.1
    assert found.warnings == [[]]


def test_evidence_of_one_panel_is_that_of_the_panel(made):
    one = made[0].stacked()
    fit = fit_at(one, one.truth, None)
    volume = Volume.from_spec(LocateSpec())
    points = from_panel_coordinates(WEST, torch.stack((*one.truth.filled()[:2], 1 / one.truth.range), -1))
    room = refine_points(views(made[:1]), points, one.truth.active, volume)
    near = from_panel_coordinates(WEST, torch.stack((*fit.sources.filled()[:2], 1 / fit.sources.range), -1))
    here = room_evidence(views(made[:1]), replace(room, points=near), volume)
    torch.testing.assert_close(here, log_evidence(one, fit, volume), rtol=0, atol=1e-2)


def test_candidates_are_compared_by_the_likelihood(made):
    part = views(made)
    active = torch.ones(1, 1, dtype=torch.bool)
    candidates = torch.stack((PLACES[1], PLACES[1] + 0.3))[None]
    values = conditional_values(part, PLACES[None, :1], active, candidates)
    both = torch.ones(1, 2, dtype=torch.bool)
    for i in range(2):
        x = torch.cat((PLACES[0], candidates[0, i]))[None]
        torch.testing.assert_close(values[:, i], joint_conditional((part, both), x)[0])
    assert values[0, 0] < values[0, 1]


def test_number_of_sources_by_joint_evidence():
    """At 0 dB one panel alone is less sure of the two sources."""
    made = recordings(PLACES, snr_db=3.0)
    found = locate_room(made, method="omp", sources_max=2)
    assert isinstance(found, RoomEstimate)
    assert found.n_sources.tolist() == [2]
    assert found.n_sources_probability.shape == (1, 3)
    assert float(found.n_sources_probability[0, 2]) > 0.9
    noise = [replace(r, snapshots=torch.randn_like(r.snapshots), noise_variance=None) for r in made]
    assert locate_room(noise, method="omp", sources_max=1).n_sources.tolist() == [0]


def test_pilots_tell_which_source_is_which():
    made = recordings(PLACES, scene={"symbols": "pilots"})
    found = locate_room(made, method="omp")
    assert float((found.position_room[0] - PLACES).norm(dim=-1).max()) < 0.1
    mixed = [made[0], replace(made[1], symbols="independent", pilots=None)]
    with pytest.raises(InputError, match=r"recordings\[1\]\.pilots: missing"):
        locate_room(mixed)


def test_a_wrong_pose_is_noticed(made):
    moved = replace(made[1], pose=pose([0, 1.0, 0.3], [3.6, 0, 1.5]))
    found = locate_room([made[0], moved], n_sources=2, method="omp")
    assert "the panels disagree" in found.warnings[0][0]
    assert found.status == ["doubtful"]


def test_a_wrong_pose_is_noticed_if_the_number_is_unknown(made):
    """Each panel then has its own two sources, which the other one does not receive."""
    moved = replace(made[1], pose=pose([0, 1.0, 0.3], [3.6, 0, 1.5]))
    found = locate_room([made[0], moved], method="omp", sources_max=4)
    assert found.status == ["doubtful"]
    assert any("received by one of the panels" in word for word in found.warnings[0])
    assert not any(
        "received by one" in word for word in locate_room(made, method="omp", sources_max=4).warnings[0]
    )


def test_recordings_of_different_sources_are_noticed(made):
    """Status and warnings question the estimate although no diagnosis is made."""
    elsewhere = recordings(PLACES + 40.0)
    found = locate_room([made[0], elsewhere[1]], n_sources=2, method="omp")
    assert sum("is received by one of the panels" in sentence for sentence in found.reasons[0]) == 2
    assert sum(": the residual has" in sentence for sentence in found.reasons[0]) == 1
    assert found.status == ["doubtful"]


def test_panels_of_different_kinds_are_fused(made):
    """Each panel keeps its wavelength, elements, subcarriers and symbols."""
    others = (
        {"panel": {"rows": 4, "columns": 8, "wavelength_m": 0.1}},
        {"wideband": {"subcarriers": 3}},
        {"scene": {"symbols": "constant"}},
    )
    for system in others:
        mixed = [recordings(PLACES[:1])[0], recordings(PLACES[:1], **system)[1]]
        found = locate_room(mixed, n_sources=1, method="omp")
        assert float((found.position_room[0] - PLACES[:1]).norm()) < 0.1
        assert found.status == ["ok"]


def test_contradictions(made):
    with pytest.raises(InputError, match=r"recordings\[1\]\.pose: missing"):
        locate_room([made[0], replace(made[1], pose=None)])
    several = recordings(PLACES, scenes=2)
    with pytest.raises(InputError, match=r"recordings\[1\]\.snapshots: must have 1 scenes .* got 2"):
        locate_room([made[0], several[1]])
    for settings in (
        {"panel_error": 0.1},
        {"unknowns": ("azimuth", "range")},
        {"range_max_m": math.inf},
        {"noise": "impulsive"},
        {"symbols": "correlated"},
    ):
        with pytest.raises(InputError, match="several panels are fused"):
            locate_room(made, **settings)
    shifted = replace(made[1], truth=replace(made[1].truth, range=made[1].truth.range + 0.5))
    with pytest.raises(InputError, match=r"recordings\[1\]\.truth: source 0 of scene 0 is 0\.5 m"):
        room_crb([made[0], shifted])


def altered(**changes):
    """The pose of the second panel with some entries changed; names are row and column, as in ``r0c2``."""
    changed = SOUTH.clone()
    for name, value in changes.items():
        changed[int(name[1]), int(name[3])] = value
    return changed


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (SOUTH * torch.tensor([-1.0, 1, 1, 1]), "its determinant is -1, a reflection"),
        (altered(r0c0=0.5), "must be a rotation"),
        (SOUTH * torch.tensor([2.0, 2, 2, 1]), "must be a rotation"),
        (altered(r0c3=math.nan), "must be finite"),
        (altered(r3c0=1.0), "the last row must be 0 0 0 1"),
        (SOUTH[:3], r"of shape \[4, 4\]; got \[3, 4\]"),
    ],
)
@pytest.mark.parametrize("function", [locate_room, room_crb])
@pytest.mark.usefixtures("untyped")
def test_a_pose_that_is_no_rotation_is_refused(function, wrong, sentence, made):
    with pytest.raises(InputError, match=rf"^recordings\[1\]\.pose: .*{sentence}"):
        function([made[0], replace(made[1], pose=wrong)])


@pytest.mark.parametrize(
    ("n_sources", "sentence"),
    [
        (-1, "sources: expected at least 0"),
        (30, r"recordings\[0\]\.sources: L = 12 snapshots of M = 25 antennas identify at most 22"),
        (torch.tensor([1, 1]), r"recordings\[0\]\.sources: give one number per scene \(1\); got 2"),
        (torch.tensor([-1]), r"recordings\[0\]\.sources: must not be negative; got -1"),
        (
            torch.tensor([1.0]),
            r"recordings\[0\]\.sources: must be whole numbers; got a tensor of torch.float32",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_numbers_of_sources_that_cannot_be(n_sources, sentence, made):
    with pytest.raises(InputError, match=f"^{sentence}"):
        locate_room(made, n_sources=n_sources)


def test_no_recording_and_no_scene(made):
    with pytest.raises(InputError, match="recordings: needs at least one recording"):
        locate_room([])
    with pytest.raises(InputError, match=r"recordings\[0\]\.snapshots: there is no scene"):
        locate_room([one[:0] for one in made], n_sources=1)


def test_scenes_of_a_room_estimate():
    made = recordings(PLACES[:1], scenes=3)
    found = locate_room(made, n_sources=torch.tensor([1, 0, 1]), method="omp")
    assert found.n_sources.tolist() == [1, 0, 1]
    last = found[2]
    assert isinstance(last, RoomEstimate)
    assert [len(panel) for panel in last.panels] == [1, 1]
    assert float(last.panels[1].snr_db[0, 0]) == float(found.panels[1].snr_db[2, 0])
    power = sum(10 ** (float(panel.snr_db[0, 0]) / 10) for panel in found.panels)
    assert float(found.snr_db[0, 0]) == pytest.approx(10 * math.log10(power))


def test_command_line(made, tmp_path, capsys):
    files = [tmp_path / "west.h5", tmp_path / "south.h5"]
    for file, recording in zip(files, made, strict=True):
        write(file, recording)
    command = ["locate", str(files[0]), "--fuse", str(files[1]), "--method", "omp", "--sources", "2"]
    assert main(command) == 0
    assert "2 panels" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "a.csv")]) == 0
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert len(rows) == 3
    assert rows[0].endswith("x_room_std_m,y_room_std_m,z_room_std_m")
    mirrored = SOUTH * torch.tensor([-1.0, 1, 1, 1])
    for other, sentence in (
        (replace(made[1], pose=None), "south.h5: pose: missing"),
        (recordings(PLACES, scenes=2)[1], "south.h5: has 2 scenes, "),
    ):
        write(files[1], other, overwrite=True)
        assert main(command) == 2
        assert sentence in capsys.readouterr().err
    write(files[1], made[1], overwrite=True)
    with h5py.File(files[1], "r+") as file:
        file["pose"][:] = mirrored
    assert main(command) == 2
    assert "determinant is -1" in capsys.readouterr().err
    write(files[1], made[1], overwrite=True)
    assert main([*command, "--calibration", str(files[1])]) == 2
    assert "--calibration: is of one panel and cannot be combined with --fuse" in capsys.readouterr().err
