from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, model_validator

import rismusic
from rismusic import errors
from rismusic.errors import InputError
from rismusic.nn.spec import TrainSpec
from rismusic.spec import (
    LocateSpec,
    Record,
    SceneSpec,
    SystemSpec,
    dump_spec,
    limits,
    parse_record,
    read_spec,
    setting_names,
)
from rismusic.tuning.spec import TuneSpec


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
    assert read_spec(SystemSpec, path) == spec


def test_what_a_file_leaves_out_keeps_its_default(tmp_path):
    path = tmp_path / "system.toml"
    path.write_text("[panel]\nrows = 3\n")
    assert read_spec(SystemSpec, path) == SystemSpec(panel={"rows": 3})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"panel": {"rows": 0}}, "panel.rows: expected at least 1, found 0"),
        ({"panel": {"wavelength_m": -0.3}}, "panel.wavelength_m: expected more than 0, found -0.3"),
        ({"panel": {"spacing_wavelengths": "wide"}}, "panel.spacing_wavelengths: expected a number"),
        ({"panel": 3}, "panel: expected a table of settings, found 3"),
        ({"sources": 0}, "sources: expected at least 1, found 0"),
        ({"sources": (0, 5)}, "sources: expected at least 1, found 0"),
        ({"snr_db": (5,)}, "snr_db: expected one value or two limits, found [5]"),
        ({"sources": (4, 2)}, "sources: give the lower limit first; got 4, 2"),
        ({"snr_db": float("inf")}, "snr_db: expected a finite number, found inf"),
        ({"snr_db": 1e308}, "snr_db: expected at most 300, found 1e+308"),
        ({"snr_db": (-400.0, 0.0)}, "snr_db: expected at least -300, found -400.0"),
        ({"snr_db": (20, -5)}, "snr_db: give the lower limit first; got 20, -5"),
        ({"noise": 1}, "noise: unknown setting"),
        ({"scene": {"colour": 1}}, "scene.colour: unknown setting"),
        ({"scene": {"range_min_m": 20}}, "scene.range_max_m: expected at least range_min_m = 20, found 10"),
        ({"channel": {"distance_m": 5e-324}}, "channel.distance_m: must be 1e-15 to 1e+15; got 5e-324"),
        ({"panel": {"wavelength_m": 1e300}}, "panel.wavelength_m: must be 1e-15 to 1e+15; got 1e+300"),
        ({"scene": {"range_min_m": 0}}, "scene.range_min_m: expected more than 0, found 0"),
        ({"scene": {"azimuth_max_deg": 181}}, "scene.azimuth_max_deg: expected at most 180, found 181"),
        (
            {"panel": {"kind": "circular", "pattern_exponent": 1}},
            "panel.pattern_exponent: must be 0 for a circular array",
        ),
        (
            {"scene": {"symbols": "bpsk"}},
            "scene.symbols: expected 'gaussian', 'qpsk', 'constant' or 'pilots', found 'bpsk'",
        ),
        (
            {"channel": {"kind": "awgn"}},
            "channel.kind: expected 'rician', 'rayleigh' or 'direct', found 'awgn'",
        ),
        (
            {"channel": {"rician_factor_db": (3, 1)}},
            "channel.rician_factor_db: give the lower limit first",
        ),
        ({"codebook": {"bits": "few"}}, "codebook.bits: expected an integer or 'continuous', found 'few'"),
        ({"codebook": {"bits": "9" * 5000}}, "codebook.bits: expected an integer with fewer digits or"),
        ({"one_link": "perhaps"}, "one_link: expected true or false, found 'perhaps'"),
        ({"one_link": None}, "one_link: expected true or false, found nothing"),
        ({"panel": {"rows": {"a": [1]}}}, "panel.rows: expected an integer, found a table"),
        ({"panel": {"rows": [1, "b"]}}, "panel.rows: expected an integer, found [1, 'b']"),
        ({"panel": {"rows": date(2026, 1, 2)}}, "panel.rows: expected an integer, found 2026-01-02"),
        ({"codebook": {"bits": 0}}, "codebook.bits: expected at least 1, found 0"),
        ({"hardware": {"dead_fraction": 1.0}}, "hardware.dead_fraction: expected less than 1, found 1.0"),
        ({"hardware": {"gain": -0.1}}, "hardware.gain: expected at least 0, found -0.1"),
        (
            {"channel": {"kind": "direct"}, "hardware": {"code_phase_rad": 0.1}},
            "hardware.code_phase_rad: must be 0 if the panel is sampled directly",
        ),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        SystemSpec(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"wave": "flat"},
            "wave: expected 'spherical', 'uniform', 'fresnel', 'paraxial', 'recorded' or 'auto', ",
        ),
        ({"unknowns": ()}, "unknowns: expected at least one value, found []"),
        ({"unknowns": ("power",)}, "unknowns: expected 'azimuth', 'elevation' or 'range', found 'power'"),
    ],
)
def test_alternatives_are_one_list(settings, sentence):
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        LocateSpec(**settings)


