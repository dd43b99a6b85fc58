from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rismusic.array import Panel, steering
from rismusic.covariance import (
    Conditioning,
    Covariance,
    load_and_shrink,
    recording_covariance,
    sample_covariance,
    true_covariance,
)
from rismusic.errors import InputError
from rismusic.estimation.grid import SearchGrid, Volume, find_peaks
from rismusic.estimation.spectra import Spectrum, bartlett, music, mvdr, newton, soft_music
from rismusic.operator import Link
from rismusic.simulation.simulator import simulate
from rismusic.spec import SceneSpec
from rismusic.spectrum_map import spectrum

VOLUME = Volume.from_spec(SceneSpec())
SPECTRA = {
    "bartlett": lambda R, sources: bartlett(R),
    "mvdr": lambda R, sources: mvdr(R),
    "music": music,
    "soft_music": soft_music,
}
every_spectrum = pytest.mark.parametrize("name", SPECTRA)


@pytest.fixture(scope="module")
def grid():
    return SearchGrid.cover(Panel.uniform_planar(), VOLUME)


@pytest.fixture(scope="module")
def recorded():
    return simulate(scenes=5, sources=3, snr_db=10.0, dtype=torch.float64)


def some_covariance(generator, scenes=4, N=30, R=6, dtype=torch.complex128):
    factor = torch.randn(scenes, N, R, generator=generator, dtype=dtype)
    return Covariance(factor, torch.full((scenes,), 0.5, dtype=dtype.to_real())).normalised()


def dense_spectrum(name, R, A, sources, rank):
    """The textbook, one scene at a time, from the dense matrix and complex128 steering A [N, P]."""
    if name == "bartlett":
        return np.einsum("np,nm,mp->p", A.conj(), R, A).real
    if name == "mvdr":
        return 1 / np.einsum("np,nm,mp->p", A.conj(), np.linalg.inv(R), A).real
    values, U = np.linalg.eigh(R)
    values, U = values[::-1][:rank], U[:, ::-1][:, :rank]
    if name == "music":
        noise = np.linalg.eigh(R)[1][:, :-sources]
        return 1 / (np.abs(noise.conj().T @ A) ** 2).sum(0)
    weight = np.maximum(0, 1 - values[sources:].mean() / values)
    return 1 / (1 - (weight[:, None] * np.abs(U.conj().T @ A) ** 2).sum(0))


@every_spectrum
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_against_the_dense_form(name, dtype, generator):
    panel = Panel.uniform_planar(5, 6)
    grid = SearchGrid.cover(panel, VOLUME)
    R = some_covariance(generator, dtype=dtype)
    spectrum = SPECTRA[name](R, 3)
    A = grid.steering(torch.complex128).numpy()
    expected = np.stack(
        [dense_spectrum(name, one, A, 3, R.rank) for one in R.dense().to(torch.complex128).numpy()]
    )
    tolerance = 1e-9 if dtype == torch.complex128 else 1e-4
    np.testing.assert_allclose(spectrum.on_grid(grid).numpy(), expected, rtol=tolerance)
    real = dtype.to_real()
    place = [v.to(real).expand(4, -1) for v in (grid.azimuth, grid.elevation, grid.range)]
    np.testing.assert_allclose(spectrum.at(panel, *place).numpy(), expected, rtol=tolerance)


@every_spectrum
def test_blocks_of_scenes_and_points_change_nothing(name, generator, monkeypatch, memory_budget):
    grid = SearchGrid.cover(Panel.uniform_planar(5, 6), VOLUME)
    spectrum = SPECTRA[name](some_covariance(generator, scenes=7), 2)
    whole = spectrum.on_grid(grid)
    memory_budget(4 * 8 * 30 * 37)
    torch.testing.assert_close(spectrum.on_grid(grid), whole)


@every_spectrum
def test_batch_is_loop(name, grid, recorded):
    R = recording_covariance(recorded)
    whole = SPECTRA[name](R, 3)
    single = [SPECTRA[name](R[i : i + 1], 3).on_grid(grid) for i in range(len(recorded))]
    torch.testing.assert_close(whole.on_grid(grid), torch.cat(single), rtol=1e-8, atol=0)
    torch.testing.assert_close(whole[1:3].on_grid(grid), whole.on_grid(grid)[1:3])
    deep = SPECTRA[name](Covariance(R.factor[:4].unflatten(0, (2, 2)), R.loading[:4].view(2, 2)), 3)
    torch.testing.assert_close(deep.on_grid(grid).flatten(0, 1), whole.on_grid(grid)[:4], rtol=1e-8, atol=0)


