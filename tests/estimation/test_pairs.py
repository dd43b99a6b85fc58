from __future__ import annotations

from itertools import combinations

import dense
import pytest
import torch

from rismusic.array import Panel
from rismusic.estimation import classical
from rismusic.estimation.classical import fit_known
from rismusic.estimation.grid import searched_grid
from rismusic.estimation.maximum_likelihood import nfmle, refine
from rismusic.estimation.pairs import best_pairs, can_search_pairs, pair_sweeps, pairs_beside
from rismusic.estimation.search import Dictionary, GridSearch, received_fields
from rismusic.estimation.signal_model import for_geometry
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import LocateSpec


@pytest.mark.parametrize(("links", "snapshots"), [(1, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("shared", [True, False])
def test_pairs_explain_as_much_as_their_projections(links, snapshots, shared, generator):
    """All pairs of nine points, each by a QR decomposition; one point is left out, two are parallel."""
    fields = torch.randn(1 if shared else 2, links, 6, 9, dtype=torch.complex128, generator=generator)
    fields[..., 4], fields[..., 7] = 0, 2j * fields[..., 2]
    data = torch.randn(2, snapshots, 6, dtype=torch.complex128, generator=generator)
    found = best_pairs(fields, data, 5)
    for scene in range(2):
        energy = {}
        for pair in combinations(range(9), 2):
            if 4 in pair or pair == (2, 7):
                continue
            A = fields[0 if shared else scene][:, :, pair]
            Q = torch.linalg.qr(A.expand(snapshots, -1, -1)).Q
            energy[pair] = float((Q.mH @ data[scene][..., None]).abs().square().sum())
        best = sorted(energy.values(), reverse=True)[:5]
        assert [energy[tuple(pair)] for pair in found[scene].tolist()] == pytest.approx(best, rel=1e-9)


def test_a_pair_beside_a_source_explains_the_most_together_with_it(generator):
    """All pairs of a coarse grid with the true third source, by QR decompositions; one scene has none."""
    recording = coherent(3, 6, generator)
    spec = for_geometry(LocateSpec(azimuth_max_deg=85.0, range_min_m=2.0, oversampling=1.0), recording.panel)
    dictionary = Dictionary.of(searched_grid(recording, spec))
    truth, _ = dense.truth_of(recording)
    places = dictionary.positions(torch.arange(len(dictionary)))
    fields = received_fields(recording[:1], places[None]).to(torch.complex128)
    third = received_fields(recording, truth[:, :1]).to(torch.complex128)
    there = torch.arange(6)[:, None] > 0
    found = pairs_beside(recording, fields, truth[:, :1], there, 1)[:, 0]
    pairs = torch.combinations(torch.arange(len(dictionary)), 2)
    for scene in range(6):
        A = fields[0, 0].T[pairs].mT
        if there[scene]:
            A = torch.cat((A, third[scene, 0].expand(len(pairs), -1, -1)), dim=-1)
        y = recording.snapshots[scene].to(A.dtype).mT
        energy = (torch.linalg.qr(A).Q.mH @ y).abs().square().sum((1, 2))
        mine = int((pairs == found[scene]).all(1).nonzero())
        assert float(energy[mine]) == pytest.approx(float(energy.max()), rel=1e-5)


def test_few_points_have_few_pairs(generator):
    fields = torch.randn(1, 1, 4, 3, dtype=torch.complex128, generator=generator)
    data = torch.randn(2, 1, 4, dtype=torch.complex128, generator=generator)
    assert best_pairs(fields, data, 12).sort(dim=1).values.shape == (2, 3, 2)


def coherent(sources, scenes, generator):
    """Far sources of a line of 16 antennas, 8 deg apart or more, within 85 deg; constant symbols, 10 dB."""
    drawn = torch.empty(40 * scenes, sources, dtype=torch.float64).uniform_(-85, 85, generator=generator)
    apart = drawn.sort(dim=1).values.diff(dim=1).amin(dim=1) >= 8
    azimuth = drawn[apart][:scenes]
    truth = Sources.from_degrees(azimuth, 0 * azimuth, torch.full_like(azimuth, 1e5))
    return simulate(
        sources=truth,
        panel=Panel.uniform_linear(16),
        snr_db=10.0,
        channel={"kind": "direct"},
        codebook={"snapshots": 4},
        scene={"symbols": "constant"},
    ).stacked()


@pytest.mark.parametrize(("sources", "scenes"), [(2, 100), (3, 50)])
def test_coherent_sources_of_a_line_are_fitted_as_well_as_from_the_truth(
    sources, scenes, generator, monkeypatch
):
    """Pairs leave at most a third as many fits worse, by more than 0.1 nats, as single sources do."""
    recording = coherent(sources, scenes, generator)
    spec = LocateSpec(method="relax", azimuth_max_deg=85.0, range_max_m=float("inf"))
    spec = for_geometry(spec, recording.panel)
    grid = searched_grid(recording, spec)
    peeked = nfmle(recording, recording.truth, grid.volume, criterion=spec.criterion)

    def worse():
        found = fit_known(recording, torch.full((scenes,), sources), grid, spec)
        return int((found.neg_log_likelihood > peeked.neg_log_likelihood + 0.1).sum())

    by_pairs = worse()
    monkeypatch.setattr(classical, "can_search_pairs", lambda search: False)
    one_by_one = worse()
    assert one_by_one >= 3
    assert 3 * by_pairs <= one_by_one


def test_only_scenes_with_two_sources_change_and_none_gets_worse(generator):
    """Starts in the middle of two sources, where RELAX stays; one scene in four has one source."""
    recording = coherent(2, 24, generator)
    spec = for_geometry(LocateSpec(azimuth_max_deg=85.0, range_max_m=float("inf")), recording.panel)
    grid = searched_grid(recording, spec)
    search = GridSearch(Dictionary.of(grid), recording)
    assert can_search_pairs(search)
    truth, active = dense.truth_of(recording)
    middle = truth.mean(dim=1, keepdim=True) + truth.new_tensor([[[-0.02, 0, 0], [0.02, 0, 0]]])
    active = active.clone()
    active[::4, 1] = False
    start = refine(recording, middle, active, grid.volume, criterion="conditional")
    end = pair_sweeps(search, start, active)
    torch.testing.assert_close(end.positions[::4], start.positions[::4], rtol=0, atol=0)
    assert (end.value <= start.value).all()
    two = active[:, 1]
    peeked = refine(recording, truth, active, grid.volume, criterion="conditional")
    assert (start.value[two] > peeked.value[two] + 1).sum() >= 6
    assert (end.value[two] > peeked.value[two] + 1).sum() <= 1


def test_the_pairs_of_a_large_grid_are_not_searched():
    recording = dense.small()
    large = Dictionary.of(dense.grid_for(recording, 6.0))
    assert not can_search_pairs(GridSearch(large, recording))
