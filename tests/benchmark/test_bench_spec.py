from __future__ import annotations

import pytest
import tomlkit

from rismusic.benchmark.spec import (
    ABLATIONS,
    DEFAULT_METHODS,
    NAMES,
    SCENES,
    BenchSpec,
    all_units,
    parse_method,
    with_starts,
)
from rismusic.errors import InputError
from rismusic.spec import LocateSpec, SystemSpec


def test_names_of_methods():
    music = parse_method("music:raw")
    assert (music.base, music.uses_truth, music.polish, music.criterion) == (
        "music",
        False,
        False,
        "unconditional",
    )
    sbl = parse_method("oracle:best:conditional")
    assert (sbl.base, sbl.uses_truth, sbl.polish, sbl.criterion) == ("best", True, True, "conditional")
    spec = BenchSpec(locate=LocateSpec(oversampling=1.5))
    assert spec.search("omp:conditional") == LocateSpec(
        oversampling=1.5, method="omp", criterion="conditional"
    )
    assert spec.search("mvdr:raw") == LocateSpec(oversampling=1.5, method="mvdr", polish=False)
    for name in DEFAULT_METHODS:
        parse_method(name)


def test_the_hybrid_without_its_parts():
    spec = BenchSpec(locate=LocateSpec(weights="mine", hybrid={"beta": 0.2}))
    whole = LocateSpec(weights="mine", method="hybrid", hybrid={"beta": 0.2})
    assert spec.search("hybrid") == whole
    assert spec.search("hybrid:raw") == whole.replace(polish=False)
    assert spec.search("hybrid:beta0").hybrid == whole.hybrid.replace(beta=0.0)
    assert spec.search("hybrid:untrained_music").hybrid == whole.hybrid.replace(
        untrained=True, network_sources=False, recheck_p_value=0.0, birth_death_min_sources=0
    )
    assert len({spec.search(f"hybrid:{name}").hybrid.model_dump_json() for name in ABLATIONS}) == len(
        ABLATIONS
    )
    assert spec.search("music").method == "music"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "hybrid:conditional",
            "methods: 'hybrid:conditional' is not a variant of hybrid; use hybrid or hybrid:raw or",
        ),
        ("sbl:beta0", "methods: 'sbl:beta0' is not a variant of sbl; use sbl or sbl:conditional"),
        ("esprit", "methods: no method is named 'esprit'; known are hybrid, music, "),
        ("omp:raw", "methods: 'omp:raw' is not a variant of omp; use omp or omp:conditional"),
        (
            "oracle:omp",
            "methods: no method is named 'oracle:omp'; known are oracle:music, oracle:truth, oracle:best",
        ),
        ("oracle:truth:raw", "oracle:truth or oracle:truth:conditional"),
        (
            "music:",
            "methods: 'music:' is not a variant of music; use music or music:conditional or music:raw",
        ),
    ],
)
def test_bad_names(name, sentence):
    with pytest.raises(InputError, match=sentence):
        BenchSpec(methods=(name,))


def test_what_is_needed_for_the_sake_of_others():
    assert with_starts(("mvdr",)) == ("mvdr", "oracle:truth")
    assert set(with_starts(("oracle:best:conditional",))) == {
        "oracle:best:conditional", "omp:conditional", "sbl:conditional", "oracle:truth:conditional"
    }  # fmt: skip
    units = all_units(BenchSpec(methods=("oracle:best",), sources=(1,), snr_db=(0,), scenes=5, block=2))
    assert {unit.method for unit in units} == {SCENES, "omp", "sbl", "oracle:truth"}
    assert sorted((unit.start, unit.stop) for unit in units if unit.method == "omp") == [
        (0, 2),
        (2, 4),
        (4, 5),
    ]


