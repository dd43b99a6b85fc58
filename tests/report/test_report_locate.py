from __future__ import annotations

import math
import re
import sys
from dataclasses import replace

import html_page
import pytest
import torch

from rismusic.cli import main
from rismusic.crb import recording_crb
from rismusic.errors import InputError
from rismusic.estimation.estimate import Estimate, Reason
from rismusic.hybrid import locate
from rismusic.io import Recording, read, write
from rismusic.report import LocateReport, check_report, write_report
from rismusic.report import locate as report_locate
from rismusic.report.page import LIMIT, decimals, environment, fixed, general, within
from rismusic.simulation.simulator import simulate
from rismusic.spec import LocateSpec
from rismusic.version import __version__

HOSTILE = "<script>alert('1')</script>&\"x.h5"


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Three scenes of one to three sources; small, so that locating takes no time."""
    return simulate(scenes=3, sources=(1, 3), snr_db=20, panel={"rows": 6, "columns": 6}, seed=5)


@pytest.fixture(scope="module")
def located(recording) -> Estimate:
    return locate(recording, method="omp")


@pytest.fixture
def page(recording, located, tmp_path) -> html_page.Page:
    path = tmp_path / "report.html"
    write_report(path, recording, located, name=HOSTILE, command="rismusic locate <b>")
    return html_page.parse(path.read_text("utf-8"))


def numbers(values, digits) -> list[str]:
    return [fixed(float(value), place) for value, place in zip(values, digits, strict=True)]


def test_the_page_is_whole_and_loads_nothing(page):
    assert page.unclosed == []
    assert page.loads == []
    assert page.tags.count("h1") == 1
    assert "default-src 'none'" in page.values("content")[-1]
    assert len(page.values("id")) == len(set(page.values("id")))
    for address in page.values("href"):
        assert address.startswith("data:") or address[1:] in page.values("id")


def test_the_check_of_loads_can_fail():
    planted = '<style>p{background:url(https://a/b.png)}</style><img src="//a/c.png"><a href="http://d">d</a>'
    assert html_page.parse(planted).loads == ["//a/c.png", "http://d", "https://a/b.png"]
    assert html_page.parse("<p><b></p>").unclosed


def test_every_picture_has_words(page):
    pictures = [tag for tag, name, value in page.attributes if name == "class" and "picture" in value.split()]
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == len(pictures) == 4 * 3
    assert page.tags.count("img") == len(
        [v for t, n, v in page.attributes if t == "img" and n == "alt" and v]
    )


def test_text_is_escaped(page):
    assert page.tags.count("script") == 1
    assert "b" not in page.tags or "rismusic locate <b>" in page.text
    assert HOSTILE in page.text
    assert "rismusic locate <b>" in page.text


def test_all_numbers_are_there(page, recording, located):
    degrees = 180 / math.pi
    for scene, source in located.sources.active.nonzero().tolist():
        scale = torch.tensor([degrees, degrees, 1.0])
        one = located.sources[scene]
        found = scale * torch.stack((one.azimuth, one.elevation, one.range))[:, source]
        bars = scale * located.std[scene, source]
        digits = [decimals(float(bar)) for bar in bars]
        for value, bar in zip(numbers(found, digits), numbers(bars, digits), strict=True):
            assert f"{value} ± {bar}" in page.text
        assert fixed(float(located.snr_db[scene, source]), 1) in page.text
    assert located.n_sources_probability is not None
    for scene in range(3):
        for chance in located.n_sources_probability[scene].tolist():
            assert f"{chance:.3f}" in page.text
        assert f"p = {float(located.p_value[scene]):.2g}" in page.text
        for sentence in located.warnings[scene]:
            assert sentence in page.text


def test_settings_versions_and_facts_are_there(page, located):
    for name in LocateSpec.model_fields:
        assert name in page.text
    assert "method omp" in page.text
    for word in (__version__, torch.__version__, sys.version.split()[0], "elements N 36", "snapshots L 16"):
        assert word in page.text


def test_error_bars_are_named_after_the_bound_that_they_are(page, recording, tmp_path):
    assert "from the unconditional Cramér-Rao bound at the estimate" in page.text
    assert "the conditional Cramér-Rao bound at the estimate" not in page.text
    for settings, sentence in (
        ({"panel_error": 0.2, "method": "omp"}, "hardware errors of the panel taken as unknown"),
        ({"polish": False, "method": "music"}, "peaks of a spectrum, whose errors are larger"),
    ):
        path = tmp_path / f"{next(iter(settings))}.html"
        write_report(path, recording[:1], locate(recording[:1], n_sources=1, **settings))
        assert sentence in html_page.parse(path.read_text("utf-8")).text


def test_hits_misses_and_false_alarms(recording, located, tmp_path):
    """A source moved away is missed, and what was found in its place a false alarm."""
    truth = recording.truth.each(lambda value: value.clone())
    truth.azimuth[0, 0] += 0.3
    path = tmp_path / "report.html"
    write_report(path, replace(recording, truth=truth), located)
    page = html_page.parse(path.read_text("utf-8"))
    count = int(truth.active.sum())
    found = int(located.sources.active.sum())
    assert f"Of {count} true sources {count - 1} were hit" in page.text
    wrong = found - count + 1
    assert f"{wrong} estimate{' is a false alarm' if wrong == 1 else 's are false alarms'}" in page.text
    # Once in the table of the scene, apart from its heading and those of the overview.
    assert page.values("class").count("wrong") == 3
    assert page.text.count(fixed(math.degrees(truth.azimuth[0, 0]), 2)) == 1


def test_the_methods_that_located_the_scenes_are_named(recording, located, tmp_path):
    """Not only the one that was asked for."""
    names = ["sbl"] + ["omp"] * (len(located) - 1)
    for methods, words in (
        (located.method, "with omp"),
        (names, f"with omp ({len(names) - 1}), sbl (1)"),
        (["sbl"] * len(names), "with sbl in place of omp"),
    ):
        write_report(tmp_path / "a.html", recording, replace(located, method=methods), overwrite=True)
        text = " ".join(html_page.parse((tmp_path / "a.html").read_text("utf-8")).text.split())
        assert words in text.replace(" ,", ",")


def test_without_truth_and_without_sources(recording, tmp_path):
    silent = replace(recording[:1], truth=None, noise_variance=torch.ones(1, dtype=torch.float64))
    path = tmp_path / "report.html"
    write_report(path, silent, locate(silent, n_sources=0, method="omp"))
    page = html_page.parse(path.read_text("utf-8"))
    assert page.unclosed == []
    assert "No sources located in 1 scene" in page.text
    assert "missed" not in page.text
    assert "truth not given" in page.text


def test_a_gap_in_the_truth_is_closed(recording, located, tmp_path):
    gap = recording.truth.each(lambda v: torch.cat((torch.full_like(v[:, :1], math.nan), v), dim=1))
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    write_report(first, recording, located)
    write_report(second, replace(recording, truth=gap), located)
    tables = [
        re.findall(r"<table.*?</table>", path.read_text("utf-8"), re.DOTALL) for path in (first, second)
    ]
    assert tables[0] == tables[1]


def some(located: Estimate, scenes: torch.Tensor) -> Estimate:
    """What was located in some of the scenes."""
    return replace(
        located,
        sources=located.sources[scenes],
        covariance=located.covariance[scenes],
        snr_db=located.snr_db[scenes],
        noise_variance=located.noise_variance[scenes],
        neg_log_likelihood=located.neg_log_likelihood[scenes],
        n_sources_probability=located.n_sources_probability[scenes],
        p_value=located.p_value[scenes],
        inverse_range_std=located.inverse_range_std[scenes],
        position_probability=located.position_probability[scenes],
        panel_error=located.panel_error[scenes],
        warnings=[located.warnings[scene] for scene in scenes.tolist()],
    )


def test_blocks_equal_the_whole(recording, located, tmp_path):
    report = LocateReport(details=2)
    for scenes in (torch.tensor([0]), torch.tensor([1, 2])):
        report.add(recording[scenes], some(located, scenes))
    report.write(tmp_path / "a.html", name="recording")
    write_report(tmp_path / "b.html", recording, located, details=2)
    texts = [(tmp_path / name).read_text("utf-8") for name in ("a.html", "b.html")]
    bodies = [text[: text.index('<section id="origin">')] for text in texts]
    assert bodies[0] == bodies[1]
    assert 'id="scene-1"' in bodies[0]
    assert 'id="scene-2"' not in bodies[0]


def test_ten_thousand_scenes_stay_below_a_megabyte(recording, located, tmp_path, monkeypatch):
    assert report_locate._DETAILS + report_locate._OVERVIEW + 100_000 < LIMIT
    scenes = torch.arange(2500) % 3
    part = replace(recording[scenes], truth=None)
    said = [f"sentence {n} (p = {n}e-16): said of every scene, and not short either" for n in range(5)]
    methods = [located.method[scene] for scene in scenes.tolist()]
    copies = replace(some(located, scenes), warnings=[said] * len(scenes), method=methods)
    monkeypatch.setattr(report_locate, "_DETAILS", 110_000)
    report = LocateReport(details=5)
    for _ in range(4):
        report.add(part, copies)
    path = tmp_path / "report.html"
    report.write(path)
    assert 200_000 < path.stat().st_size <= LIMIT - 490_000
    text = html_page.parse(path.read_text("utf-8")).text
    assert "located in 10000 scenes" in text
    assert "The first 300 of 10000 scenes; the statistics above cover all scenes" in text
    assert re.search(
        r"The first [2-4] of 10000 scenes \(5 were requested; the file is limited to 1 MB\)", text
    )
    assert "Sentence … (p = …): said of every scene, and not short either. (10000 scenes)" in text


def test_parts_are_taken_while_they_fit():
    assert within(["ab", "é", "c", "d"], 5) == ["ab", "é", "c"]
    assert within(["abc"], 2) == []


def test_the_command_is_the_twin_of_the_call(recording, tmp_path, capsys):
    file, path = tmp_path / "small.h5", tmp_path / "report.html"
    write(file, recording)
    args = ["locate", str(file), "--method", "music", "--sources", "2", "--no-polish"]
    args += ["--report", str(path), "--report-scenes", "1"]
    assert main(args) == 0
    assert "report written to" in capsys.readouterr().err
    page = html_page.parse(path.read_text("utf-8"))
    assert "small.h5" in page.text
    assert "Fraunhofer distance" in page.text
    expected = tmp_path / "expected.html"
    located = locate(read(file), method="music", n_sources=2, polish=False)
    write_report(expected, read(file), located, details=1, name="small.h5")
    texts = [each.read_text("utf-8") for each in (path, expected)]
    scenes = [
        text[text.index('<section id="overview">') : text.index('<section id="recording">')] for text in texts
    ]
    assert scenes[0] == scenes[1]
    assert main(args) == 2
    assert "the file exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_missing_package_is_said_before_any_work(name, recording, tmp_path, monkeypatch, capsys):
    write(tmp_path / "small.h5", recording[:1])
    monkeypatch.setitem(sys.modules, name, None)
    environment.cache_clear()
    monkeypatch.setattr("rismusic.hybrid.locate", lambda *_, **__: pytest.fail("work was done"))
    assert main(["locate", str(tmp_path / "small.h5"), "--report", str(tmp_path / "r.html")]) == 2
    said = capsys.readouterr().err
    assert "pip install 'rismusic[report]'" in said
    assert said.count("\n") == 1
    environment.cache_clear()


def test_bad_reports(recording, located, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.html"):
        check_report(tmp_path / "a.pdf", overwrite=False)
    with pytest.raises(InputError, match="no scene to report"):
        LocateReport().write(tmp_path / "a.html")
    with pytest.raises(InputError, match="has 3 scenes, but the recording has 2"):
        LocateReport().add(recording[:2], located)
    report = LocateReport()
    report.add(recording, located)
    with pytest.raises(InputError, match="settings differ from those of the scenes"):
        report.add(recording, replace(located, spec=located.spec.replace(sources=2)))
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_shown_as_precisely_as_they_are():
    assert [decimals(bar) for bar in (0.012, 0.12, 1.2, 12.0, 1e-9, math.inf)] == [3, 2, 1, 0, 4, 2]
    assert fixed(-1.234, 2) == "−1.23"
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(math.inf, 2) == "∞"
    assert general(0.01234) == "0.0123"
    assert general(-123.4) == "−123"
    assert general(1.5e-7) == "1.5e−07"
    assert general(math.nan) == "–"


def test_the_status_of_a_scene_is_shown(recording, located, tmp_path):
    doubtful = replace(located, warnings=[[Reason("something is wrong")], [], ["a note"]])
    write_report(tmp_path / "a.html", recording, doubtful)
    text = (tmp_path / "a.html").read_text("utf-8")
    assert re.findall(r"Status: (\w+)\.", text) == ["doubtful", "ok", "ok"]
    assert text.count("<td>doubtful</td>") == 1


@pytest.mark.parametrize("channel", ["rician", "direct"])
@pytest.mark.parametrize("known", ["symbols", "powers", "neither"])
def test_the_bound_of_subcarriers(channel, known):
    recording = simulate(
        scenes=2, sources=1, snr_db=20, wideband={"subcarriers": 3}, channel={"kind": channel}
    )
    bound = recording_crb(recording, "conditional" if known == "symbols" else "unconditional")
    if known != "symbols":
        recording = replace(recording, truth=replace(recording.truth, symbols=None))
    if known == "neither":
        recording = replace(recording, noise_variance=None)
    comparison = report_locate.compare(recording, locate(recording, n_sources=1, method="omp"))
    assert comparison is not None
    assert comparison.bound is not None
    assert comparison.match.hit.all()
    torch.testing.assert_close(
        comparison.bound.std, bound.std, rtol=0.3 if known == "neither" else 1e-9, atol=0.0
    )
