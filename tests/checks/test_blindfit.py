"""Without truth: mistakes are named by the fits, and sound recordings are left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import mistakes
import pytest
import torch

from rismusic.array import Panel
from rismusic.checks import fits as blindfit
from rismusic.checks.conventions import (
    CHANGES,
    MODELS,
    Change,
    Evidence,
    applicable,
    best_change,
    scaled_to,
)
from rismusic.checks.fits import BlindFit
from rismusic.checks.recording import check
from rismusic.estimation.grid import SearchGrid, Volume
from rismusic.io import read
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources
from rismusic.spec import SystemSpec

SPEC = SystemSpec(
    panel={"rows": 4, "columns": 5},
    channel={"antennas": 20},
    codebook={"snapshots": 8},
    sources=1,
    snr_db=15.0,
    scene={"range_min_m": 0.5, "range_max_m": 2.0},
)


@pytest.fixture(autouse=True)
def one_source(monkeypatch):
    """A search for one source instead of three: a third of the time, and enough for these scenes."""
    monkeypatch.setattr(blindfit, "SETTINGS", blindfit.SETTINGS.replace(sources=1))


def small(**settings):
    made = simulate(SPEC, scenes=2, **settings)
    return replace(made, truth=None, noise_variance=None)


def named(recording):
    found = BlindFit(recording).search()
    return None if found is None else found.change.name


@pytest.mark.parametrize("kind", [{"channel": {"kind": "direct"}}, {"hardware": {"static_phase_rad": 0.2}}])
def test_sound_recordings(kind):
    assert named(small(**kind)) is None


def test_near_sources_at_28_ghz():
    """They are nearer than the 0.5 m of the default search, at whose boundary another wave fits better."""
    system = {
        "panel": {"rows": 8, "columns": 8, "wavelength_m": 0.0107},
        "channel": {"kind": "direct"},
        "scene": {"range_min_m": 0.04, "range_max_m": 0.15},
    }
    for seed in range(4):
        assert named(small(snr_db=20.0, seed=seed, **system)) is None


def test_sources_outside_the_quick_search():
    """At its boundary another wave fits better, or configurations of one bit."""
    system = {"panel": {"rows": 8, "columns": 8}, "channel": {"antennas": 16}, "codebook": {"snapshots": 12}}
    for seed in range(3):
        aside = Sources.from_degrees([75.0], [10.0 * seed - 10.0], [1.0 + 0.5 * seed])
        made = simulate(scenes=2, sources=aside, snr_db=20.0, seed=seed, **system)
        assert named(replace(made, truth=None, noise_variance=None)) is None


@pytest.mark.parametrize(
    "name", ["codes_conjugated", "channel_transposed", "elements_renumbered", "codes_late"]
)
def test_mistakes(name):
    assert named(mistakes.made(name, small())) == name


def test_phases_that_are_coarser_than_recorded():
    assert named(mistakes.made("codes_2_bit", small(codebook={"bits": 2}))) == "codes_2_bit"


def test_a_sample_with_conjugate_snapshots(samples):
    sample = read(samples / "one_link_20dB.mat")[:1]
    assert named(mistakes.made("snapshots_conjugated", sample)) == "snapshots_conjugated"


def test_what_cannot_be_seen_is_not_tried():
    def tried(recording):
        return {change.name for change, _ in applicable(recording, blind=True) if change.family not in MODELS}

    conjugates = {change.name for change in CHANGES if change.name.endswith("conjugated")}
    conjugates.remove("pilots_conjugated")  # there are none
    assert len(conjugates) == 7
    orders = {"codes_late", "codes_early", "codes_reversed"}
    coarse = {"codes_1_bit", "codes_2_bit"}
    square = {"channel_transposed", "channel_hermitian"}
    assert tried(small()) == conjugates | square | orders | coarse | {"elements_renumbered"}
    # x and y exchanged on a square panel are sources with u_x and u_y exchanged.
    assert tried(small(panel={"rows": 4, "columns": 4})) == conjugates | orders | coarse
    # Real codes are their own conjugates.
    real = small(codebook={"kind": "hadamard", "snapshots": 8}, channel={"antennas": 6})
    without = {name for name in conjugates if "codes" not in name and "all" not in name}
    assert tried(real) == {"elements_renumbered", *without} | orders
    direct = small(channel={"kind": "direct"})
    assert tried(direct) == {"snapshots_conjugated", "elements_renumbered"}
    # Units only where the spacing is unusual, and only to a usual one.
    coarse = mistakes.made("elements_in_wavelengths", direct)
    assert tried(coarse) >= {"elements_in_wavelengths", "frequency_in_ghz"}
    assert "wavelength_halved" not in tried(coarse)


def test_a_mirrored_panel_fits_as_well():
    """The symmetry behind it: elements with x reversed, and sources at reversed azimuth."""
    sound = small()
    mirrored = replace(sound, elements=sound.elements * torch.tensor([-1.0, 1.0, 1.0]))
    forms = [blindfit._Form(form) for form in (sound, mirrored)]
    first, second = (form.evidence(slice(None), form.fit(slice(None))) for form in forms)
    torch.testing.assert_close(first, second, atol=0.5, rtol=1e-3)


def test_size_of_the_search_is_foreseen():
    sizes = ((12, 12, 0.5, 0.3), (4, 5, 0.5, 0.3), (24, 24, 0.5, 0.3), (8, 8, 1.7, 0.3), (8, 8, 0.5, 0.01))
    for rows, columns, spacing, wavelength in sizes:
        panel = Panel.uniform_planar(rows, columns, spacing_wavelengths=spacing, wavelength=wavelength)
        settings = scaled_to(blindfit.SETTINGS, panel)
        grid = SearchGrid.cover(panel, Volume.from_spec(settings), settings.oversampling)
        assert 0.5 < blindfit._points(panel, settings) / len(grid) < 4
    huge = Panel.uniform_planar(64, 64, spacing_wavelengths=5.0)
    assert blindfit._points(huge, blindfit.SETTINGS) > 1e8


def change(name, family, blind=None):
    return Change(name, "", "", lambda recording: recording, family, blind)


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ([("a", "1", 100.0, 1.0)], "a"),
        ([("a", "1", 10.0, 1.0)], None),  # too little
        ([("a", "1", 100.0, 0.4)], None),  # not in half of the scenes
        ([("a", "1", 100.0, 1.0), ("b", "2", 90.0, 1.0)], None),  # does not stand out
        ([("a", "1", 100.0, 1.0), ("b", "1", 90.0, 1.0), ("c", "1", 20.0, 1.0)], "a b"),
        ([("a", "1", 100.0, 1.0), ("b", "2", -50.0, 0.0)], "a"),
        ([("a", "1", math.inf, 1.0), ("b", "1", 90.0, 1.0)], "a"),  # nothing is left of the data
        ([], None),
    ],
)
def test_verdict(ratios, answer):
    evidence = [Evidence(change(name, family, family), ratio, share) for name, family, ratio, share in ratios]
    for blind in (False, True):
        found = best_change(evidence, 20.0, blind=blind)
        assert (None if found is None else " ".join((found.change.name, *found.alike))) == answer
    if answer == "a":
        left = [replace(each, left=0.6) for each in evidence]
        assert best_change(left, 20.0) is None


def test_threshold():
    fit = BlindFit(small())
    assert fit.threshold == pytest.approx(math.log(19 / 1e-6))


def test_truth_and_noise_variance_are_not_used():
    made = simulate(SPEC, scenes=1, panel={"rows": 4, "columns": 4})
    fit, blind = BlindFit(made), BlindFit(replace(made, truth=None, noise_variance=None))
    names = [{each.change.name for each in some.evidence()} for some in (fit, blind)]
    assert names[0] == names[1]
    assert "elements_renumbered" not in names[0]


def test_scenes_are_looked_at_until_it_is_clear(monkeypatch):
    monkeypatch.setattr(blindfit, "_TOGETHER", 1)
    direct = replace(simulate(SPEC, scenes=12, snr_db=-8.0, channel={"kind": "direct"}), truth=None)
    sound, wrong = BlindFit(direct), BlindFit(mistakes.made("elements_renumbered", direct))
    for fit in (sound, wrong):
        fit._open = [change for change in fit._open if change.family not in MODELS]
    assert sound.search() is None
    assert wrong.search().change.name == "elements_renumbered"
    assert 1 < wrong.scenes < 12
    # What is refuted is looked at no more.
    seen = {change.name: count for change, count in sound._scenes_used.items() if count}
    assert min(seen.values()) < max(seen.values()) == sound.scenes


def test_large_grids_of_the_forms_are_not_kept(memory_budget):
    """The forms of one recording of a sparse array held 2 GiB together."""
    form = blindfit._Form(simulate(scenes=1, sources=1, seed=3))
    assert form._grid() is form._grid()
    memory_budget(2**20)
    form = blindfit._Form(form.recording)
    assert form._grid() is not form._grid()


@pytest.mark.parametrize(("antennas", "sources"), [(1, 1), (2, 2)])
def test_pilots_of_more_sources_than_the_samples_identify_are_not_fitted(antennas, sources):
    made = simulate(
        scenes=2,
        sources=sources,
        panel={"rows": 4, "columns": 4},
        channel={"antennas": antennas},
        codebook={"snapshots": 1},
        scene={"symbols": "pilots"},
    )
    report = check(replace(made, truth=None))
    assert report.facts["conventions"].endswith("too few samples for the sources of the pilots)")