def test_each_sweep_changes_its_setting_and_nothing_else():
    base = SystemSpec(sources=3, snr_db=5.0)
    changed = {
        "range": lambda system: (system.scene.range_min_m, system.scene.range_max_m),
        "separation": lambda system: system.scene.separation_deg,
        "snapshots": lambda system: system.codebook.snapshots,
        "bits": lambda system: system.codebook.bits,
        "power_spread": lambda system: system.scene.power_spread_db,
        "symbols": lambda system: system.scene.symbols,
        "hardware": lambda system: system.hardware,
        "scene.power": lambda system: system.scene.power,
    }
    assert set(NAMES) <= {"none", *changed}
    for sweep, value in changed.items():
        cells = BenchSpec(sweep=(sweep,), sweep_values=("equal", "path_loss") if "." in sweep else ()).cells()
        assert len({value(cell.system) for cell in cells}) == len(cells) > 1
        for cell in cells:
            part = "codebook" if sweep in ("snapshots", "bits") else sweep
            part = part if part in ("codebook", "hardware") else "scene"
            assert cell.system.replace(**{part: getattr(base, part)}) == base
            assert cell.point
    assert [cell.point for cell in BenchSpec(sweep=("range",), sweep_values=(1, 2.5, 4)).cells()] == [
        "1 to 2.5", "2.5 to 4"
    ]  # fmt: skip


def test_grid_and_sweeps_side_by_side():
    cells = BenchSpec(sweep=("none", "symbols"), sources=(2,), snr_db=(0, 10)).cells()
    assert [(cell.sweep, cell.snr_db, cell.point) for cell in cells[:3]] == [
        ("none", 0.0, ""), ("none", 10.0, ""), ("symbols", 0.0, "gaussian")
    ]  # fmt: skip
    assert len({cell.name for cell in cells}) == len(cells) == 2 + 6
    assert len(BenchSpec().cells()) == 16
    assert {(cell.sources, cell.snr_db) for cell in BenchSpec(sweep=("bits",)).cells()} == {(3, 5.0)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sweep": ("speed",)}, "sweep: unknown sweep 'speed'; choose from none, range, "),
        ({"sweep": ("scene.speed",), "sweep_values": (1,)}, "speed: unknown setting"),
        ({"sweep": ("speed.scene",), "sweep_values": (1,)}, "speed: unknown setting"),
        ({"sweep": ("scene.power",)}, "sweep_values: give the values of scene.power"),
        ({"sweep": ("bits",), "sweep_values": (0,)}, r"codebook\.bits: .* found 0"),
        ({"sweep": ("range",), "sweep_values": (4, 2)}, "sweep_values: give two or more increasing ranges"),
        ({"sweep": ("range",), "sweep_values": (5, 20)}, r"locate\.range_max_m: .* 20\); got 10"),
        ({"sweep": ("bits", "none"), "sweep_values": (1,)}, "sweep: give one sweep"),
        ({"sweep_values": (1,)}, "sweep_values: the sweep none takes no values"),
        ({"methods": ("omp", "omp")}, "methods: each name may occur once"),
        ({"locate": {"method": "omp"}}, r"locate\.method: a benchmark sets this through methods"),
        ({"locate": {"sources": 3}}, r"locate\.sources: a benchmark sets this through count"),
        ({"locate": {"azimuth_max_deg": 30}}, r"locate\.azimuth_max_deg: .* 60\); got 30"),
        ({"methods": ("oracle:best",), "count": "auto"}, "oracle:best needs a known number of sources"),
        ({"sources": (3, 0)}, "sources: expected at least 1, found 0|sources: expected .* found 0"),
        ({"scenes": 10**18}, "expected at most 10000000"),
    ],
)  # fmt: skip
def test_bad_settings(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        BenchSpec(**settings)


def test_settings_survive_a_file():
    spec = BenchSpec(sweep=("bits",), sweep_values=(2, "continuous"), snr_db=(0, 7.5), panel={"rows": 4})
    assert BenchSpec(**tomlkit.parse(tomlkit.dumps(spec.model_dump(mode="json"))).unwrap()) == spec


def test_methods_left_out_where_the_number_of_sources_is_not_known():
    assert "oracle:best" in BenchSpec().rows
    assert not any(name.startswith("oracle:best") for name in BenchSpec(count="auto").rows)


def test_units_are_in_a_fixed_order():
    spec = BenchSpec(sources=(1,), snr_db=(0,), scenes=10, block=2)
    units = all_units(spec)
    assert all_units(spec) == units
    assert len(units) == len(set(units))


def test_pilots_with_several_numbers_of_sources():
    """Each cell has one number, although the system of the benchmark has a range by default."""
    cells = BenchSpec(scene={"symbols": "pilots"}, sources=(1, 2), snr_db=(10.0,)).cells()
    assert [cell.system.sources for cell in cells] == [1, 2]
