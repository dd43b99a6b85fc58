"""Joint fit of a panel to all scenes: against dense equations, and against the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rismusic.array import Panel, steering
from rismusic.errors import InputError
from rismusic.estimation.grid import Volume
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.estimation.panel_fit import Problem, System, Unknowns, fit_panel
from rismusic.simulation.simulator import simulate
from rismusic.spec import HardwareSpec, LocateSpec

VOLUME = Volume.from_spec(LocateSpec())
SMALL = {"panel": {"rows": 3, "columns": 4}, "codebook": {"snapshots": 5}}
ERRORS = HardwareSpec(static_phase_rad=0.1, gain=0.05, position_wavelengths=0.02)
SIZES = {"panel_error": 0.15, "position_error": 0.003, "remaining_error": 0.0}


def _model(recording, at: Unknowns, s: Tensor) -> Tensor:
    """Signals [S, L, M] by dense matrices."""
    panel = Panel(recording.elements + at.d, recording.wavelength, recording.wave)
    azimuth, elevation, q = at.x.unbind(-1)
    A = steering(panel, azimuth, elevation, 1 / q).to(torch.complex128) * recording.truth.active[:, None]
    field = (1 + at.e) * (s @ A.mT)
    if recording.channel is None:
        return field
    return (recording.codes.to(torch.complex128) * field) @ recording.channel.to(torch.complex128).mT


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_step_solves_the_dense_equations(direct, known):
    """All unknowns of all scenes as real numbers; derivatives by finite differences of the model."""
    recording = simulate(
        scenes=2, sources=(1, 2), snr_db=20, hardware=ERRORS, one_panel=True, dtype=torch.float64, seed=3,
        **SMALL | {
            "panel": SMALL["panel"] | {"wave": "uniform"},
            "channel": {"kind": "direct"} if direct else {"antennas": 6},
        },
    )  # fmt: skip
    assert recording.truth.active.sum(-1).tolist() == [2, 1]
    x, active = unpack(recording.truth, recording)
    generator = torch.Generator().manual_seed(1)
    N, (S, K), L = len(recording.elements), active.shape, 5
    power = torch.where(active, recording.truth.power.double(), 1)
    problem = Problem(recording, active, power, VOLUME, known_positions=known)
    at = Unknowns(
        0.1 * torch.randn(N, dtype=torch.complex128, generator=generator),
        0.004 * torch.randn(N, 3, dtype=torch.float64, generator=generator),
        x + torch.where(active[..., None], 2e-3, 0.0),
    )
    prior = 0.01 * (0.2 + torch.rand(5 * N, dtype=torch.float64, generator=generator))
    prior[2 * N :] *= 1e-3
    step, follow = problem.system(at, prior).solve()
    s, _ = problem.residuals(at)

    def rest(values: Tensor) -> Tensor:
        """All weighted residuals, as real numbers."""
        panel, coordinates, real, imaginary = values.split([5 * N, 3 * S * K, S * L * K, S * L * K])
        moved = at.moved(panel, at.x + coordinates.view_as(x) * active[..., None])
        sent = s + torch.complex(real, imaginary).view(S, L, K)
        y = (recording.snapshots - _model(recording, moved, sent)) / recording.noise_variance[
            :, None, None
        ].sqrt()
        symbols = sent / power[:, None].sqrt()
        return torch.cat(
            (
                torch.view_as_real(y).flatten(),
                torch.view_as_real(symbols).flatten(),
                moved.parts() / (2 * prior).sqrt(),
            )
        )

    n = 5 * N + 3 * S * K + 2 * S * L * K
    zero, h = torch.zeros(n, dtype=torch.float64), 1e-6
    columns = [(rest(zero + h * row) - rest(zero - h * row)) / (2 * h) for row in torch.eye(n).double()]
    free = torch.ones(n, dtype=torch.bool)
    if known:
        free[5 * N : 5 * N + 3 * S * K] = False
    J = torch.stack(columns, dim=1)[:, free]
    expected = zero.clone()
    expected[free] = torch.linalg.lstsq(J, -rest(zero)[:, None], driver="gelsd").solution[:, 0]
    # Steering vectors of a uniform wave have a constant norm. The derivative by the offsets leaves it out.
    torch.testing.assert_close(step, expected[: 5 * N], atol=1e-5 * float(step.abs().max()), rtol=1e-4)
    if known:
        assert follow == []
        return
    moved = torch.stack(follow).flatten()
    reach = float(moved.abs().max())
    torch.testing.assert_close(moved, expected[5 * N : 5 * N + 3 * S * K], atol=1e-5 * reach, rtol=1e-4)


def test_the_symbols_have_the_highest_posterior_density():
    recording = simulate(scenes=2, sources=2, snr_db=20, dtype=torch.float64, **SMALL)
    x, active = unpack(recording.truth, recording)
    problem = Problem(recording, active, recording.truth.power, VOLUME, known_positions=True)
    N = len(recording.elements)
    at = Unknowns(torch.zeros(N, dtype=torch.complex128), torch.zeros(N, 3, dtype=torch.float64), x)
    s, rest = problem.residuals(at)

    def density(symbols: Tensor) -> float:
        energy = torch.view_as_real(recording.snapshots - _model(recording, at, symbols)).square()
        fit = energy.sum((1, 2, 3)) / recording.noise_variance
        return float((fit + (symbols.abs().square() / recording.truth.power[:, None]).sum((1, 2))).sum())

    torch.testing.assert_close(rest, recording.snapshots - _model(recording, at, s))
    assert all(density(s) < density(s + change) for change in (1e-3, -1e-3, 1e-3j, -1e-3j))


@pytest.mark.parametrize("direct", [False, True])
def test_known_positions_give_the_responses(direct):
    kind = {"kind": "direct"} if direct else {"antennas": 8}
    recording = simulate(
        scenes=30, sources=2, snr_db=40, hardware=HardwareSpec(static_phase_rad=0.1, gain=0.1),
        one_panel=True, dtype=torch.float64, **SMALL | {"channel": kind},
    )  # fmt: skip
    fit = fit_panel(
        recording, recording.truth, VOLUME, **SIZES | {"position_error": 0.0}, known_positions=True
    )
    again = simulate(
        scenes=30, sources=2, snr_db=40, one_panel=True, dtype=torch.float64, **SMALL | {"channel": kind}
    )
    # The impaired snapshots without noise tell the true responses: those that make the residual vanish.
    assert float(fit.offsets.abs().max()) < 1e-6
    assert float((fit.response - 1).abs().max()) > 0.05
    assert float((fit.noise / recording.noise_variance).median()) == pytest.approx(1, abs=0.15)
    assert float(fit.response_std.max()) < 0.01
    clean = fit_panel(again, again.truth, VOLUME, **SIZES | {"position_error": 0.0}, known_positions=True)
    assert float((clean.response - 1).abs().max()) < 0.01
    assert fit.remaining_error < 0.01


def test_bad_settings_are_refused():
    recording = simulate(scenes=1, sources=1, snr_db=20, **SMALL)
    start = replace(recording.truth, power=None, symbols=None)
    with pytest.raises(InputError, match="panel_error: must be positive"):
        fit_panel(recording, start, VOLUME, **SIZES | {"panel_error": 0.0}, known_positions=True)


@pytest.mark.parametrize("direct", [False, True])
def test_positions_of_other_scenes_explain_nothing(direct):
    recording = simulate(
        scenes=16, sources=1, snr_db=20, one_panel=True, seed=3,
        **SMALL | {"channel": {"kind": "direct"} if direct else {"antennas": 6}},
    )  # fmt: skip
    fit_panel(recording, recording.truth, VOLUME, **SIZES, known_positions=True)
    noise = torch.randn(
        recording.snapshots.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    other = replace(recording, snapshots=noise)
    with pytest.raises(InputError, match=r"known_positions: .* do not explain the snapshots"):
        fit_panel(other, recording.truth, VOLUME, **SIZES, known_positions=True)


def test_a_noise_variance_below_the_rounding_of_the_data():
    recording = simulate(
        scenes=3, sources=1, snr_db=25, one_panel=True, seed=3, hardware=ERRORS,
        **SMALL | {"channel": {"kind": "direct"}},
    )  # fmt: skip
    fit = fit_panel(recording, recording.truth, VOLUME, **SIZES, known_positions=True)
    least = replace(recording, noise_variance=1e-30 * recording.noise_variance)
    other = fit_panel(least, recording.truth, VOLUME, **SIZES, known_positions=True)
    assert torch.linalg.vector_norm(other.response - fit.response) < 0.02 * len(fit.response) ** 0.5


def test_powers_that_double_precision_does_not_hold_are_a_sentence():
    equations = System(
        torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-12]]).double(), torch.ones(2).double(), [], 0.0
    )
    for use in (equations.solve, lambda: equations.covariance):
        with pytest.raises(InputError, match=r"snapshots: responses and offsets .* orders of magnitude"):
            use()
