"""Rows from answers made by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from print_figure import check_print
from rismusic.benchmark.plots import benchmark_figure, plot_errors, plot_misses, save_plots
from rismusic.benchmark.spec import SCENES, BenchSpec, Unit
from rismusic.benchmark.summary import Share, Store, TimingRow, cell_rows, groups, read_table, write_table
from rismusic.plots import new_axes

TRUE_DEG = (0.0, 30.0)
NAN = math.nan
HIT, ONE_MISSED, ONE_FOUND, THREE_FOUND = (0.1, 30.1), (0.1, -30.0), (0.1, NAN), (0.1, -30.0, 10.0)


def answers(azimuths_deg, cost, likelihood):
    """What a method found in scenes with sources at TRUE_DEG, 2 m away."""
    most = max(map(len, azimuths_deg))
    azimuth = np.array([[*some, *[NAN] * (most - len(some))] for some in azimuths_deg]) * math.pi / 180
    return {
        "azimuth": azimuth, "elevation": azimuth * 0, "range": azimuth * 0 + 2, "cost": np.array(cost),
        "likelihood": np.array(likelihood), "seconds": np.array(0.5, np.float32),
    }  # fmt: skip


def benchmark(folder, methods, *, scenes, block=100, **settings):
    """A folder with hand-made answers: methods maps names to (azimuths, cost, likelihood) of the scenes."""
    spec = BenchSpec(
        sources=(2,), snr_db=(5,), scenes=scenes, block=block, methods=tuple(methods), **settings
    )
    (cell,) = spec.cells()
    store = Store(folder)
    truth = answers([TRUE_DEG] * scenes, [1.0] * scenes, [0.0] * scenes)
    covariance = np.zeros((scenes, 2, 3, 2, 3))
    for source in range(2):
        for unknown in range(3):
            covariance[:, source, unknown, source, unknown] = np.radians(0.1) ** 2
    truth |= {"covariance": covariance, "noise_variance": np.ones(scenes), "samples": np.array(100)}
    for name, given in {SCENES: truth, **{name: answers(*given) for name, given in methods.items()}}.items():
        for start in range(0, scenes, block):
            stop = min(start + block, scenes)
            part = {key: v[start:stop] if v.ndim else v for key, v in given.items()}
            if "azimuth" in part:  # a block knows only of its own places
                wide = max(1, int((~np.isnan(part["azimuth"])).any(0).sum()))
                part |= {key: part[key][:, :wide] for key in ("azimuth", "elevation", "range")}
            store.write(Unit(cell, name, start, stop), part)
    rows, timings = cell_rows(spec, cell, store)
    return {row.method: row for row in rows}, timings


AZIMUTHS = [ONE_MISSED, ONE_MISSED, ONE_MISSED, HIT]
FROM_TRUTH = ([HIT] * 4, [5.0] * 4, [-7.0] * 4)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_misses_are_blamed_on_search_or_on_the_likelihood(tmp_path, block):
    """The truth's fit has 7 nats; the answers are less likely, likelier, as likely to rounding, and right."""
    likelihood = [-6.9, -7.1, -7.0 + 1e-3, -1.0]
    methods = {"omp": (AZIMUTHS, [1.0] * 4, likelihood), "oracle:truth": FROM_TRUTH}
    rows, timings = benchmark(tmp_path, methods, scenes=4, block=block)
    row = rows["omp"]
    assert (row.misses.value, row.search_failures.value, row.ambiguities.value) == (3 / 8, 1 / 8, 2 / 8)
    assert (row.wrong_counts.value, row.count_right.value) == (0, 1)
    assert (row.false_alarms.value, row.f1.value) == (3 / 8, 5 / 8)
    assert (rows["oracle:truth"].uses_truth, row.uses_truth) == (True, False)
    assert timings == [
        TimingRow(sweep="none", point="", sources=2, snr_db=5.0, method="omp", scenes=4,
                  seconds=0.5 * math.ceil(4 / block), scenes_per_s=8 / math.ceil(4 / block))
    ]  # fmt: skip


@pytest.mark.parametrize("noise", ["hidden", "known"])
def test_a_conditional_method_is_judged_by_its_own_likelihood(tmp_path, noise):
    cost, likelihood = [5.1, 4.9, 5.0, 9.0], [-100.0, 100.0, 100.0, 0.0]
    methods = {"omp:conditional": (AZIMUTHS, cost, likelihood), "oracle:truth:conditional": FROM_TRUTH}
    row = benchmark(tmp_path, methods, scenes=4, noise=noise)[0]["omp:conditional"]
    assert (row.search_failures.value, row.ambiguities.value) == (1 / 8, 2 / 8)


def test_misses_where_the_count_is_wrong(tmp_path):
    azimuths = [ONE_FOUND, ONE_FOUND, THREE_FOUND, HIT, ONE_MISSED]
    from_truth = ([HIT] * 5, [5.0] * 5, [-7.0] * 5)
    methods = {"omp": (azimuths, [1.0] * 5, [0.0] * 5), "oracle:truth": from_truth}
    row = benchmark(tmp_path, methods, scenes=5, count="auto")[0]["omp"]
    shares = (row.misses, row.wrong_counts, row.search_failures, row.ambiguities)
    assert [share.value for share in shares] == [4 / 10, 3 / 10, 1 / 10, 0]
    assert (row.count_right.value, row.false_alarms.value) == (2 / 5, pytest.approx(3 / 9))