@every_spectrum
@pytest.mark.parametrize("change", ["scale", "phase", "permutation", "conjugation"])
def test_what_must_not_matter_and_what_must(name, change, grid, recorded, generator):
    y, noise, codes = recorded.snapshots, recorded.noise_variance, recorded.codes
    before = SPECTRA[name](recording_covariance(recorded), 3).on_grid(grid)
    if change == "scale":
        y, noise = 1e3 * y, 1e6 * noise
    elif change == "phase":
        y = y * complex(math.cos(2), math.sin(2))
    elif change == "permutation":
        order = torch.randperm(y.shape[1], generator=generator)
        y, codes = y[:, order], codes[:, order]
    else:
        y = y.conj().resolve_conj()
    R = load_and_shrink(*sample_covariance(Link(recorded.channel, codes), y, noise))
    after = SPECTRA[name](R, 3).on_grid(grid)
    assert torch.allclose(after, before, rtol=1e-6, atol=0) == (change != "conjugation")


def exact(recorded, dtype):
    """R_true with next to no loading."""
    R = true_covariance(recorded.truth.steering(recorded.panel), recorded.truth.power)
    R = Covariance(R.factor.to(dtype), R.loading.to(dtype.to_real()))
    little = torch.full_like(R.loading, 1e-7)
    return load_and_shrink(R, Conditioning(little, torch.zeros_like(little)))


def worst_errors(spectrum, grid, truth, sources):
    """Largest angle error in degrees and largest error of 1 / range, over all sources; none left out."""
    peaks = find_peaks(spectrum.explained_on_grid(grid), grid, sources)
    found = newton(spectrum, grid.panel, VOLUME, peaks.azimuth, peaks.elevation, peaks.range)
    gap = torch.maximum(
        (found.azimuth[:, :, None] - truth.azimuth[:, None]).abs(),
        (found.elevation[:, :, None] - truth.elevation[:, None]).abs(),
    )
    nearest, which = gap.min(dim=1)
    q = (1 / found.range).gather(1, which) - 1 / truth.range
    return math.degrees(nearest.max()), float(q.abs().max())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("sources", [1, 2, 3])
@every_spectrum
def test_an_exact_covariance_gives_the_truth(name, sources, dtype, grid):
    """Off the grid, in 1e-3 deg and 1e-4 / m; the CRB at 20 dB is 0.1 deg. Bartlett: one source only."""
    recorded = simulate(scenes=20, sources=sources, snr_db=10.0, dtype=torch.float64)
    angle_deg, q = worst_errors(SPECTRA[name](exact(recorded, dtype), sources), grid, recorded.truth, sources)
    if name == "bartlett" and sources > 1:
        assert angle_deg > 1e-2  # the sources disturb each other: this is the check that could fail
        return
    assert angle_deg < 1e-4
    assert q < 1e-5


@every_spectrum
@pytest.mark.parametrize("mistake", ["conjugated steering", "transposed elements"])
def test_a_planted_mistake_is_seen(name, mistake, grid):
    recorded = simulate(scenes=10, sources=1, snr_db=10.0, dtype=torch.float64)
    R = exact(recorded, torch.complex128)
    factor = R.factor.conj().resolve_conj()
    if mistake == "transposed elements":
        factor = R.factor.unflatten(1, (12, 12)).transpose(1, 2).flatten(1, 2)
    spectrum = SPECTRA[name](Covariance(factor, R.loading), 1)
    angle_deg, _ = worst_errors(spectrum, grid, recorded.truth, 1)
    assert angle_deg > 5


def test_an_element_out_of_place_is_tolerated_and_an_irregular_panel_works(generator):
    elements = torch.rand(60, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.6, 1.3, 0.05])
    panel = Panel(elements - elements.mean(0), 0.3)
    truth = simulate(scenes=8, sources=2, snr_db=10.0, dtype=torch.float64).truth
    R = true_covariance(truth.steering(panel), truth.power)
    irregular = SearchGrid.cover(panel, VOLUME)
    angle_deg, q = worst_errors(music(R, 2), irregular, truth, 2)
    assert angle_deg < 1e-4
    assert q < 1e-5