class _Part(Record):
    name: Annotated[str, Field(pattern="^a")] = "a"
    numbers: Annotated[tuple[float, ...], Field(min_length=2, max_length=3)] = (1.0, 2.0)
    whole: int = 1
    sure: bool = True
    more: dict[str, int] | None = None

    @model_validator(mode="after")
    def _check(self) -> _Part:
        if self.whole == 7:
            raise ValueError("7 is taken")
        return self


class _Whole(Record):
    part: _Part


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "(no JSON: EOF while parsing an object at line 1 column 1)"),
        ("3", "(expected values with names)"),
        ("{}", "(part is missing)"),
        ('{"part": 3}', "(part: expected values with names)"),
        ('{"part": {"name": "b"}}', "(part.name: expected a name of another form)"),
        ('{"part": {"name": 1}}', "(part.name: expected text)"),
        ('{"part": {"numbers": [1]}}', "(part.numbers: expected at least 2 values)"),
        ('{"part": {"numbers": [1, 2, 3, 4]}}', "(part.numbers: expected at most 3 values)"),
        ('{"part": {"numbers": [1, "x"]}}', "(part.numbers.1: expected a number)"),
        ('{"part": {"numbers": 1}}', "(part.numbers: expected a list of values)"),
        ('{"part": {"whole": 1.5}}', "(part.whole: expected an integer)"),
        ('{"part": {"sure": 1}}', "(part.sure: expected true or false)"),
        ('{"part": {"more": 1}}', "(part.more: expected values with names)"),
        ('{"part": {"whole": 7}}', "(part: 7 is taken)"),
    ],
)
def test_damaged_records_are_named_in_plain_words(content, sentence):
    with pytest.raises(InputError) as error:
        parse_record(_Whole, content, "file", "a whole")
    assert str(error.value) == f"file: is not a whole, or it is damaged {sentence}"


def test_parts_name_themselves_too():
    with pytest.raises(InputError, match=r"^scene.range_max_m: expected at least"):
        SceneSpec(range_min_m=11)


def test_a_recording_is_no_file_of_settings(tmp_path):
    """An empty file is valid TOML, of which all settings are the default ones."""
    path = tmp_path / "empty.h5"
    path.touch()
    with pytest.raises(InputError, match=r"empty.h5: is named as a recording \(.h5\)"):
        read_spec(SystemSpec, path)


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match=r"none.toml: cannot be read: no such file"):
        read_spec(SystemSpec, tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("panel = [")
    with pytest.raises(InputError, match=r"bad.toml: is not a valid TOML file"):
        read_spec(SystemSpec, path)
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match=r"bad.toml: is not a text file: byte 0"):
        read_spec(SystemSpec, path)


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


