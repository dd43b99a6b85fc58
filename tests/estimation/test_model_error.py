"""The evidence of a model error, against dense matrices, and whether it is there."""

import math
from dataclasses import replace

import pytest
import torch

from rismusic import simulate
from rismusic.array import steering
from rismusic.estimation.likelihood import sufficient_statistics, symbols
from rismusic.estimation.maximum_likelihood import unpack, without_compiled_fits
from rismusic.estimation.model_error import (
    _RATIOS,
    _explained,
    _explained_at_most,
    _least_log_det,
    _most_explained,
    _panel_error,
    _Path,
    _Residual,
    diffuse_evidence,
    fields_on_panel,
    model_error,
    motion,
    spread_gain,
)

SMALL = {"panel": {"rows": 4, "columns": 4}, "channel": {"antennas": 5}, "codebook": {"snapshots": 6}}


def made(scenes=3, sources=2, **settings):
    recording = simulate(scenes=scenes, sources=sources, **{"snr_db": 15.0, **SMALL, **settings})
    return replace(recording, noise_variance=None)


def restricted(recording, scene, tau, rho):
    """Restricted log-likelihood of the residual with panel error and diffuse noise, by dense matrices."""
    y = recording.snapshots[scene].to(torch.complex128)
    H, codes = (part[scene].to(torch.complex128) for part in (recording.channel, recording.codes))
    L, M = y.shape
    positions, _ = unpack(recording.truth, recording)
    azimuth, elevation, q = positions[scene].unbind(-1)
    A = steering(recording.panel, azimuth, elevation, 1 / q)
    spread = H @ H.mH
    cov = torch.eye(M, dtype=H.dtype) + tau * spread * M / spread.diagonal().real.sum()
    C = torch.block_diag(*[H @ (codes[n, :, None] * A) for n in range(L)])
    white = torch.linalg.inv(torch.linalg.cholesky(cov))
    W = torch.block_diag(*[white] * L)
    Cw, yw = W @ C, W @ y.flatten()
    s = torch.linalg.lstsq(Cw, yw[:, None]).solution[:, 0].view(L, -1)
    J = torch.cat([white @ H @ torch.diag(codes[n] * (A @ s[n])) for n in range(L)])
    left = (
        torch.linalg.qr(Cw, mode="complete").Q[:, Cw.shape[1] :].mH
    )  # onto what is orthogonal to the sources
    inner = torch.eye(len(left), dtype=H.dtype) + rho * (left @ J) @ (left @ J).mH
    r = left @ yw
    energy = (r.conj() @ torch.linalg.solve(inner, r)).real
    D = L * (M - A.shape[1]) - 1.5 * A.shape[1]
    gram = [torch.linalg.slogdet(X.mH @ X).logabsdet for X in (Cw, C)]
    value = -D * energy.log() - torch.linalg.slogdet(inner).logabsdet
    return value - L * torch.linalg.slogdet(cov).logabsdet - gram[0] + gram[1]


@pytest.mark.parametrize("tau", [0.0, 1.5])
def test_evidence_against_dense_matrices(tau):
    recording = made(hardware={"static_phase_rad": 0.3})
    positions, active = unpack(recording.truth, recording)
    at = _Residual.of(recording, fields_on_panel(recording, positions, active), active, tau)
    for scene in range(3):
        plain = restricted(recording, scene, 0.0, 0.0)
        torch.testing.assert_close(
            diffuse_evidence(recording, fields_on_panel(recording, positions, active), active, (tau,))[
                scene, 0
            ],
            restricted(recording, scene, tau, 0.0) - plain,
        )
    gain, error = _panel_error([at], torch.full_like(at.freedom, -math.inf))
    # The best of the ratios, by the dense form. The mean eigenvalue of W is that of the projected J.
    found = []
    for ratio in _RATIOS:
        H, f = at.H[0], at.field[0]
        W = (H.mH @ H) * (f.mH @ f)
        E = torch.cat([(at.basis[0, n].mH @ H) * f[n] for n in range(len(f))])
        rho = ratio / float((W - E.mH @ E).diagonal().real.mean())
        found.append(float(restricted(recording, 0, tau, rho) - restricted(recording, 0, tau, 0.0)))
    assert float(gain[0]) == pytest.approx(max(found) - math.log(len(_RATIOS)), abs=1e-6)
    assert 0 < float(error[0]) < 0.5


@pytest.mark.parametrize("channel", [{"antennas": 16}, {"kind": "direct"}])
def test_panels_that_err_and_panels_that_do_not(channel):
    settings = {"scenes": 6, "sources": 2, "snr_db": 20.0, "channel": channel}
    erring = made(hardware={"static_phase_rad": 0.2}, **{**settings, "panel": {}, "codebook": {}})
    sound = made(**{**settings, "panel": {}, "codebook": {}})
    found = model_error(erring, erring.truth)
    assert (found.gain > 5).all()
    assert float(found.panel_error.median()) == pytest.approx(0.2, abs=0.06)
    assert (model_error(sound, sound.truth).gain < 0).all()


