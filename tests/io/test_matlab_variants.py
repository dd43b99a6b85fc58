"""MATLAB files that differ from the schema in ways that users' files do."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from foreign import SUFFIX, WRITERS, direct, sound

from rismusic.errors import InputError
from rismusic.io import open_recording, read

DATA = Path(__file__).parents[1] / "data"


def test_one_scene_without_its_scene_axis():
    found, stored = read(DATA / "two_d.mat"), scipy.io.loadmat(DATA / "two_d.mat")
    assert found.snapshots.shape == (1, 8, 5)
    np.testing.assert_array_equal(found.snapshots[0].numpy(), stored["snapshots"])


@pytest.mark.parametrize("container", ["mat 5", "mat 7.3"])
def test_one_scene_of_a_direct_array(container, tmp_path):
    values = direct()
    values = {name: values[name] for name in ("format", "wavelength", "elements", "snapshots")}
    values["snapshots"] = values["snapshots"][1]
    path = WRITERS[container](tmp_path / f"a{SUFFIX[container]}", values)
    np.testing.assert_array_equal(read(path).snapshots[0].numpy(), values["snapshots"])
    with open_recording(path) as file:
        assert [len(part) for part in file.batches(4)] == [1]


def test_one_antenna_is_not_one_scene(tmp_path):
    """MATLAB drops the trailing axis of [S, L, 1]; channel and codes tell the two cases apart."""
    values = sound(4, 3, 1)
    assert read(WRITERS["mat 7.3"](tmp_path / "a.mat", values)).snapshots.shape == (4, 3, 1)


def test_codes_of_plus_and_minus_one_as_integers(tmp_path):
    stored = scipy.io.loadmat(DATA / "codes_int8.mat")
    found = read(DATA / "codes_int8.mat")
    assert found.codes.dtype == found.snapshots.dtype == torch.complex128
    np.testing.assert_array_equal(found.codes.numpy(), stored["codes"].astype(complex))
    for container in WRITERS:
        values = {**sound(), "codes": np.sign(sound()["codes"].real)}
        path = WRITERS[container](tmp_path / f"{container[:3]}{SUFFIX[container]}", values)
        np.testing.assert_array_equal(read(path).codes.numpy(), values["codes"])
        path.unlink()


def test_phase_bits_are_not_reflection_coefficients(tmp_path):
    bits = (sound()["codes"].real > 0).astype(np.int8)
    with pytest.raises(InputError, match=r"^codes: .* int8 values 0 and 1 only.* 1 - 2 \* codes"):
        read(WRITERS["npz"](tmp_path / "a.npz", {**sound(), "codes": bits}))


@pytest.mark.parametrize("container", ["mat 5", "mat 7.3"])
def test_fields_inside_a_struct(container, tmp_path):
    path = DATA / "struct.mat"
    if container == "mat 7.3":
        path = WRITERS[container](tmp_path / "a.mat", {})
        with h5py.File(path, "a") as file:
            file["rec/snapshots"] = np.ones((2, 2))
            file["rec"].attrs["MATLAB_class"] = np.bytes_("struct")
    with pytest.raises(InputError, match=r"save.'file.mat', '-struct', 'rec'") as caught:
        read(path)
    assert caught.value.field == "format"


@pytest.mark.parametrize("container", WRITERS)
def test_real_and_imaginary_part_apart(container, tmp_path):
    values = sound()
    expected = values.pop("snapshots")
    values |= {"snapshots_real": expected.real.copy(), "snapshots_imag": expected.imag.copy()}
    with open_recording(WRITERS[container](tmp_path / f"a{SUFFIX[container]}", values)) as file:
        assert not file.ignored
        np.testing.assert_array_equal(file[1:3].snapshots.numpy(), expected[1:3])


def test_real_and_imaginary_part_in_a_file_of_matlab():
    stored = scipy.io.loadmat(DATA / "realimag.mat")
    recording = read(DATA / "realimag.mat")  # its other fields are complex128
    found = recording.snapshots
    assert found.dtype == recording.channel.dtype == torch.complex128
    np.testing.assert_array_equal(found.real.numpy(), stored["snapshots_real"])
    np.testing.assert_array_equal(found.imag.numpy(), stored["snapshots_imag"])


def test_parts_of_different_shape(tmp_path):
    values = sound()
    y = values.pop("snapshots")
    values |= {"snapshots_real": y.real.copy(), "snapshots_imag": y.imag[1:].copy()}
    with pytest.raises(InputError, match=r"^snapshots: .*imaginary part"):
        read(WRITERS["npz"](tmp_path / "a.npz", values))


def test_complex_integers_of_matlab(tmp_path):
    """A variable of class int8 with an imaginary part, as ``complex(int8(1), int8(-1))``."""
    path = WRITERS["mat 5"](tmp_path / "a.mat", {**sound(), "codes": np.ones((3, 6), np.complex64)})
    content = bytearray(path.read_bytes())
    place = content.index(b"codes") - 32
    assert content[place] == 7, "class single"
    content[place] = 8
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path).codes.numpy(), np.ones((3, 6)))
