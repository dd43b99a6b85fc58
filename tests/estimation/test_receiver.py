"""Receivers that are not linear: clipping, I/Q imbalance, compression."""

from __future__ import annotations

import cmath
from dataclasses import replace

import pytest
import torch

from rismusic.array import steering
from rismusic.checks import check
from rismusic.estimation.maximum_likelihood import unpack
from rismusic.estimation.receiver import clipped_share, distortions, without_image
from rismusic.hybrid import locate
from rismusic.metrics import match
from rismusic.simulation.simulator import simulate

DIRECT = {"channel": {"kind": "direct"}}


def with_image(recording, beta):
    y = recording.snapshots
    return replace(recording, snapshots=y + beta * y.conj().resolve_conj(), truth=None, noise_variance=None)


def compressed(recording, level):
    """Amplitudes that saturate smoothly at this multiple of the RMS value."""
    y = recording.snapshots
    most = level * y.abs().square().mean((1, 2), keepdim=True).sqrt()
    return replace(
        recording, snapshots=y / (1 + (y.abs() / most) ** 4) ** 0.25, truth=None, noise_variance=None
    )


@pytest.mark.parametrize("system", [{}, DIRECT])
def test_log_likelihood_ratio_is_that_of_least_squares(system):
    recording = simulate(scenes=2, sources=2, snr_db=15.0, seed=3, **system).stacked()
    recording = with_image(recording, 0.05j) if system else compressed(recording, 2.0)
    truth = simulate(scenes=2, sources=2, snr_db=15.0, seed=3, **system).truth
    positions, _ = unpack(truth, recording)
    y = recording.snapshots.to(torch.complex128)
    _, L, M = y.shape
    for found, form in zip(
        distortions(recording, truth),
        (lambda x: x.conj(), lambda x: x * x.abs() ** 2 / (x.abs() ** 2).mean()),
        strict=True,
    ):
        for scene in range(2):
            A = steering(recording.panel, *positions[scene, :, :2].unbind(-1), 1 / positions[scene, :, 2])
            fields = recording[scene : scene + 1].link.to(torch.complex128).matmul(A)[0]
            C = torch.block_diag(*fields.expand(L, -1, -1))
            x = (C @ torch.linalg.lstsq(C, y[scene].flatten()[:, None]).solution)[:, 0]
            wider = torch.cat((C, form(x)[:, None]), 1)
            solution = torch.linalg.lstsq(wider, y[scene].flatten()[:, None]).solution
            before, after = (
                float((y[scene].flatten() - one).abs().square().sum())
                for one in (x, (wider @ solution)[:, 0])
            )
            D = L * (M - 2) - 3.0
            coefficient = complex(found.z[scene]) / float(found.n[scene])
            assert coefficient == pytest.approx(complex(solution[-1, 0]), rel=1e-6)
            gain = -D * float(torch.log1p(torch.tensor(after / before - 1, dtype=torch.float64)))
            share = abs(complex(found.z[scene])) ** 2 / float(found.n[scene]) / D
            assert D * float(torch.log1p(torch.tensor(share))) == pytest.approx(gain, rel=1e-6)


@pytest.mark.parametrize("system", [{}, DIRECT])
def test_a_linear_receiver_has_a_log_likelihood_ratio_of_one_nat(system):
    recording = simulate(scenes=200, sources=2, snr_db=10.0, seed=4, **system)
    for found in distortions(recording.stacked(), recording.truth):
        gain = found.z.abs().square() / found.n
        assert 0.75 < float(gain.mean()) < 1.3
        assert float((gain > 3).double().mean()) < 0.11  # exp(-3) is 0.05
        assert not found.shown.any()
        assert found.common()[1] < 8


