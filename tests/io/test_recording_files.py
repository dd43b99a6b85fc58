from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from foreign import (
    SUFFIX,
    WRITERS,
    K,
    L,
    M,
    N,
    S,
    direct,
    flat,
    simulated,
    sound,
    write_h5,
    write_mat5,
    write_mat73,
    write_npz,
)

from rismusic.cli import main
from rismusic.io import Recording, RecordingWriter, open_recording, read, write
from rismusic.io.reader import RecordingFile
from rismusic.io.recording import tensors

FORMATS = list(WRITERS)
ROOT = Path(__file__).parents[2]
SAMPLES = next((f for f in (ROOT / "samples", ROOT.parent / "shared" / "samples") if f.is_dir()), None)
KINDS: dict[str, dict[str, object]] = {
    "a link for each scene": {},
    "one link": {"one_link": True},
    "direct": {"channel": {"kind": "direct"}},
    "one source": {"sources": 1},
    "one antenna": {"channel": {"antennas": 1}},
    "one antenna, one snapshot": {"channel": {"antennas": 1}, "codebook": {"snapshots": 1}},
    "one element": {"panel": {"rows": 1, "columns": 1}, "channel": {"kind": "direct"}},
}


def kept(directory: Path, recording: Recording, container: str) -> Path:
    path = directory / f"recording{SUFFIX[container]}"
    write(path, recording, mat_version="7.3" if container == "mat 7.3" else "5", overwrite=True)
    return path


def assert_equal(found: Recording, expected: Recording) -> None:
    """Every value the same, NaN included; real numbers float64, complex ones of the same precision."""
    assert found.wavelength == expected.wavelength
    one, other = tensors(found), tensors(expected)
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert one[name].dtype == (value.dtype if value.is_complex() else torch.float64), name
        np.testing.assert_array_equal(one[name].numpy(), value.numpy(), err_msg=name)


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenes", [1, 5])
def test_round_trip(container: str, kind: str, scenes: int, tmp_path: Path) -> None:
    recording = simulated(scenes, **KINDS[kind])
    path = kept(tmp_path, recording, container)
    assert_equal(read(path), recording)
    with open_recording(path) as file:
        assert (file.format, file.path, len(file), file.scenes) == (container, path, scenes, scenes)
        assert (file.snapshots, file.antennas) == recording.snapshots.shape[1:]
        assert (file.size, file.wavelength) == (len(recording.elements), recording.wavelength)
        assert file.sources_max == recording.truth.azimuth.shape[1]
        assert file.direct == (recording.channel is None)
        # Of one scene MATLAB's shapes do not say whether the link is its own, nor need they.
        if scenes > 1:
            own = recording.channel is not None and recording.channel.ndim == 3
            assert file.channel_per_scene == file.codes_per_scene == own
        assert not file.ignored
        torch.testing.assert_close(file.elements, recording.elements, rtol=0, atol=0)


@pytest.mark.parametrize("container", FORMATS)
def test_round_trip_without_truth_and_noise(container: str, tmp_path: Path) -> None:
    whole = simulated()
    bare = Recording(
        wavelength=whole.wavelength,
        elements=whole.elements,
        snapshots=whole.snapshots,
        channel=whole.channel,
        codes=whole.codes,
    )
    path = kept(tmp_path, bare, container)
    assert_equal(read(path), bare)
    with open_recording(path) as file:
        assert file.sources_max is None
        assert file.fields == ("elements", "snapshots", "channel", "codes")


@pytest.mark.parametrize("container", FORMATS)
def test_streaming_equals_whole(container: str, tmp_path: Path) -> None:
    recording = simulated(7)
    whole = kept(tmp_path, recording, container)
    blocks = tmp_path / f"blocks{SUFFIX[container]}"
    version = "7.3" if container == "mat 7.3" else "5"
    with RecordingWriter(blocks, scenes=7, mat_version=version) as writer:
        for start, stop in ((0, 3), (3, 4), (4, 7)):
            writer.append(recording[start:stop])
    assert_equal(read(blocks), read(whole))
    with open_recording(blocks) as file:
        parts = list(file.batches(3))
        assert [len(part) for part in parts] == [3, 3, 1]
        for start, part in zip((0, 3, 6), parts, strict=True):
            assert_equal(part, recording[start : start + 3])
        assert_equal(file[2:5], recording[2:5])
        assert_equal(file[-2:], recording[5:7])


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("precision", [np.complex64, np.complex128])
@pytest.mark.parametrize("sizes", [(S, L, M, K), (S, L, 1, K), (S, 1, 1, 1), (1, L, M, 1), (1, 1, 1, 1)])
def test_reads_what_others_wrote(
    container: str, precision: type, sizes: tuple[int, int, int, int], tmp_path: Path
) -> None:
    values = sound(*sizes, dtype=precision)
    found = read(WRITERS[container](tmp_path / f"a{SUFFIX[container]}", values))
    for name, value in tensors(found).items():
        expected = values[name]
        if value.ndim < expected.ndim:  # one scene: MATLAB has dropped what told its link from a shared one
            expected = expected[0]
        assert value.numpy().dtype == expected.dtype, name
        np.testing.assert_array_equal(value.numpy(), expected, err_msg=name)


