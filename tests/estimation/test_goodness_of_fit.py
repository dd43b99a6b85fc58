"""Residuals against dense forms; p values uniform over sound scenes, small where the model does not hold."""

from __future__ import annotations

import math
from dataclasses import replace

import dense
import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import stats

from rismusic.estimation import goodness_of_fit as goodness
from rismusic.estimation.goodness_of_fit import (
    Projection,
    goodness_of_fit,
    sphericity,
    tail_probability,
)
from rismusic.estimation.maximum_likelihood import pack
from rismusic.estimation.table import scene_records
from rismusic.hybrid import locate
from rismusic.operator import Link
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

SPEC = SystemSpec(
    panel={"rows": 6, "columns": 6}, channel={"antennas": 8}, codebook={"snapshots": 7}, snr_db=10.0
)
KINDS = {"own": SPEC, "one": SPEC.replace(one_link=True), "direct": SPEC.replace(channel={"kind": "direct"})}
ALL = pytest.mark.parametrize("kind", KINDS)


def places(truth: Sources) -> Sources:
    """Positions alone."""
    return Sources(azimuth=truth.azimuth, elevation=truth.elevation, range=truth.range).each(
        lambda value: value.double()
    )


def made(kind="own", scenes=5, *, known=True, **settings):
    recording = simulate(KINDS[kind], scenes=scenes, **settings)
    return recording if known else replace(recording, noise_variance=None)


def stacked(y):
    return np.concatenate((y.real.ravel(), y.imag.ravel()))


def directions(recording, scene, positions):
    """Real directions that a fit takes away, as columns, by finite differences of G_l A s."""
    C, y = dense.fields(recording, scene, positions), recording.snapshots[scene].to(torch.complex128).numpy()
    s = [np.linalg.lstsq(G, data, rcond=None)[0] for G, data in zip(C, y, strict=True)]
    columns = []
    for snapshot, G in enumerate(C):
        for g in G.T:
            for unit in (g, 1j * g):
                whole = np.zeros_like(y)
                whole[snapshot] = unit
                columns.append(stacked(whole))
    for k in range(len(positions)):
        for axis in range(3):
            step = torch.zeros_like(positions)
            step[k, axis] = 1e-5
            ahead, behind = (dense.fields(recording, scene, positions + sign * step) for sign in (1, -1))
            columns.append(stacked(np.einsum("lmk,lk->lm", (ahead - behind) / 2e-5, np.array(s))))
    return np.array(columns).T


@ALL
def test_projection_is_off_fields_and_their_changes(kind):
    recording = made(kind, 3, sources=(1, 3))
    positions, active = dense.truth_of(recording)
    off = Projection.off(recording, positions, active, torch.ones_like(positions, dtype=torch.bool))
    data = recording.snapshots.to(torch.complex128)
    rest = off.of(data[:, None])[:, 0]
    for scene in range(3):
        D = directions(recording, scene, positions[scene][active[scene]])
        y = stacked(data[scene].numpy())
        expected = y - D @ np.linalg.lstsq(D, y, rcond=None)[0]
        np.testing.assert_allclose(stacked(rest[scene].numpy()), expected, atol=1e-4 * np.abs(y).max())
        assert off.freedom(7)[scene] == len(y) - np.linalg.matrix_rank(D, tol=1e-6)


def test_empty_places_take_nothing_away():
    recording = made(sources=2)
    one = places(recording.truth).each(lambda value: value[:, :1])
    gap = one.each(lambda value: torch.cat((torch.full_like(value, math.nan), value), dim=1))
    torch.testing.assert_close(
        goodness_of_fit(recording, gap).p_value, goodness_of_fit(recording, one).p_value
    )


def test_chi_square():
    recording = made(sources=2)
    positions, active = dense.truth_of(recording)
    fit = goodness_of_fit(recording, places(recording.truth))
    off = Projection.off(recording, positions, active, torch.ones_like(positions, dtype=torch.bool))
    energy = off.of(recording.snapshots.to(torch.complex128)[:, None]).abs().square().sum((1, 2, 3))
    freedom = 2 * 7 * (8 - 2) - 3 * 2
    statistic = 2 * energy / recording.noise_variance.double()
    np.testing.assert_allclose(fit.p_value, stats.chi2.sf(statistic.numpy(), freedom), rtol=1e-9)
    np.testing.assert_allclose(fit.excess, statistic / freedom)


