from __future__ import annotations

from dataclasses import replace

import dense
import numpy as np
import pytest
import torch

from rismusic.estimate import powermap, powers
from rismusic.estimate.dictionary import Dictionary
from rismusic.estimate.nfmle import pack
from rismusic.estimate.powermap import map_peaks
from rismusic.estimate.powers import learn_powers, shares_outer
from rismusic.estimate.search import Search
from rismusic.estimate.sparse import sbl


def pieces(system, scenes=3, oversampling=1.5, **settings):
    recording = dense.small(dense.SYSTEMS[system], scenes, known=True, dtype=torch.float32, **settings)
    points = Dictionary.of(dense.grid_for(recording, oversampling))
    ((_, columns),) = points.columns()
    return recording, points, points.fields(recording.link, columns)


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_fields_are_the_dictionary(system):
    recording, points, fields = pieces(system)
    for scene in range(3):
        expected = dense.fields(recording, scene, points.positions(torch.arange(len(points))))
        found = fields[min(scene, len(fields) - 1)].unflatten(1, (-1, 2))
        found = torch.complex(found[:, :, 0], found[:, :, 1]).expand(expected.shape)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("system", dense.SYSTEMS)
@pytest.mark.parametrize("shared", [False, True])
def test_the_fixed_point_is_the_dense_one(system, shared, monkeypatch):
    if shared and system == "own":
        pytest.skip("links of their own share nothing")
    monkeypatch.setattr(powers, "_WARM", 99)
    recording, points, fields = pieces(system)
    noise = recording.noise_variance
    found = learn_powers(fields, recording.snapshots, noise, shared=shared, iterations=4)
    y = recording.snapshots.numpy().astype(complex)
    for scene in range(3):
        G = dense.fields(recording, scene, points.positions(torch.arange(len(points))))
        energy = (np.abs(y[scene]) ** 2).sum()
        signal = max(energy - y[scene].size * float(noise[scene]), 0.1 * energy)
        power = np.full(len(points), signal / (np.abs(G) ** 2).sum(dtype=float))
        for _ in range(4):
            pull, own = 0, 0
            for Gl, yl in zip(G, y[scene], strict=True):
                W = np.linalg.inv((Gl * power) @ Gl.conj().T + float(noise[scene]) * np.eye(len(yl)))
                pull = pull + np.abs(Gl.conj().T @ (W @ yl)) ** 2
                own = own + (Gl.conj() * (W @ Gl)).sum(0).real
            power = power * pull / own
        scale = power.max()
        np.testing.assert_allclose(found[scene] / scale, power / scale, atol=2e-3)


def test_dropping_weak_points_changes_little(monkeypatch):
    recording, _, fields = pieces("own", oversampling=2.5)
    noise = recording.noise_variance
    found = learn_powers(fields, recording.snapshots, noise, iterations=12)
    monkeypatch.setattr(powers, "_WARM", 99)
    expected = learn_powers(fields, recording.snapshots, noise, iterations=12)
    assert (found > 0).float().mean() <= 0.25
    assert (expected > 0).float().mean() > 0.25
    scale = expected.amax(dim=1, keepdim=True)
    assert ((found - expected).abs() / scale).max() < 0.2


@pytest.mark.parametrize("system", dense.SYSTEMS)
def test_the_highest_peaks_stand_near_the_sources(system):
    recording = dense.small(dense.SYSTEMS[system], 20, known=True, snr_db=20.0, dtype=torch.float32)
    search = Search(Dictionary.of(dense.grid_for(recording)), recording)
    found = map_peaks(search, recording.noise_variance, 2)
    there = pack(found, torch.ones(20, 2, dtype=torch.bool))
    assert dense.misses(recording.truth, there, degrees=8) <= 4
    hidden = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    found = map_peaks(Search(search.dictionary, hidden), recording.noise_variance, 2)
    assert dense.misses(recording.truth, pack(found, there.active), degrees=8) > 15


def test_large_grids_are_learned_on_their_best_points(monkeypatch):
    recording = dense.small(scenes=12, snr_db=20.0, dtype=torch.float32)
    grid = dense.grid_for(recording)
    monkeypatch.setattr(powermap, "_FIELDS", 0)
    monkeypatch.setattr(powermap, "_FEWEST", len(grid) // 3)
    learned = []
    plain = powermap.learn_powers

    def seen(fields, *arguments, **settings):
        learned.append(fields.shape[-1])
        return plain(fields, *arguments, **settings)

    monkeypatch.setattr(powermap, "learn_powers", seen)
    fit = sbl(recording, 2, grid)
    assert learned == [len(grid) // 3] * 12
    assert dense.misses(recording.truth, fit.sources) <= 2


def test_a_batch_is_a_loop_whether_outer_products_are_shared_or_not(monkeypatch):
    recording = dense.small(dense.ONE_LINK, 6, sources=2)
    grid = dense.grid_for(recording)
    assert shares_outer(torch.zeros(1, 7, 16, len(grid)))
    together = sbl(recording, 2, grid)
    alone = [sbl(recording[i : i + 1], 2, grid).likelihood for i in range(6)]
    torch.testing.assert_close(together.likelihood, torch.cat(alone), rtol=1e-6, atol=1e-2)
    monkeypatch.setattr(powers, "_OUTER", 0)
    torch.testing.assert_close(sbl(recording, 2, grid).likelihood, together.likelihood, rtol=1e-6, atol=1e-2)