def test_soft_music_finds_more_than_music_at_low_snr(grid):
    """What it is for: sources within 5 deg of some peak, K = 3 at 5 dB, from snapshots."""
    recorded = simulate(scenes=60, sources=3, snr_db=5.0)
    R = recording_covariance(recorded)
    found = {}
    for name in ("music", "soft_music"):
        peaks = find_peaks(SPECTRA[name](R, 3).explained_on_grid(grid), grid, 3)
        gap = torch.maximum(
            (peaks.azimuth[:, :, None] - recorded.truth.azimuth[:, None]).abs(),
            (peaks.elevation[:, :, None] - recorded.truth.elevation[:, None]).abs(),
        )
        found[name] = float((gap.amin(1) < math.radians(5)).double().mean())
    assert found["soft_music"] > found["music"] + 0.02
    assert found["soft_music"] > 0.8


@pytest.mark.parametrize("maker", [music, soft_music])
def test_a_number_of_sources_for_each_scene(maker, grid, recorded):
    R = recording_covariance(recorded)
    counts = torch.tensor([1, 3, 2, 5, 1])
    mixed = maker(R, counts).on_grid(grid)
    single = [maker(R[i : i + 1], int(counts[i])).on_grid(grid) for i in range(5)]
    torch.testing.assert_close(mixed, torch.cat(single), rtol=1e-8, atol=0)


def test_the_value_stays_finite_where_f_passes_one():
    spectrum = Spectrum(torch.ones(4, 1, dtype=torch.complex64), torch.ones(()), sharp=True)
    value = spectrum.value(torch.tensor([0.5, 1.0, 1.0 + 1e-7]))
    assert value.isfinite().all()
    assert (value > 0).all()
    assert value[1] >= value[0]


def test_gradients_reach_the_factor(generator):
    """MVDR and Bartlett are differentiable by R; MUSIC is not, by design."""
    panel = Panel.uniform_planar(3, 4)
    factor = torch.randn(2, 12, 3, generator=generator, dtype=torch.complex128).requires_grad_()
    R = Covariance(factor, torch.full((2,), 0.3).double())
    place = [torch.tensor([[0.1], [0.3]]).double(), torch.zeros(2, 1).double(), torch.ones(2, 1).double()]
    for maker in (bartlett, mvdr):
        (gradient,) = torch.autograd.grad(maker(R).at(panel, *place).sum(), factor)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
    assert not music(R, 2).at(panel, *place).requires_grad


def test_refusals(generator, untyped):
    R = some_covariance(generator)
    wrong = SearchGrid.cover(Panel.uniform_planar(2, 2), VOLUME)
    bare = Covariance(R.factor, torch.zeros_like(R.loading))
    cases = [
        ("sources", lambda: music(R, 7)),
        ("sources", lambda: music(R, 0)),
        ("sources", lambda: soft_music(R, 7)),
        ("sources", lambda: music(R, torch.tensor([1, 0, 1, 1]))),
        ("sources", lambda: soft_music(R, torch.tensor([1, 0, 1, 1]))),
        ("covariance.loading", lambda: mvdr(bare)),
        ("panel", lambda: bartlett(R).on_grid(wrong)),
        ("panel", lambda: bartlett(R).at(Panel.uniform_planar(2, 2), *torch.ones(3, 4, 2).double())),
    ]
    for field, attempt in cases:
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.field == field


def test_scenes_of_one_panel_do_not_mix(grid, recorded):
    """f at a scene's own points is that of the scene, also where every scene asks for others."""
    spectrum = music(recording_covariance(recorded), 3)
    t = recorded.truth
    together = spectrum.explained_at(recorded.panel, t.azimuth, t.elevation, t.range)
    for i in range(len(recorded)):
        a = steering(recorded.panel, t.azimuth[i], t.elevation[i], t.range[i])
        alone = (spectrum.vectors[i].mH @ a).abs().square().sum(0)
        torch.testing.assert_close(together[i], alone)


def test_weights_of_another_panel_have_no_spectrum():
    made = simulate(scenes=1, sources=1, panel={"rows": 4, "columns": 4})
    with pytest.raises(InputError, match="method: the weights 'ideal' of 'hybrid' are for another panel"):
        spectrum(made, method="hybrid")