@ALL
def test_sphericity_is_johns_statistic(kind, generator):
    recording = made(kind, 2, sources=1)
    M = recording.snapshots.shape[-1]
    rest = torch.randn(2, 3, 7, M, dtype=torch.complex128, generator=generator)
    measured = sphericity(recording.link, rest).exp()
    for scene in range(2):
        for draw in range(3):
            r = rest[scene, draw].numpy()
            expected = [r, r]
            if recording.channel is not None:
                H, c = (
                    (part if part.ndim == 2 else part[scene]).to(torch.complex128).numpy()
                    for part in (recording.channel, recording.codes)
                )
                root = scipy.linalg.fractional_matrix_power(H @ H.conj().T, -0.25)
                expected[1] = np.array(
                    [(H @ np.diag(code)).conj().T @ root @ one for code, one in zip(c, r, strict=True)]
                )
            for place, x in enumerate(expected):
                T = np.linalg.norm(x.T @ x.conj()) ** 2 / np.linalg.norm(r) ** 4
                assert float(measured[scene, place, draw]) == pytest.approx(T, rel=1e-5)


@ALL
@pytest.mark.parametrize("known", [True, False])
def test_p_values_are_uniform_on_sound_scenes(kind, known):
    recording = made(kind, 300, known=known, sources=(1, 3))
    p = goodness_of_fit(recording, places(recording.truth)).p_value
    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.01


def blamed(recording, sources, share=0.01):
    """Share of scenes whose p value lies below ``share``."""
    return float((goodness_of_fit(recording, sources).p_value < share).double().mean())


@pytest.mark.parametrize("known", [True, False])
def test_what_the_sources_do_not_explain_is_noticed(known):
    size = {"panel": {"rows": 8, "columns": 8}, "channel": {"antennas": 12}, "codebook": {"snapshots": 16}}
    recording = made(scenes=60, known=known, sources=2, snr_db=20.0, **size)
    truth = places(recording.truth)
    assert blamed(recording, truth) < 0.06
    assert blamed(recording, truth.each(lambda value: value[:, :1])) > 0.9
    conjugated = replace(recording, snapshots=recording.snapshots.conj().resolve_conj())
    assert blamed(conjugated, truth) > 0.9
    errors = {"static_phase_rad": 0.2, "dead_fraction": 0.05}
    wrong = made(scenes=60, known=known, sources=2, snr_db=20.0, hardware=errors, **size)
    assert blamed(wrong, truth) > (0.9 if known else 0.5)


def test_a_coordinate_at_the_boundary_is_not_free():
    recording = made(scenes=3, sources=1)
    positions, active = dense.truth_of(recording)
    positions[0, 0, 0], positions[1, 0, 2] = dense.VOLUME.upper[0], dense.VOLUME.lower[2]
    held = dense.VOLUME.at_boundary(positions)
    assert held.sum(dim=(1, 2)).tolist() == [1, 1, 0]
    off = Projection.off(recording, positions, active, ~held)
    assert off.freedom(7).tolist() == [2 * 7 * 7 - 2, 2 * 7 * 7 - 2, 2 * 7 * 7 - 3]
    held, free = (
        goodness_of_fit(recording, pack(positions, active), box).excess for box in (dense.VOLUME, None)
    )
    assert (held != free).tolist() == [True, True, False]


def test_tail_probability(generator):
    draws = -torch.rand(2000, 255, generator=generator, dtype=torch.float64).log()
    value = -torch.rand(2000, generator=generator, dtype=torch.float64).log()
    p = tail_probability(value, draws)
    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.01
    far = tail_probability(torch.full((2000,), -math.log(1e-6), dtype=torch.float64), draws)
    assert 1e-7 < far.median() < 1e-5
    assert (tail_probability(value + 1, draws) < p).double().mean() > 0.99


def test_a_scene_is_answered_alike_alone_and_among_others():
    recording = made(scenes=30, known=False, sources=2)
    sources = places(recording.truth)
    whole = goodness_of_fit(recording, sources).p_value
    alone = torch.cat(
        [goodness_of_fit(recording[i : i + 1], sources[i : i + 1]).p_value for i in range(0, 30, 7)]
    )
    torch.testing.assert_close(alone, whole[::7], rtol=1e-3, atol=1e-6)