def test_configurations_that_differ_in_each_snapshot_are_diffuse_noise():
    recording = made(
        6, 1, panel={}, codebook={"snapshots": 32}, channel={}, hardware={"code_phase_rad": 0.6}, snr_db=20.0
    )
    found = model_error(recording, recording.truth)
    assert (found.gain > 5).all()
    assert (found.diffuse > 0).all()


def test_a_source_that_is_no_point():
    recording = made(4, 1, panel={}, channel={}, codebook={})
    positions, active = unpack(recording.truth, recording)
    s = symbols(sufficient_statistics(recording, positions, active))
    steps = math.radians(0.4) * (torch.arange(16) - 7.5)
    azimuth, elevation, q = (value.expand(-1, 16) for value in positions.unbind(-1))
    A = steering(recording.panel, azimuth + steps, elevation, 1 / q)
    signal = recording.link.apply((A.mT * s).to(torch.complex64))
    noise = recording.snapshots - recording.link.apply(
        (recording.truth.steering(recording.panel) @ s.mT.to(torch.complex64)).mT
    )
    moving = replace(recording, snapshots=signal + noise)
    assert (spread_gain(recording, recording.truth)[0] < 4).all()
    gain, size = spread_gain(moving, recording.truth)
    assert (gain > 4.5).all()
    assert ((size.norm(dim=-1) > math.radians(0.3)) & (size.norm(dim=-1) < math.radians(4))).all()
    assert (size[..., 0].abs() > 2 * size[..., 1].abs()).all()  # it moves in azimuth
    assert (motion(recording, recording.truth).gain < 8).all()
    path = motion(moving, recording.truth)
    assert (path.gain > 20).all()
    expected = torch.tensor([6.0, 0.0], dtype=torch.float64).deg2rad()
    torch.testing.assert_close(path.change[:, 0], expected.expand(4, 2), rtol=0, atol=math.radians(0.7))
    assert (path.offset.abs() < math.radians(0.3)).all()


def test_a_path_stays_near_a_source_that_the_pattern_hides():
    """Steps without a limit went around the panel many times, and one such path ended in NaN."""
    recording = made(60, 1, panel={"rows": 4, "columns": 3, "pattern_exponent": 100.0})
    truth = recording.truth
    aside = replace(truth, azimuth=torch.full_like(truth.azimuth, math.radians(-60)))
    positions, active = unpack(aside, recording)
    gain, path = _Path(recording, positions, active, torch.zeros(60, dtype=torch.long)).fit()
    assert gain.isfinite().all()
    assert (path.abs().amax(-1) < math.pi).all()


def test_a_path_ends_where_the_wave_has_no_derivative():
    """No element sees a source beside the panel, so that its wave cannot be divided by its norm."""
    recording = made(4, 2, panel={"rows": 4, "columns": 3, "pattern_exponent": 100.0})
    truth = recording.truth
    beside = replace(truth, azimuth=torch.full_like(truth.azimuth, math.pi / 2))
    positions, active = unpack(beside, recording)
    path = _Path(recording, positions, active, torch.zeros(4, dtype=torch.long))
    _, change = path._step(torch.zeros(4, 4, dtype=torch.float64), True)
    assert (change == 0).all()


def test_the_compiled_bound_is_that_of_torch():
    """W of full and of low rank, and a vector of zeros."""
    pytest.importorskip("numba")
    random = torch.Generator().manual_seed(3)
    J = torch.randn(3, 40, 23, dtype=torch.complex64, generator=random)
    J[1, 5:] = 0
    z = torch.randn(3, 23, dtype=torch.complex64, generator=random)
    z[2] = 0
    W = J.mH @ J / 40
    with without_compiled_fits():
        expected = _explained_at_most(W, z)
    torch.testing.assert_close(_explained_at_most(W, z), expected, rtol=1e-4, atol=1e-9)
    assert (expected[:2] > 0).all()


