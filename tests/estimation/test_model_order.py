from __future__ import annotations

import math
from dataclasses import replace

import dense
import pytest
import torch
from searches import omp

from rismusic import Panel, Sources
from rismusic.estimation.classical import fit_unknown, with_fewer_sources
from rismusic.estimation.grid import searched_grid
from rismusic.estimation.likelihood import sufficient_statistics, unconditional
from rismusic.estimation.maximum_likelihood import nfmle, unpack
from rismusic.estimation.model_order import (
    LOG_POWER_WIDTH,
    SelectedOrder,
    log_evidence,
    log_occam_factor,
    select_model_order,
)
from rismusic.hybrid import locate
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec


@pytest.mark.parametrize("sources", [1, 2])
def test_evidence_is_the_integral_over_all_unknowns(sources, generator):
    """Against importance sampling around the fit, in the same unknowns with the same spread beforehand."""
    # Far from the boundary, which cuts the integral; many snapshots, so that the information expected is near
    # to that observed.
    scene = dense.SMALL.scene.replace(range_max_m=5.0)
    spec = dense.SMALL.replace(codebook={"snapshots": 40}, scene=scene)
    recording = dense.small(spec, scenes=4, sources=sources, snr_db=30.0, known=True)
    grid = dense.grid_for(recording)
    fit = nfmle(recording, recording.truth, grid.volume, criterion="unconditional")
    found = log_evidence(recording, fit, grid.volume)
    positions, active = unpack(fit.sources, recording)
    noise, draws = fit.noise_variance, 4000
    centre = torch.cat((positions.flatten(1), fit.sources.power.log()), dim=1)
    at = sufficient_statistics(recording, positions, active, derivatives=True)
    J = unconditional(at, fit.sources.power, noise)[2][:, :-1, :-1]
    # Wider than the posterior, so that weights are bounded.
    L = torch.linalg.cholesky(1.5 * torch.linalg.inv(J))
    normal = torch.randn(draws, *centre.shape, dtype=torch.float64, generator=generator)
    x = centre + (L @ normal[..., None])[..., 0]
    U = centre.shape[1]
    logq = -normal.square().sum(-1) / 2 - U / 2 * math.log(2 * math.pi)
    logq = logq - L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    values = []
    many = torch.arange(4).repeat(100)  # that many draws for each scene at once
    for one in x.view(draws // 100, -1, U):
        m = sufficient_statistics(recording[many], one[:, : 3 * sources].unflatten(1, (-1, 3)), active[many])
        values.append(-unconditional(m, one[:, 3 * sources :].exp(), noise[many])[0].view(-1, 4))
    low, high = (x.new_tensor(limit) for limit in (grid.volume.lower, grid.volume.upper))
    place = x[..., : 3 * sources].unflatten(-1, (-1, 3))
    inside = ((place >= low) & (place <= high)).all(-1).all(-1)
    # The prior falls by a factor of e for each 10 dB below the strongest source.
    power = x[..., 3 * sources :]
    levels = (power.amax(-1, keepdim=True) - power).sum(-1) / math.log(10)
    logw = torch.where(inside, torch.cat(values) - levels - logq, -math.inf)
    integral = logw.logsumexp(0) - math.log(draws)
    widths = sources * ((high - low).log().sum() + math.log(LOG_POWER_WIDTH))
    expected = integral - widths + math.lgamma(sources + 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5)


@pytest.mark.parametrize("power", [1e-12, 0.0])
def test_a_source_without_power_is_none(power):
    """The data say nothing about its position and power, which cost nothing: it would tie with no source."""
    recording = dense.small(scenes=3, sources=1, snr_db=20.0, known=True)
    grid = dense.grid_for(recording)
    one = omp(recording, 1, grid, criterion="unconditional")
    nothing = replace(one.sources, power=torch.full_like(one.sources.power, power))
    silent = replace(one, sources=nothing, neg_log_likelihood=one.neg_log_likelihood.clone())
    assert (log_evidence(recording, silent, grid.volume) == -math.inf).all()
    assert log_evidence(recording, one, grid.volume).isfinite().all()


def test_an_unknown_noise_variance_costs_its_width():
    recording = dense.small(scenes=3, sources=1, snr_db=20.0, known=True)
    grid = dense.grid_for(recording)
    fit = omp(recording, 1, grid, criterion="unconditional")
    known = log_evidence(recording, fit, grid.volume)
    unknown = log_evidence(replace(recording, noise_variance=None), fit, grid.volume)
    _, L, M = recording.snapshots.shape
    # The information on log sigma^2 is about that of the L (M - K) numbers that hold noise alone.
    expected = 0.5 * math.log(L * (M - 1) * LOG_POWER_WIDTH**2 / (2 * math.pi))
    torch.testing.assert_close(known - unknown, torch.full_like(known, expected), rtol=0, atol=0.3)


def made_up(values):
    """A fit whose evidence is a table, [S, counts]; says which numbers of sources were tried."""
    tried = []
    recording = dense.small(scenes=len(values), sources=1)
    grid = dense.grid_for(recording)

    def fit(scenes, count):
        tried.append((scenes.tolist(), count))
        return omp(recording[scenes], count, grid), values[scenes, count]

    return fit, tried


def test_the_greatest_evidence_wins_and_two_failures_end_a_scene():
    values = torch.tensor([[9.0, 1, 1, 1, 1], [0, 5, 1, 8, 2], [0, 5, 4, 3, 99]], dtype=torch.float64)
    fit, tried = made_up(values)
    chosen = select_model_order(torch.arange(3), fit, 4, samples=1000)
    assert chosen.fit.sources.active.sum(-1).tolist() == [0, 3, 1]
    assert tried == [([0, 1, 2], 0), ([0, 1, 2], 1), ([0, 1, 2], 2), ([1, 2], 3), ([1], 4)]
    assert chosen.log_posterior[2].tolist() == [0, 5, 4, 3, -math.inf]
    torch.testing.assert_close(chosen.probability.sum(1), torch.ones(3, dtype=torch.float64))
    others = sum(math.exp(value - 8) for value in (0, 5, 1, 2))
    assert float(chosen.probability[1, 3]) == pytest.approx(1 / (1 + others))


def test_all_numbers_are_tried_with_few_samples():
    values = torch.tensor([[2.0, 1, 0, 9, 1]], dtype=torch.float64)
    fit, tried = made_up(values)
    assert select_model_order(torch.arange(1), fit, 4, samples=100).fit.sources.active.sum(-1).tolist() == [3]
    assert [count for _, count in tried] == [0, 1, 2, 3, 4]


def test_four_sources_in_one_snapshot_are_found():
    """One source of four explains a quarter of the energy, which does not pay for its unknowns."""
    line = Panel.uniform_linear(12, wavelength=0.1)
    sources = Sources.from_degrees([-40.0, -10.0, 15.0, 45.0], [0.0] * 4, [1.0, 2.0, 1.5, 2.5])
    made = simulate(panel=line, channel={"kind": "direct"}, codebook={"snapshots": 1}, sources=sources,
                    scenes=8, snr_db=30.0)  # fmt: skip
    found = locate(replace(made, truth=None, noise_variance=None), method="relax")
    assert (found.n_sources == 4).sum() >= 7


def test_probability_of_equal_evidence_is_equal():
    fit, _ = made_up(torch.zeros(1, 1, dtype=torch.float64))
    chosen = SelectedOrder(fit(torch.arange(1), 0)[0], torch.zeros(1, 4, dtype=torch.float64))
    assert chosen.probability.tolist() == [[0.25] * 4]


def test_numbers_are_right_where_all_is_clear():
    recording = dense.small(scenes=8, sources=(1, 3), snr_db=25.0)
    spec = LocateSpec(method="relax", sources_max=4)
    chosen = fit_unknown(replace(recording, truth=None), dense.grid_for(recording), spec)
    right = chosen.fit.sources.active.sum(-1) == recording.truth.active.sum(-1)
    assert right.sum() >= 7
    wrong = replace(recording, snapshots=recording.snapshots.conj().resolve_conj(), truth=None)
    chosen = fit_unknown(wrong, dense.grid_for(recording), spec)
    assert (chosen.fit.sources.active.sum(-1) == recording.truth.active.sum(-1)).sum() < 5


def test_one_source_more_does_not_stay_where_fewer_explain_the_data():
    """A coarse, wide search for one distant source ends beside it; of two sources, one is there."""
    made = simulate(
        scenes=32, sources=1, snr_db=10, seed=11, scene={"range_min_m": 99.0, "range_max_m": 101.0}
    )
    spec = LocateSpec(
        method="relax", oversampling=1.6, azimuth_max_deg=85.0, elevation_max_deg=85.0,
        range_min_m=0.15, range_max_m=math.inf,
    )  # fmt: skip
    recording, grid = replace(made, truth=None), searched_grid(made, spec)
    selected = fit_unknown(recording, grid, spec)
    assert (selected.fit.sources.active.sum(-1) > 1).sum() > 4
    fewer = with_fewer_sources(recording, selected, grid.volume, spec.criterion)
    assert (fewer.fit.sources.active.sum(-1) == 1).double().mean() > 0.95
    assert torch.equal(fewer.log_posterior.argmax(-1), fewer.fit.sources.active.sum(-1))
    assert (fewer.log_posterior >= selected.log_posterior).all()


def test_blind_equals_known_where_the_number_is_right():
    recording = replace(dense.small(scenes=6, sources=2, snr_db=25.0), truth=None)
    blind = locate(recording, method="omp", sources_max=3, oversampling=2.0)
    known = locate(recording, method="omp", n_sources=2, oversampling=2.0)
    two = blind.sources.active.sum(-1) == 2
    assert two.sum() >= 4
    assert known.n_sources_probability is None
    assert blind.n_sources_probability is not None
    # Leaving out one of three sources may end at a likelier pair than the search of two.
    gain = known.neg_log_likelihood - blind.neg_log_likelihood
    assert (gain[two] > -1e-3).all()
    same = two & (gain < 1e-3)
    assert same.sum() >= 4
    torch.testing.assert_close(
        blind.sources.azimuth[same][:, :2], known.sources.azimuth[same], rtol=0, atol=1e-4
    )


def test_no_number_is_too_improbable_for_a_floor_of_zero():
    recording = simulate(scenes=1, sources=1, snr_db=20, seed=3)
    estimate = locate(recording, spec=LocateSpec(hybrid={"model_order_floor": 0.0}))
    assert estimate.sources.active.sum() == 1


def test_what_was_known_beforehand_counts_and_saves_fits():
    """Of numbers that explain the data alike the likeliest beforehand wins; the impossible is not tried."""
    recording = dense.small(scenes=2, sources=1, snr_db=20.0, known=True)
    grid, tried = dense.grid_for(recording), []

    def fit(scenes, count):
        tried.append((count, scenes.tolist()))
        one = omp(recording[scenes], min(count, 1), grid)
        return one, torch.zeros(len(scenes), dtype=torch.float64)

    prior = torch.tensor([[0.0, 1.0, 3.0, 2.0], [0.0, -math.inf, -math.inf, 1.0]], dtype=torch.float64)
    chosen = select_model_order(torch.arange(2), fit, 3, prior, samples=1000)
    assert tried == [(0, [0, 1]), (1, [0]), (2, [0]), (3, [0, 1])]
    assert chosen.log_posterior.argmax(-1).tolist() == [2, 3]
    torch.testing.assert_close(chosen.probability, prior.softmax(-1))


def test_unknowns_without_information_are_no_evidence():
    J = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    J[1, 0, 0] = math.nan
    level = torch.zeros(2, 1, 1, dtype=torch.float64)
    factor = log_occam_factor(
        J, torch.ones(2, 4, dtype=torch.float64), torch.tensor([[3]]), level, identifiable=False
    )
    assert factor[0].isfinite()
    assert factor[1] == -math.inf


def test_a_weak_source_costs_its_level_below_the_strongest():
    """A factor of e for each 10 dB; absent sources and those of unknown power cost nothing."""
    powers = torch.tensor([[0, 1, 2]])
    J = torch.diag(torch.tensor([1e4, 1e4, 1e-9, 1.0], dtype=torch.float64)).repeat(4, 1, 1)
    J[3] = torch.diag(torch.tensor([1e4, 1e-9, 1e4, 1.0], dtype=torch.float64))
    level_db = torch.tensor([[0.0, 0, -math.inf], [-20, 0, -math.inf], [0, -35, -math.inf], [0, -35, -5]])
    level = (level_db.double() * math.log(10) / 10)[:, None]
    factor = log_occam_factor(J, torch.ones(4, 4, dtype=torch.float64), powers, level, identifiable=False)
    torch.testing.assert_close(factor[0] - factor[1], torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(factor[0] - factor[2], torch.tensor(3.5, dtype=torch.float64))
    unknown_power = factor[0] - factor[3]
    torch.testing.assert_close(unknown_power, torch.full_like(unknown_power, 0.5), rtol=0, atol=1e-2)


def test_the_power_of_a_single_symbol_is_identifiable():
    """Constant symbols have an information of 1 on log power, whatever the SNR."""
    made = simulate(scenes=2, sources=2, snr_db=30, scene={"symbols": "constant"}, seed=3)
    found = locate(replace(made, noise_variance=None, truth=None), method="omp")
    assert found.n_sources.tolist() == [2, 2]


def test_a_fit_without_likelihood_is_no_evidence():
    """Steering vectors of sources near an element may overflow; sources at one place are alike."""
    recording = dense.small(scenes=3, sources=1, snr_db=20.0, known=True)
    grid = dense.grid_for(recording)
    two = omp(recording, 2, grid, criterion="unconditional")
    one_place = two.sources.each(lambda value: torch.cat((value[:, :1],) * 2, dim=1))
    undefined = torch.full_like(two.neg_log_likelihood, math.nan)
    fit = replace(two, sources=one_place, neg_log_likelihood=undefined)
    assert (log_evidence(recording, fit, grid.volume) == -math.inf).all()


@pytest.mark.parametrize("method", ["omp", "hybrid"])
@pytest.mark.parametrize("phase_error", [0.0, 0.5])
def test_the_prior_of_the_number_reaches_every_comparison(method, phase_error, generator, monkeypatch):
    """Also those of the diagnosis, which locates scenes again whose configurations have phase errors."""
    made = simulate(scenes=2, sources=3, snr_db=15.0, seed=2)
    error = phase_error * torch.randn(made.codes.shape, generator=generator)
    made = replace(made, codes=made.codes * (1j * error).exp(), truth=None, noise_variance=None)
    assert (locate(made, method=method).n_sources > 2).any()
    few = lambda count: torch.where(count > 2, -1e4, 0.0).double()  # noqa: E731
    monkeypatch.setattr("rismusic.estimation.model_order.log_prior_of_number", few)
    assert (locate(made, method=method).n_sources <= 2).all()