def test_reads_extended_precision(tmp_path: Path) -> None:
    for write_to in (write_h5, write_npz):
        path = tmp_path / ("a.h5" if write_to is write_h5 else "a.npz")
        found = read(write_to(path, sound(dtype=np.clongdouble)))
        assert found.snapshots.dtype == torch.complex128
        np.testing.assert_array_equal(found.snapshots.numpy(), sound(dtype=np.complex128)["snapshots"])


@pytest.mark.parametrize("container", FORMATS)
def test_a_shared_channel_goes_with_codes_of_each_scene(container: str, tmp_path: Path) -> None:
    values = {**sound(), "channel": sound()["channel"][0]}
    path = WRITERS[container](tmp_path / f"a{SUFFIX[container]}", values)
    found = read(path)
    assert found.channel.shape == (M, N)
    assert found.codes.shape == (S, L, N)
    with open_recording(path) as file:
        assert not file.channel_per_scene
        assert file.codes_per_scene


@pytest.mark.parametrize("container", FORMATS)
def test_reads_direct_sampling_and_lists_what_it_ignores(container: str, tmp_path: Path) -> None:
    values = {**direct(), "operator": np.ones(3), "truth/colour": np.ones(3)}
    with open_recording(WRITERS[container](tmp_path / f"a{SUFFIX[container]}", values)) as file:
        assert file.direct
        assert file.antennas == file.size == N
        assert {name.replace("/", "_") for name in file.ignored} == {"operator", "truth_colour"}
        assert file[:].link.channel is None


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_plain_compressed_and_fortran(compressed: bool, order: str, tmp_path: Path) -> None:
    values = {k: np.asarray(v, order=order) if isinstance(v, np.ndarray) else v for k, v in sound().items()}
    with open_recording(write_npz(tmp_path / "a.npz", values, compressed=compressed)) as file:
        np.testing.assert_array_equal(file[1:3].snapshots.numpy(), values["snapshots"][1:3])
        np.testing.assert_array_equal(file[2:4].codes.numpy(), values["codes"][2:4])


def test_byte_order_of_another_machine(tmp_path: Path) -> None:
    values = sound()
    swapped = {
        k: v.astype(v.dtype.newbyteorder(">")) if isinstance(v, np.ndarray) else v for k, v in values.items()
    }
    for path in (write_npz(tmp_path / "a.npz", swapped), write_h5(tmp_path / "a.h5", swapped)):
        np.testing.assert_array_equal(read(path).snapshots.numpy(), values["snapshots"])


def test_wavelength_may_be_a_vector_or_matrix_of_one(tmp_path: Path) -> None:
    for shape in ((), (1,), (1, 1)):
        for write_to in (write_npz, write_mat5, write_mat73):
            path = tmp_path / ("a.npz" if write_to is write_npz else "a.mat")
            path.unlink(missing_ok=True)
            assert read(write_to(path, {**sound(), "wavelength": np.full(shape, 0.3)})).wavelength == 0.3


@pytest.mark.parametrize("writer", [write_mat5, write_mat73])
def test_matlab_vectors_lie_or_stand(writer: object, tmp_path: Path) -> None:
    values = sound(sources=1)
    for shape in ((1, S), (S, 1)):
        turned = {k: v.reshape(shape) if np.shape(v) in ((S,), (S, 1)) else v for k, v in values.items()}
        found = read(writer(tmp_path / f"{shape[0]}.mat", turned))
        np.testing.assert_array_equal(found.noise_variance.numpy(), values["noise_variance"])
        np.testing.assert_array_equal(found.truth.range.numpy(), values["truth/range"])


def test_whole_numbers_that_matlab_packs_as_integers(tmp_path: Path) -> None:
    """MATLAB saves doubles that are whole as bytes; the class of the variable says what they are."""
    path = tmp_path / "a.mat"
    write_mat5(path, {**sound(), "wavelength": 1.0})
    content = path.read_bytes()
    place = content.index(b"wavelength")
    tag = np.array([9, 8], "<u4").tobytes() + np.float64(1.0).tobytes()
    assert tag in content[place:]
    packed = np.array([(1 << 16) | 2], "<u4").tobytes() + b"\1\0\0\0"  # one byte, type uint8, small element
    start = content.index(tag, place)
    shorter = bytearray(content[:start] + packed + content[start + len(tag) :])
    size = place - len(b"wavelength") * 0
    while shorter[size - 4 : size] != b"\x0e\0\0\0"[:4]:
        size -= 1
    length = int.from_bytes(shorter[size : size + 4], "little")
    shorter[size : size + 4] = (length - 8).to_bytes(4, "little")
    path.write_bytes(shorter)
    assert scipy.io.loadmat(path)["wavelength"].dtype == np.uint8
    assert read(path).wavelength == 1.0