OLD_SETTINGS = [
    ({"belief": 0.5}, "hybrid.belief: was renamed to hybrid.spatial_prior in 0.2.0"),
    ({"own_list": False}, "hybrid.own_list: was renamed to hybrid.network_sources in 0.2.0"),
    ({"doubt": 0.1}, "hybrid.doubt: was renamed to hybrid.recheck_p_value in 0.2.0"),
    ({"steps": 3}, "hybrid.steps: was renamed to hybrid.max_evaluations in 0.2.0"),
    ({"newton_step": 1.5}, "hybrid.newton_step: was removed in 0.2.0"),
    ({"max_evaluation": 3}, "hybrid.max_evaluation: unknown setting; did you mean hybrid.max_evaluations?"),
]


@pytest.mark.parametrize(("settings", "sentence"), OLD_SETTINGS)
def test_old_settings_name_the_new_ones(settings, sentence, tmp_path):
    with pytest.raises(InputError) as caught:
        LocateSpec(hybrid=settings)
    assert str(caught.value) == sentence
    path = tmp_path / "locate.toml"
    path.write_text("[hybrid]\n" + "\n".join(f"{k} = {str(v).lower()}" for k, v in settings.items()))
    with pytest.raises(InputError) as caught:
        read_spec(LocateSpec, path)
    assert str(caught.value) == f"{path}: {sentence}"


def test_a_key_named_self_is_an_unknown_setting(tmp_path):
    path = tmp_path / "system.toml"
    path.write_text("self = 3\n[panel]\nrows = 2\n")
    with pytest.raises(InputError, match=r"system.toml: self: unknown setting"):
        read_spec(SystemSpec, path)


def test_every_renamed_setting_exists_and_its_old_name_does_not():
    known = [*setting_names(LocateSpec), *setting_names(TuneSpec), *setting_names(TrainSpec)]
    for old, new in errors.RENAMED_SETTINGS.items():
        assert old not in known
        assert new is None or new in known


def test_old_names_of_the_package_give_the_new_ones():
    with pytest.raises(AttributeError, match=r"^rismusic.Located was renamed to rismusic.Estimate in 0.2.0$"):
        _ = rismusic.Located
    with pytest.raises(AttributeError, match=r"^rismusic.Trained was renamed to rismusic.TrainingResult in"):
        _ = rismusic.Trained
    with pytest.raises(AttributeError, match=r"^Panel.uniform was renamed to Panel.uniform_planar in 0.2.0$"):
        rismusic.Panel.uniform(3, 4)
    for new in filter(None, errors.RENAMED_NAMES.values()):
        assert hasattr(rismusic, new)


def test_old_attributes_of_an_estimate_give_the_new_ones(samples):
    estimate = rismusic.locate(
        rismusic.open_recording(samples / "ideal_10dB.h5")[0:1], method="omp", n_sources=1
    )
    with pytest.raises(
        AttributeError, match=r"^Estimate.likelihood was renamed to Estimate.neg_log_likelihood"
    ):
        _ = estimate.likelihood
    with pytest.raises(AttributeError, match=r"Estimate.n_sources_probability in 0.2.0"):
        _ = estimate.count_probability
    for owner, names in errors.RENAMED_ATTRIBUTES.items():
        for old, new in names.items():
            assert not hasattr(getattr(rismusic, owner), old)
            assert new in {*vars(getattr(rismusic, owner)), *rismusic.Estimate.__annotations__}


def test_the_changelog_lists_every_renamed_name():
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    assert f"## [{rismusic.__version__}]" in text
    attributes = {old: new for names in errors.RENAMED_ATTRIBUTES.values() for old, new in names.items()}
    for old, new in {**errors.RENAMED_SETTINGS, **errors.RENAMED_NAMES, **attributes}.items():
        row = rf"^- .*`{old}`" if new is None else rf"^\|.*\b{old}\b.*\|.*\b{new}\b"
        assert re.search(row.replace("_", "[_-]"), text, flags=re.MULTILINE), old
