from __future__ import annotations

import math
import re

import html_page
import pytest

from rismusic.benchmark.spec import BenchSpec
from rismusic.benchmark.summary import BenchRow, Share, TimingRow
from rismusic.errors import InputError
from rismusic.report import bench, write_bench_report
from rismusic.report.page import LIMIT, general

METHODS = ("omp", "sbl", "oracle:truth")


def made_up(method: str, sources: int, snr_db: float, number: int) -> BenchRow:
    share = Share(0.01 * number, 0.005 * number, 0.02 * number)
    return BenchRow(
        sweep="none",
        point="",
        sources=sources,
        snr_db=snr_db,
        method=method,
        uses_truth=method.startswith("oracle"),
        scenes=50,
        misses=share,
        search_failures=share,
        ambiguities=Share(0.0, 0.0, 0.1),
        wrong_counts=Share(0.0, 0.0, 0.1),
        false_alarms=share,
        precision=share,
        recall=share,
        f1=share,
        count_right=share,
        gospa_m=1.25 + number,
        azimuth_error_deg=0.321 * number,
        elevation_error_deg=0.123 * number,
        range_error_m=0.0456 * number,
        azimuth_over_bound=1.01 * number,
        elevation_over_bound=0.99 * number,
        inverse_range_over_bound=math.nan if number == 3 else 1.02 * number,
    )


@pytest.fixture
def rows() -> list[BenchRow]:
    cells = [(sources, snr_db) for sources in (1, 3) for snr_db in (0.0, 10.0)]
    return [
        made_up(method, *cell, 1 + place + 3 * (order % 2))
        for place, cell in enumerate(cells)
        for order, method in enumerate(METHODS)
    ]


def test_all_numbers_are_there(rows, tmp_path):
    path = tmp_path / "bench.html"
    timing = TimingRow(
        sweep="none", point="", sources=1, snr_db=0.0, method="omp", scenes=50, seconds=2.0, scenes_per_s=25.7
    )
    write_bench_report(
        path, rows, settings=BenchSpec(scenes=50), timings=[timing], command="rismusic bench <i>"
    )
    text = path.read_text("utf-8")
    page = html_page.parse(text)
    assert page.unclosed == []
    assert page.loads == []
    assert path.stat().st_size < LIMIT
    assert page.tags.count("i") == 0
    for word in ("3 methods on 4 systems", "50 scenes of each system", "oracle:truth", "25.7", "<i>"):
        assert word in page.text
    for row in rows:
        value, low, high = (f"{100 * part:.1f}" for part in row.misses)
        share = f"{value} {low}–{high}"
        assert share in page.text
        assert general(row.gospa_m) in page.text
        assert general(row.range_error_m) in page.text
    for name in BenchSpec.model_fields:
        assert name in page.text
    assert page.tags.count("img") == 2
    # The least misses of each of the four columns, and the least errors; never of oracles.
    assert page.values("class").count("best") == 8
    assert all("<em>" not in line for line in text.splitlines() if 'class="best"' in line)
    oracles = [line for line in text.splitlines() if 'class="oracle"' in line]
    assert oracles
    assert not any('class="best"' in line for line in oracles)


def test_what_does_not_fit_is_left_out_and_said(rows, tmp_path, monkeypatch):
    assert bench._PLOTS + bench._TABLES + bench._ALL + 60_000 < LIMIT
    path = tmp_path / "bench.html"
    for name, size in (("_PLOTS", 1000), ("_TABLES", 1000), ("_ALL", 6000)):
        monkeypatch.setattr(bench, name, size)
    write_bench_report(path, rows)
    page = html_page.parse(path.read_text("utf-8"))
    assert page.unclosed == []
    assert page.tags.count("img") == 0
    assert "2 more plots left out" in page.text
    assert re.search(r"\d more groups? of tables left out", page.text)
    assert re.search(r"\d+ more rows left out, so that the file stays below 1 MB", page.text)


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="the benchmark has no rows"):
        write_bench_report(tmp_path / "bench.html", [])
