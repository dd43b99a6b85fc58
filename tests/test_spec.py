from __future__ import annotations

import re

import pytest

from rismusic.errors import InputError
from rismusic.spec import SceneSpec, SystemSpec, dump_spec, limits, load_spec


@pytest.mark.parametrize(
    "spec",
    [
        SystemSpec(),
        SystemSpec(sources=3, snr_db=5.0, one_link=True),
        SystemSpec(codebook={"bits": "continuous", "kind": "dft"}, channel={"rician_factor_db": 3.0}),
    ],
)
def test_round_trip_through_toml(spec, tmp_path):
    path = tmp_path / "system.toml"
    path.write_text(dump_spec(spec))
    assert load_spec(path) == spec


def test_what_a_file_leaves_out_keeps_its_default(tmp_path):
    path = tmp_path / "system.toml"
    path.write_text("[panel]\nrows = 3\n")
    assert load_spec(path) == SystemSpec(panel={"rows": 3})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"panel": {"rows": 0}}, "panel.rows: expected at least 1, found 0"),
        ({"panel": {"wavelength_m": -0.3}}, "panel.wavelength_m: expected more than 0, found -0.3"),
        ({"panel": {"spacing_wavelengths": "wide"}}, "panel.spacing_wavelengths: expected a valid number"),
        ({"panel": 3}, "panel: expected a valid dictionary or instance of PanelSpec, found 3"),
        ({"sources": 0}, "sources: expected at least 1, found 0"),
        ({"sources": (4, 2)}, "sources: expected the lower limit first, found 4, 2"),
        ({"snr_db": float("inf")}, "snr_db: expected a finite number, found inf"),
        ({"snr_db": (20, -5)}, "snr_db: expected the lower limit first, found 20, -5"),
        ({"noise": 1}, "noise: expected a known setting, found an unknown one"),
        ({"scene": {"colour": 1}}, "scene.colour: expected a known setting, found an unknown one"),
        ({"scene": {"range_min_m": 20}}, "scene.range_max_m: expected at least range_min_m = 20, found 10"),
        ({"scene": {"range_min_m": 0}}, "scene.range_min_m: expected more than 0, found 0"),
        ({"scene": {"azimuth_max_deg": 90}}, "scene.azimuth_max_deg: expected less than 90, found 90"),
        (
            {"scene": {"symbols": "bpsk"}},
            "scene.symbols: expected 'gaussian', 'qpsk' or 'static', found 'bpsk'",
        ),
        (
            {"channel": {"kind": "awgn"}},
            "channel.kind: expected 'rician', 'rayleigh' or 'direct', found 'awgn'",
        ),
        (
            {"channel": {"rician_factor_db": (3, 1)}},
            "channel.rician_factor_db: expected the lower limit first",
        ),
        ({"codebook": {"bits": 0}}, "codebook.bits: expected at least 1, found 0"),
        ({"hardware": {"dead_fraction": 1.0}}, "hardware.dead_fraction: expected less than 1, found 1.0"),
        ({"hardware": {"gain": -0.1}}, "hardware.gain: expected at least 0, found -0.1"),
        (
            {"channel": {"kind": "direct"}, "hardware": {"code_phase_rad": 0.1}},
            "hardware.code_phase_rad: expected 0 where the panel is sampled directly",
        ),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        SystemSpec(**settings)


def test_parts_name_themselves_too():
    with pytest.raises(InputError, match=r"^scene.range_max_m: expected at least"):
        SceneSpec(range_min_m=11)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"none.toml: expected a readable TOML file, found no such file"):
        load_spec(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("panel = [")
    with pytest.raises(InputError, match=r"bad.toml: expected a TOML file, found a file that does not parse"):
        load_spec(path)
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match=r"bad.toml: expected a TOML file"):
        load_spec(path)


def test_specs_are_frozen_and_replaced():
    spec = SystemSpec()
    with pytest.raises(ValueError, match="frozen"):
        spec.sources = 3
    assert spec.replace(sources=3).sources == 3
    assert spec.sources == (1, 5)
    with pytest.raises(InputError, match="sources"):
        spec.replace(sources=-1)
    assert limits(3) == (3, 3)
    assert limits((1, 2)) == (1, 2)