def test_where_nothing_can_be_told():
    clean = made(known=False, sources=2, snr_db=240.0, dtype=torch.float64)
    assert (goodness_of_fit(clean, places(clean.truth)).p_value == 1).all()
    one = made("direct", known=False, sources=1, codebook={"snapshots": 1})
    assert goodness_of_fit(one, places(one.truth)).p_value.isnan().all()
    records = scene_records(locate(one, n_sources=1, method="omp"))
    assert all(record["p_value"] is None for record in records)


@pytest.mark.parametrize("known", [True, False])
def test_located_says_so(known):
    recording = made(scenes=6, known=known, sources=2, snr_db=25.0)
    sound, short = (locate(recording, n_sources=K, method="omp") for K in (2, 1))
    assert (sound.p_value > 1e-3).all()
    assert not any("as recorded" in said for scene in sound.warnings for said in scene)
    words = "times the energy of the noise (p =" if known else "is not white noise (p ="
    for p, warnings in zip(short.p_value.tolist(), short.warnings, strict=True):
        assert any(words in said for said in warnings) == (p < 1e-3)
    assert (short.p_value < 1e-3).double().mean() > 0.5
    assert [record["p_value"] for record in scene_records(short)] == short.p_value.tolist()


@pytest.mark.parametrize("scenes", [None, 3], ids=["one link", "a link per scene"])
def test_statistic_of_one_output_is_that_of_the_fields_on_the_panel(scenes):
    generator = torch.Generator().manual_seed(3)
    leading = () if scenes is None else (scenes,)
    draw = {"dtype": torch.complex128, "generator": generator}
    channel, codes = torch.randn(*leading, 1, 30, **draw), torch.randn(*leading, 7, 30, **draw)
    rest = torch.randn(3, 5, 7, 1, **draw)
    unit = channel / channel.norm(dim=-1, keepdim=True).sqrt()
    fields = (unit * codes).conj().expand(3, -1, -1)[:, None] * rest
    gram = fields.mH @ fields
    expected = gram.abs().square().sum((-2, -1)).log() - 2 * rest.abs().square().sum((-2, -1)).log()
    torch.testing.assert_close(sphericity(Link(channel, codes), rest)[:, 1], expected)


@pytest.mark.parametrize(("snapshots", "antennas"), [(4, 6), (5, 3), (1, 4)])
def test_the_compiled_statistic_of_draws_is_that_of_the_torch_form(snapshots, antennas, monkeypatch):
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, dtype=torch.complex64, generator=generator)

    link = Link(noise(3, antennas, 21), noise(3, snapshots, 21))
    rest = noise(3, 7, snapshots, antennas)
    compiled = sphericity(link, rest)
    monkeypatch.setattr(goodness, "compiled_fits", lambda: None)
    expected = sphericity(link, rest)
    assert not torch.equal(compiled, expected)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("outlier", ["antenna", "snapshot", "none"])
def test_an_antenna_or_a_snapshot_that_stands_out_is_named(outlier):
    """Antenna 3 is dead, or interference is in snapshot 5; a source that is left out is neither."""
    sound = simulate(scenes=12, sources=2, snr_db=15, seed=31)
    y, at = sound.snapshots.clone(), places(sound.truth)
    noise = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    level = y.abs().square().mean((1, 2), keepdim=True).sqrt()
    if outlier == "antenna":
        y[:, :, 3] = 0.01 * noise[:, :, 3]
    elif outlier == "snapshot":
        y[:, 5] += (level * noise)[:, 5]
    else:
        at = at.each(lambda value: value[:, :1])
    fits = goodness_of_fit(replace(sound, snapshots=y, noise_variance=None), at)
    right = {"antenna": "antenna 3 has", "snapshot": "snapshot 5 has", "none": None}[outlier]
    named = [bool(one) and (right is None or right not in one) for one in fits.causes]
    assert sum(named) <= 1  # a residual that is not white may have an antenna of its own
    if right is not None:
        assert sum(right in one for one in fits.causes) >= 10