@pytest.mark.parametrize("beta", [cmath.rect(0.03, 1.0), cmath.rect(0.2, -2.5)])
@pytest.mark.parametrize("system", [{}, DIRECT])
def test_an_image_is_removed(system, beta, tmp_path):
    recording = simulate(scenes=8, sources=(1, 3), snr_db=20.0, seed=91, **system)
    faulty = with_image(recording, beta)
    estimate = locate(faulty, method="omp")
    assert estimate.n_sources.equal(recording.truth.active.sum(-1))
    assert match(recording.truth, estimate.sources).hit.equal(recording.truth.active)
    assert estimate.status == ["ok"] * 8
    for sentences in estimate.warnings:
        (note,) = [one for one in sentences if "I/Q imbalance" in one]
        assert note.departure == "iq_imbalance"
        assert complex(note.split("(")[1].split(")")[0]) == pytest.approx(beta, abs=0.012)
    assert [one.name for one in check(faulty).findings] == ["iq_imbalance"]


def test_the_snapshots_before_the_image():
    recording = simulate(scenes=2, sources=1, snr_db=20.0)
    beta = torch.tensor([0.1 + 0.2j, 0.0], dtype=torch.complex128)
    y = recording.snapshots
    faulty = replace(recording, snapshots=y + beta.view(2, 1, 1).to(y.dtype) * y.conj().resolve_conj())
    torch.testing.assert_close(without_image(faulty, beta).snapshots, y)


@pytest.mark.parametrize("system", [{}, DIRECT])
def test_a_receiver_that_compresses_is_named(system):
    recording = simulate(scenes=12, sources=(2, 3), snr_db=20.0, seed=5, **system)
    estimate = locate(compressed(recording, 2.0), method="omp")
    named = [any("strong samples are smaller" in one for one in words) for words in estimate.reasons]
    assert sum(named) >= 9
    wrong = (estimate.n_sources != recording.truth.active.sum(-1)).tolist()
    quiet = [status == "ok" for status in estimate.status]
    assert not any(a and b for a, b in zip(wrong, quiet, strict=True))


@pytest.mark.parametrize("change", [{"hardware": {"static_phase_rad": 0.1}}, {"panel": {"wave": "fresnel"}}])
def test_a_panel_that_errs_is_no_receiver_that_compresses(change):
    recording = simulate(scenes=12, sources=(1, 3), snr_db=20.0, seed=8, **DIRECT, **change)
    estimate = locate(replace(recording, wave="spherical", truth=None, noise_variance=None), method="omp")
    words = [one for sentences in estimate.warnings for one in sentences]
    assert words
    assert not any("strong samples" in one or "I/Q" in one for one in words)


@pytest.mark.parametrize("modulus", [False, True])
@pytest.mark.parametrize("gains", [False, True])
def test_a_receiver_that_clips_is_named(modulus, gains):
    recording = simulate(scenes=40, sources=(1, 3), snr_db=20.0, seed=1)
    y = recording.snapshots
    level = y.abs().square().mean((-2, -1), keepdim=True).div(2).sqrt() * (1.8 if modulus else 2.0)
    if gains:
        level = level * torch.linspace(0.7, 1.4, y.shape[-1])

    def limited(part):
        return part * (level / part.abs()).clamp_max(1)

    faulty = limited(y) if modulus else torch.complex(limited(y.real), limited(y.imag))
    hit = (faulty != y).double().mean((1, 2))
    share = clipped_share(faulty)
    assert (share > 0.5 * hit).all()
    assert (share <= hit + 1e-6).all()
    if not modulus and not gains:
        found = locate(replace(recording, snapshots=faulty)[:1], n_sources=1, method="omp")
        assert (
            f"{float(share[0]):.1%} of the samples are at the largest value: the receiver clips"
            in found.reasons[0]
        )


@pytest.mark.parametrize("bits", [3, 4, 6, 8, 12, None])
@pytest.mark.parametrize("direct", [False, True])
def test_a_converter_within_its_range_does_not_clip(bits, direct):
    system = {"channel": {"kind": "direct"}} if direct else {}
    recording = simulate(scenes=200, sources=(1, 3), snr_db=20.0, seed=2, **system)
    parts = torch.view_as_real(recording.snapshots.resolve_conj())
    if bits is not None:
        step = parts.abs().amax((1, 2, 3), keepdim=True) / 2 ** (bits - 1)
        parts = (parts / step).round() * step
    assert int((clipped_share(torch.view_as_complex(parts)) > 0).sum()) <= 2