@pytest.mark.parametrize("error", [0.0, 0.3])
def test_no_ratio_that_matters_is_left_out(error):
    """Bounds hold for every ratio, and the result is that of all ratios in double precision."""
    recording = made(12, hardware={"static_phase_rad": error})
    positions, active = unpack(recording.truth, recording)
    at = _Residual.of(recording, fields_on_panel(recording, positions, active), active, 0.0)
    single = at.normal_equations(torch.complex64)
    W, z, _ = at.normal_equations(torch.complex128)
    largest = _explained(*single[:2], torch.full((12,), _RATIOS[-1]))
    most, fewest = _most_explained(*single[:2], largest[0], at.freedom), _least_log_det(single[0], largest[1])
    value = torch.empty_like(most)
    for number, ratio in enumerate(_RATIOS):
        share, log_det = _explained(W, z, torch.full((12,), ratio, dtype=torch.float64))
        explained = -at.freedom * (1 - share).log()
        assert (explained <= most[:, number]).all()
        assert (log_det >= fewest[:, number] - 1e-3).all()
        value[:, number] = explained - log_det - math.log(len(_RATIOS))
    # Bounds worth having: within a nat for the smallest ratio.
    assert (most - fewest)[:, 0].sub(value[:, 0] + math.log(len(_RATIOS))).max() < 1
    gain, size = _panel_error([at], torch.full_like(at.freedom, -math.inf))
    best = value.amax(1)
    torch.testing.assert_close(gain, best, rtol=0, atol=1e-3)
    assert bool((size > 0).all())
    assert (gain > 3).any() == (error > 0)
    # Below what matters, nothing has to be computed; above it, the result is the same.
    floor = best + torch.tensor([-1.0, 1.0]).double().repeat(6)
    some = _panel_error([at], floor)[0]
    torch.testing.assert_close(some[::2], gain[::2], rtol=0, atol=1e-3)
    assert (some[1::2] < floor[1::2]).all()


def test_subcarriers_share_the_panel_error():
    """The evidence of two subcarriers, by dense matrices of both."""
    recording = made(
        scenes=2, wideband={"subcarriers": 2, "bandwidth_hz": 5e7}, hardware={"static_phase_rad": 0.3}
    ).stacked()
    positions, active = unpack(recording.truth, recording)
    parts = [recording.subcarrier(f) for f in range(2)]
    residuals = [
        _Residual.of(one, fields_on_panel(one, positions, active), active, 0.0, subcarriers=2)
        for one in parts
    ]
    gain, _ = _panel_error(residuals, torch.full((2,), -math.inf, dtype=torch.float64))
    C, J, y = [], [], []
    for one, at in zip(parts, residuals, strict=True):
        azimuth, elevation, q = positions[0].unbind(-1)
        A = steering(one.panel, azimuth, elevation, 1 / q)
        for n, c in enumerate(one.codes[0].to(torch.complex128)):
            C.append(at.H[0] @ (c[:, None] * A))
            J.append(at.H[0] @ torch.diag(at.field[0, n]))
            y.append(one.snapshots[0, n].to(torch.complex128))
    C, J, y = torch.block_diag(*C), torch.cat(J), torch.cat(y)
    left = torch.linalg.qr(C, mode="complete").Q[:, C.shape[1] :].mH
    K, r, J = active.shape[1], left @ y, left @ J
    D = len(y) - C.shape[1] - 1.5 * K
    mean = float((J.mH @ J).diagonal().real.mean())
    found = []
    for ratio in _RATIOS:
        inner = torch.eye(len(J), dtype=J.dtype) + ratio / mean * J @ J.mH
        energy = float((r.conj() @ torch.linalg.solve(inner, r)).real / r.abs().square().sum())
        found.append(-D * math.log(energy) - float(torch.linalg.slogdet(inner).logabsdet))
    assert float(gain[0]) == pytest.approx(max(found) - math.log(len(_RATIOS)), abs=1e-6)
    assert (model_error(recording, recording.truth).gain == gain).all()


def test_sources_that_nearly_coincide_are_no_evidence_of_diffuse_noise():
    """Through a channel of rank 3. The determinant of their Gram matrix is a rounding error."""
    recording = made(4, 1, panel={}, channel={}, codebook={}, snr_db=20.0, dtype=torch.float64)
    truth, codes = recording.truth, recording.codes
    A = steering(recording.panel, truth.azimuth, truth.elevation, truth.range)

    def received(channel):
        return torch.einsum("smn,sln,snk,skl->slm", channel, codes, A, truth.symbols)

    U, values, V = torch.linalg.svd(recording.channel, full_matrices=False)
    channel = (U[..., :3] * values[:, None, :3]) @ V[:, :3]
    noise = recording.snapshots - received(recording.channel)
    low = replace(recording, channel=channel, snapshots=received(channel) + noise)
    at, _ = unpack(truth, recording)
    at = torch.cat([at + n * torch.tensor([1e-6, 1e-6, 0]) for n in range(4)], dim=1)
    active = torch.ones(4, 4, dtype=torch.bool)
    assert (diffuse_evidence(low, fields_on_panel(low, at, active), active, (0.5, 5.0, 50.0)) < 0).all()