def test_others_read_what_is_written(tmp_path: Path) -> None:
    recording = simulated()
    expected = {name.replace("/", "_"): value.numpy() for name, value in tensors(recording).items()}
    with np.load(kept(tmp_path, recording, "npz"), allow_pickle=False) as archive:
        assert str(archive["format"]) == "rismusic/1"
        for name, value in expected.items():
            np.testing.assert_array_equal(archive[name], value)
    with zipfile.ZipFile(tmp_path / "recording.npz") as archive:
        assert archive.testzip() is None
    variables = scipy.io.loadmat(kept(tmp_path, recording, "mat 5"))
    assert variables["format"] == ["rismusic/1"]
    np.testing.assert_array_equal(variables["snapshots"], expected["snapshots"])
    assert variables["noise_variance"].shape == (4, 1)


def test_matlab_73_file_is_as_matlab_wants_it(tmp_path: Path) -> None:
    recording = simulated()
    path = kept(tmp_path, recording, "mat 7.3")
    head = path.read_bytes()[:512]
    assert head.startswith(b"MATLAB 7.3 MAT-file")
    assert head[:116].isascii()
    assert head[116:128] == bytes(8) + b"\0\2IM"
    assert scipy.io.matlab.matfile_version(path) == (2, 0)
    with h5py.File(path) as file:
        assert file.userblock_size == 512
        snapshots = file["snapshots"]
        assert snapshots.shape == recording.snapshots.shape[::-1]
        assert snapshots.dtype.names == ("real", "imag")
        np.testing.assert_array_equal(snapshots["imag"].T, recording.snapshots.imag.numpy())
        classes = {name: file[name].attrs["MATLAB_class"] for name in file}
        assert classes == {
            "format": b"char",
            "wavelength": b"double",
            "wave": b"char",
            "pattern_exponent": b"double",
            "symbols": b"char",
            **dict.fromkeys(("snapshots", "channel", "codes", "truth_symbols"), b"single"),
            **{f"truth_{name}": b"double" for name in ("azimuth", "elevation", "range", "power")},
            **dict.fromkeys(("elements", "noise_variance"), b"double"),
        }
        assert file["format"].shape == (10, 1)
        assert file["format"].dtype == np.uint16
        assert file["wavelength"].shape == (1, 1)
        assert file["noise_variance"].shape == (1, 4)


def test_doubles_are_written_in_the_precision_of_the_format(tmp_path: Path) -> None:
    recording = simulated(dtype=torch.float64)
    assert recording.snapshots.dtype == torch.complex128
    found = read(kept(tmp_path, recording, "h5"))
    assert found.snapshots.dtype == found.channel.dtype == torch.complex64
    assert found.truth.symbols.dtype == torch.complex128
    assert torch.equal(found.snapshots, recording.snapshots.to(torch.complex64))


@pytest.mark.skipif(SAMPLES is None, reason="the sample recordings are not here")
def test_samples() -> None:
    assert SAMPLES is not None
    paths = [path for path in sorted(SAMPLES.iterdir()) if path.suffix in (".h5", ".mat")]
    scenes = {path.name: len(read(path)) for path in paths}
    assert scenes == {
        "direct_10dB.h5": 12,
        "ideal_0dB.h5": 24,
        "ideal_10dB.h5": 24,
        "impaired_10dB.h5": 24,
        "one_link_20dB.mat": 10,
        "physical_10dB.h5": 24,
        "physical_direct_10dB.h5": 12,
        "raytraced_20dB.h5": 24,
    }
    with open_recording(SAMPLES / "one_link_20dB.mat") as file:
        assert (file.format, file.channel_per_scene, file.sources_max) == ("mat 5", False, None)
        with np.load(SAMPLES / "one_link_20dB.truth.npz") as truth:
            assert file.scenes == len(next(iter(truth.values())))
    assert flat({"truth/range": 1}) == {"truth_range": 1}


def test_large_scenes_are_read_few_at_a_time(tmp_path, monkeypatch):
    path, read_at_once = SAMPLES / "direct_10dB.h5", []
    whole = RecordingFile._scenes

    def counted(file, start, stop):
        read_at_once.append(stop - start)
        return whole(file, start, stop)

    monkeypatch.setattr(RecordingFile, "_scenes", counted)
    arguments = ["locate", str(path), "--method", "music", "-o"]
    assert main([*arguments, str(tmp_path / "one.csv")]) == 0
    assert read_at_once[-1] == 12
    each = 16 * (16 * 144 + 3 * 5)  # snapshots, and the truth of five sources
    monkeypatch.setattr("rismusic.io.reader._BLOCK_BYTES", 6 * each - 1)
    assert main([*arguments, str(tmp_path / "few.csv")]) == 0
    assert read_at_once[-3:] == [5, 5, 2]
    one, few = (np.genfromtxt(tmp_path / name, delimiter=",", names=True) for name in ("one.csv", "few.csv"))
    for name in ("scene", "azimuth_deg", "elevation_deg", "range_m"):
        np.testing.assert_allclose(few[name], one[name], rtol=1e-4)
    assert main(["check", str(path)]) in (0, 1)
    assert max(read_at_once[-3:]) == 5
    monkeypatch.setattr("rismusic.io.reader._BLOCK_BYTES", 1)
    with open_recording(path) as file:
        assert file.scenes_at_a_time == 1
