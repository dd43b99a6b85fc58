"""The benchmark as a whole, on a small panel: what it says, and that nothing is lost or done twice."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from forked import ended, forked
from rismusic.benchmark import run
from rismusic.benchmark.run import bench, results
from rismusic.benchmark.spec import SCENES, BenchSpec, Unit
from rismusic.benchmark.summary import Store, load_settings, read_table
from rismusic.crb import Bound, recording_crb
from rismusic.errors import InputError
from rismusic.hybrid import locate
from rismusic.metrics import match, score
from rismusic.simulation.simulator import simulate
from rismusic.sources import Sources

SPEC = BenchSpec(
    methods=("music:conditional", "omp:conditional"),
    sources=(2,),
    snr_db=(20.0,),
    scenes=5,
    block=3,
    seed=3,
    panel={"rows": 4, "columns": 5},
    channel={"antennas": 7},
    codebook={"snapshots": 6},
    locate={"oversampling": 1.2},
)
PARTS = 2 * 4  # blocks; the scenes, two methods, and the truth's fit that their misses are compared with


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the whole benchmark, done at once in this process."""
    folder = tmp_path_factory.mktemp("whole") / "bench"
    seen = []
    result = bench(SPEC, out=folder, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert len(result.rows) == 2
    assert seen[0] == (0, seen[-1][1]) == (0, 4 * 5)
    assert seen[-1][0] == seen[-1][1]
    assert read_table(folder / "results.csv") == result.rows
    assert load_settings(folder) == SPEC
    return folder


def joined(parts):
    names = ("azimuth", "elevation", "range")
    return Sources(**{name: torch.cat([getattr(part, name).double() for part in parts]) for name in names})


@pytest.mark.parametrize("method", ["music", "omp"])
def test_rows_are_those_of_a_plain_loop(whole, method):
    found, truth, bounds = [], [], []
    system = SPEC.cells()[0].system
    made = simulate(system, scenes=5, sources=2, snr_db=20, seed=3, split="test")
    for start in range(0, 5, 3):
        block = made[start : start + 3]
        blind = replace(block, truth=None, noise_variance=None)
        found.append(
            locate(blind, n_sources=2, oversampling=1.2, method=method, criterion="conditional").sources
        )
        truth.append(block.truth)
        bounds.append(recording_crb(block))
    bound = Bound.from_covariance(
        torch.cat([one.covariance for one in bounds]), torch.cat([one.range for one in bounds])
    )
    expected = score(match(joined(truth), joined(found)), bound)
    (row,) = (row for row in read_table(whole / "results.csv") if row.method.startswith(method))
    for name, value in vars(expected).items():
        got = getattr(row, name)
        assert getattr(got, "value", got) == pytest.approx(value, rel=1e-9), name


def test_music_on_the_true_covariance_needs_no_snapshots():
    (cell,) = SPEC.cells()
    raw, polished = (results(SPEC, Unit(cell, f"oracle:music{how}", 0, 2)) for how in (":raw", ""))
    truth = results(SPEC, Unit(cell, SCENES, 0, 2))
    for name in ("azimuth", "elevation", "range"):
        np.testing.assert_allclose(np.sort(raw[name]), np.sort(truth[name]), atol=1e-6)
        assert np.abs(np.sort(polished[name]) - np.sort(truth[name])).max() > 1e-4
    assert (polished["likelihood"] < raw["likelihood"]).all()


def test_damaged_parts_are_done_again_and_no_others(whole, tmp_path, monkeypatch):
    folder = tmp_path / "bench"
    shutil.copytree(whole, folder)
    parts = sorted((folder / "parts").glob("*/*/*.npz"))
    assert len(parts) == PARTS
    parts[0].write_bytes(parts[0].read_bytes()[:-40])
    parts[1].write_bytes(b"")
    parts[2].write_bytes(bytes(100))
    middle = bytearray(parts[3].read_bytes())
    middle[len(middle) // 2] ^= 1
    parts[3].write_bytes(middle)
    shutil.copyfile(parts[4], parts[5])  # whole, but of more scenes
    parts[7].unlink()
    with np.load(parts[6]) as held:
        values = dict(held)
    values["range"] = values["range"] * np.nan
    np.savez(parts[6], **values)
    (parts[7].parent / ".0000000.99.part.npz").write_bytes(b"half written")
    (folder / "results.csv").unlink()
    done = []
    monkeypatch.setattr(run, "do_unit", counting(run.do_unit, done))
    result = bench(SPEC, out=folder, resume=True, workers=1)
    assert len(done) == 7
    assert result.rows
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert list(folder.rglob(".*")) == []


@pytest.mark.parametrize("method", ["omp:conditional", SCENES])
def test_a_part_with_other_arrays_than_were_stored_is_missing(whole, tmp_path, method):
    folder = tmp_path / "bench"
    shutil.copytree(whole, folder)
    store, unit = Store(folder), Unit(SPEC.cells()[0], method, 0, 3)
    held = store.read(unit)
    with np.load(store.path(unit)) as stored:
        everything = dict(stored)
    for name, value in held.items():
        changes = [value.astype(kind) for kind in ("i1", "f2", ">f8", "c16", "?", "U9")]
        changes += [value[None], np.append(value, value), np.array(value, object), value + 1]
        for changed in changes:
            np.savez(store.path(unit), **{**everything, name: changed})
            assert store.read(unit) is None, (name, changed.dtype, changed.shape)
    np.savez(store.path(unit), **everything)
    assert store.read(unit) is not None
    shutil.copyfile(store.path(unit), store.path(replace(unit, start=3, stop=6)))
    assert store.read(replace(unit, start=3, stop=6)) is None


def counting(work, done):
    def counted(spec, unit, **named):
        done.append(unit)
        return work(spec, unit, **named)

    return counted


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 4}, r"^seed: must be 3 as in .*settings\.toml; got 4$"),
        ({"methods": ("omp",)}, r"^methods: must be \['music:conditional', .* got \['omp'\]$"),
        ({"panel": {"rows": 4, "columns": 6}}, r"^panel\.columns: must be 5 as in .* got 6$"),
        ({"noise": "known"}, r"^noise: must be 'hidden' as in .* got 'known'$"),
    ],
)
def test_other_settings_are_refused(whole, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        bench(SPEC, out=whole, resume=True, workers=1, **changed)


def test_folders_that_are_refused(whole, tmp_path):
    with pytest.raises(InputError, match=r"already holds a benchmark; .* resume=True \(--resume\)"):
        bench(SPEC, out=whole)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="not an empty folder"):
        bench(SPEC, out=tmp_path / "mine", resume=True)
    old = tmp_path / "old"
    old.mkdir()
    text = (whole / "settings.toml").read_text()
    (old / "settings.toml").write_text(text.replace('version = "', 'version = "0.'))
    with pytest.raises(InputError, match="cannot be continued with version"):
        bench(SPEC, out=old, resume=True)
    for settings, sentence in (
        ({"workers": 0}, "workers: must be from 1 to"),
        ({"shard": (2, 2)}, "shard: was removed"),
    ):
        with pytest.raises(InputError, match=sentence):
            bench(SPEC, out=tmp_path / "new", **settings)


