"""Recordings of every signal model survive a file of every format, whole and in blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign import SUFFIX, WRITERS
from test_recording_files import assert_equal, kept

from model_scenes import LIGHT, make
from model_scenes import MODELS as ALL_MODELS
from rismusic.errors import InputError
from rismusic.io import Recording, RecordingWriter, open_recording, read, write

# Weights of samples are not part of a file.
MODELS = {name: model for name, model in ALL_MODELS.items() if not model.get("weighted")}


def narrow(recording: Recording) -> Recording:
    """The recording in the precision of files, with times and other numbers of scenes."""

    def change(name: str, value: torch.Tensor) -> torch.Tensor:
        return value.to(torch.complex64) if value.is_complex() and name != "truth" else value

    recording = Recording.concatenate([recording[[0, 1]], recording[[1, 0]], recording[[1]]])
    recording = recording._each(change)
    return replace(recording, times=torch.arange(5, dtype=torch.float64) / 3)


def same(found: Recording, expected: Recording) -> None:
    assert_equal(found, expected)
    for name in ("wave", "pattern_exponent", "symbols"):
        assert getattr(found, name) == getattr(expected, name)


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(container: str, name: str, tmp_path: Path) -> None:
    recording = narrow(make(**MODELS[name]))
    path = kept(tmp_path, recording, container)
    same(read(path), recording)
    blocks = tmp_path / f"blocks{SUFFIX[container]}"
    with RecordingWriter(blocks, scenes=5, mat_version="7.3" if container == "mat 7.3" else "5") as writer:
        for start, stop in ((0, 1), (1, 3), (3, 5)):
            writer.append(recording[start:stop])
    same(read(blocks), recording)
    with open_recording(blocks) as file:
        assert (file.wave, file.symbols) == (recording.wave, recording.symbols)
        assert file.pattern_exponent == recording.pattern_exponent
        assert (file.snapshots, file.antennas) == tuple(recording.snapshots.shape[-2:])
        for start, part in zip((0, 2, 4), file.batches(2), strict=True):
            same(part, recording[start : start + 2])


@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("name", MODELS)
def test_one_scene(container: str, name: str, tmp_path: Path) -> None:
    """MATLAB's formats do not say of one scene whether a channel is its own; the fields mean the same."""
    recording = narrow(make(**MODELS[name]))[:1]
    found = read(kept(tmp_path, recording, container))
    torch.testing.assert_close(found.snapshots, recording.snapshots, rtol=0, atol=0)
    one, other = found.stacked(), recording.stacked()
    torch.testing.assert_close(one.snapshots, other.snapshots)
    A = one.truth.steering(one.panel).to(torch.complex64)
    torch.testing.assert_close(one.link.matmul(A), other.link.matmul(A))


@pytest.mark.parametrize("name", ["wave", "symbols", "pattern_exponent"])
def test_blocks_of_another_model_are_refused(name: str, tmp_path: Path) -> None:
    one = make()
    other = replace(
        one, **{"wave": {"wave": "uniform"}, "symbols": {"symbols": "constant"}}.get(name, {name: 1.0})
    )
    with RecordingWriter(tmp_path / "a.h5", scenes=4) as writer:
        writer.append(one)
        with pytest.raises(InputError, match=name):
            writer.append(other)
        writer.append(one)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pilots": torch.ones(4, 2, dtype=torch.complex64)}, "symbols"),
        ({"symbols": "known"}, "pilots"),
        ({"frequencies": torch.ones(3, dtype=torch.float64)}, "snapshots"),
        ({"noise_covariance": -torch.eye(5, dtype=torch.complex64)}, "noise_covariance"),
        ({"wave": "plane"}, "wave"),
    ],
)
def test_contradictions_are_not_written(change: dict, field: str, tmp_path: Path, untyped: None) -> None:
    with pytest.raises(InputError) as caught:
        write(tmp_path / "a.h5", replace(make(), **change))
    assert caught.value.field.endswith(field), caught.value
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("model", ["wideband", "wideband, per scene", "wideband, direct", "wideband, known"])
def test_one_subcarrier_is_a_narrowband_recording(model: str, tmp_path: Path) -> None:
    """Also if its wavelength differs from the one that the recording states, that of the design frequency."""
    wide = replace(narrow(make(**MODELS[model])), truth=None)
    assert wide.frequencies is not None
    channel = wide.channel
    one = replace(
        wide,
        snapshots=wide.snapshots[:, 2:],
        channel=None if channel is None else channel[..., 2:, :, :],
        frequencies=wide.frequencies[2:],
    )
    expected = replace(
        wide,
        snapshots=wide.snapshots[:, 2],
        channel=None if channel is None else channel[..., 2, :, :],
        frequencies=None,
        wavelength=LIGHT / float(one.frequencies),
    )
    path = tmp_path / "one.h5"
    write(path, one)
    same(read(path), expected)
    with open_recording(path) as file:
        assert file.panel.wavelength == expected.wavelength != wide.wavelength
    names = ("channel", "codes", "noise_variance", "pilots", "frequencies", "times")
    given = {name: getattr(one, name) for name in names}
    same(Recording.from_arrays(one.snapshots, one.elements, one.wavelength, **given), expected)