def test_the_best_start_is_the_likeliest_end(tmp_path):
    """Each row wins a scene, under the likelihood that is asked for; what it found is scored."""
    worst = [1e9] * 3
    methods = {
        "omp": ([HIT, ONE_MISSED, ONE_MISSED], worst, [-9.0, 0.0, 0.0]),
        "sbl": ([ONE_MISSED, HIT, ONE_MISSED], worst, [0.0, -9.0, 0.0]),
        "oracle:truth": ([ONE_MISSED, ONE_MISSED, (0.1, 31.0)], worst, [0.0, 0.0, -9.0]),
    }
    rows, _ = benchmark(tmp_path, methods, scenes=3)
    assert rows["omp"].misses.value == pytest.approx(2 / 6)
    spec = BenchSpec(sources=(2,), snr_db=(5,), scenes=3, block=100, methods=("oracle:best",))
    (row,), timings = cell_rows(spec, spec.cells()[0], Store(tmp_path))
    assert row.misses.value == 0
    assert row.azimuth_error_deg == pytest.approx(0.1)
    assert timings == []


def test_tables_are_read_as_they_were_written(tmp_path):
    methods = {
        "omp": (AZIMUTHS, [1.0] * 4, [0.0] * 4),
        "oracle:truth": ([(80.0, -80.0)] * 4, [1.0] * 4, [0.0] * 4),
    }
    rows = list(benchmark(tmp_path / "parts", methods, scenes=4)[0].values())
    assert math.isnan(rows[1].range_error_m), "no hit, no error"
    write_table(tmp_path / "a.csv", rows, overwrite=False)
    again = read_table(tmp_path / "a.csv")
    assert repr(again) == repr(rows)
    write_table(tmp_path / "b.csv", again, overwrite=False)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    write_table(tmp_path / "a.json", rows, overwrite=False)
    assert "null" in (tmp_path / "a.json").read_text()


def test_plots_take_axes_and_return_them(tmp_path):
    methods = {"omp": (AZIMUTHS, [1.0] * 4, [0.0] * 4), "oracle:truth": FROM_TRUTH}
    rows = list(benchmark(tmp_path, methods, scenes=4)[0].values())
    rows += [dataclasses.replace(row, snr_db=10.0, misses=Share(0.0, 0.0, 0.2)) for row in rows]
    (group,) = groups(rows)
    assert (group.title, group.heads) == ("K = 2", ("5 dB", "10 dB"))
    assert [row.snr_db for row in group.rows["omp"]] == [5.0, 10.0]
    for draw in (plot_misses, plot_errors):
        (ax,) = new_axes(None)
        assert draw(group, ax=ax) is ax
        assert ax.get_xlabel() == "SNR / dB"
        assert "/" in ax.get_ylabel()
        assert draw(group) is not ax
    curve = plot_misses(group).get_lines()[0]
    np.testing.assert_allclose(curve.get_ydata(), [37.5, 0.0])
    swept = [
        dataclasses.replace(row, sweep="symbols", point=f"kind {row.snr_db:g}", snr_db=5.0) for row in rows
    ]
    (group,) = groups(swept)
    assert (group.title, group.heads, group.axis) == ("K = 2, 5 dB", ("kind 5", "kind 10"), "symbols")
    figure = benchmark_figure([group] * 3, plot_misses)
    assert [ax.get_xlabel() for ax in figure.axes] == ["symbols"] * 3
    assert len(figure.legends) == 1


@pytest.mark.parametrize(("snr_db", "apart"), [((5.0,), 0.15), ((5.0, 15.0), 0.4), ((0.0, 1.0, 40.0), 0.15)])
def test_methods_stand_side_by_side_near_their_value(tmp_path, snr_db, apart):
    methods = {"omp": (AZIMUTHS, [1.0] * 4, [0.0] * 4), "oracle:truth": FROM_TRUTH}
    rows = list(benchmark(tmp_path, methods, scenes=4)[0].values())
    (group,) = groups([dataclasses.replace(row, snr_db=one) for one in snr_db for row in rows])
    first, second = (line.get_xdata() for line in plot_errors(group).get_lines()[:2])
    np.testing.assert_allclose((first + second) / 2, snr_db)
    np.testing.assert_allclose(second - first, apart)


@pytest.mark.parametrize("draw", [plot_misses, plot_errors])
def test_figures_fit_the_column_of_a_paper(tmp_path, draw):
    methods = {"omp": (AZIMUTHS, [1.0] * 4, [0.0] * 4), "oracle:truth": FROM_TRUTH}
    rows = list(benchmark(tmp_path, methods, scenes=4)[0].values())
    rows += [dataclasses.replace(row, snr_db=10.0) for row in rows]
    names = [f"static phase 0.{place} rad" for place in range(6)]
    swept = [dataclasses.replace(row, sweep="hardware", point=name) for name in names for row in rows[:2]]
    for some in (groups(rows), groups(swept)):
        check_print(benchmark_figure(some * 2, draw, width_mm=88.9), 88.9)
    paths = save_plots(groups(rows), tmp_path, width_mm=88.9)
    assert [path.name for path in paths] == [
        "misses_none.png", "misses_none.pdf", "errors_none.png", "errors_none.pdf"
    ]  # fmt: skip