def test_a_volume_behind_the_panel_is_refused_before_work(tmp_path):
    with pytest.raises(InputError, match="azimuth_max_deg: must be below 90 for a planar array"):
        bench(SPEC, out=tmp_path / "new", workers=1, locate={"azimuth_max_deg": 90.0})
    assert not (tmp_path / "new").exists()


def test_damaged_weights_are_refused_before_work(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match=r"w\.safetensors"):
        bench(
            SPEC,
            out=tmp_path / "new",
            workers=1,
            methods=("hybrid",),
            locate={"weights": f"{tmp_path}/w.safetensors"},
        )
    assert not (tmp_path / "new").exists()


def test_known_noise_and_unknown_count_reach_the_methods(monkeypatch):
    asked = []

    def watched(recording, **settings):
        assert recording.truth is None
        asked.append((recording.noise_variance is not None, settings["n_sources"]))
        return locate(recording, **settings)

    monkeypatch.setattr("rismusic.benchmark.run.locate", watched)
    small = SPEC.replace(locate={"oversampling": 1.2, "sources_max": 1})
    unit = Unit(SPEC.cells()[0], "bartlett:raw", 0, 1)
    for noise in ("hidden", "known"):
        for count in ("known", "auto"):
            results(small.replace(noise=noise, count=count), unit)
    assert asked == [(False, 2), (False, "auto"), (True, 2), (True, "auto")]


def test_kill_in_mid_run_and_resume(whole, tmp_path, monkeypatch):
    """SIGKILL at the first result: only the rest is done later, and the table is the same."""
    folder, units = tmp_path / "bench", itertools.count()

    def begun():
        """All but the first part take a minute."""
        do_unit = run.do_unit
        run.do_unit = lambda *given, **named: time.sleep(60) if next(units) else do_unit(*given, **named)
        bench(SPEC, out=folder, workers=1)

    process = forked(begun)
    while not list(folder.glob("parts/*/*/0*.npz")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    left = len(list(folder.glob("parts/*/*/0*.npz")))
    assert 1 <= left < PARTS
    done = []
    monkeypatch.setattr(run, "do_unit", counting(run.do_unit, done))
    bench(SPEC, out=folder, resume=True, workers=1)
    assert len(done) == PARTS - left
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_table_that_cannot_be_replaced_is_refused_before_damaged_parts_are_made_again(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "bench")
    part = min(folder.glob("parts/*/*/0*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    (folder / "timings.csv").chmod(0o400)
    with pytest.raises(InputError, match=r"timings\.csv: is read-only"):
        bench(SPEC, out=folder, resume=True, workers=1)
    assert part.stat().st_size == 100


def test_a_fallback_is_not_measured_in_the_name_of_weights(tmp_path):
    with pytest.raises(InputError, match=r"locate\.weights: the hybrid method needs weights, and 'no"):
        bench(SPEC, methods=("hybrid",), locate={"weights": "nothing"}, out=tmp_path / "bench", workers=1)
    assert not (tmp_path / "bench").exists()


def test_an_interrupt_while_a_part_is_stored_waits(tmp_path, monkeypatch):
    write, before = np.savez, signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(*args, **settings):
        signal.raise_signal(signal.SIGINT)
        write(*args, **settings)

    monkeypatch.setattr(np, "savez", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            bench(SPEC, out=tmp_path / "bench", workers=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len([*(tmp_path / "bench" / "parts").rglob("*.npz")]) == 1
