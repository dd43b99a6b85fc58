"""Bad recordings, and what is said of each. The documentation prints this table."""

from __future__ import annotations

import fcntl
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from foreign import SUFFIX, WRITERS, K, L, M, N, S, Values, direct, sound, write_h5, write_mat5, write_npz

PATH = "<the file>"


@dataclass(frozen=True)
class BadInput:
    """A bad file.

    Args:
        name: what is wrong.
        make: makes the file in a directory, and says where it is.
        field: the field that the sentence must name; ``PATH`` for the file as a whole.
        fragment: part of the sentence.
    """

    name: str
    make: Callable[[Path], Path]
    field: str
    fragment: str


CASES: list[BadInput] = []
_HELD: list[Any] = []  # locks must outlive the function that takes them


def bad(name: str, field: str, fragment: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Enter the decorated function into the table."""

    def enter(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        CASES.append(BadInput(name, make, field, fragment))
        return make

    return enter


def altered(
    name: str,
    field: str,
    fragment: str,
    *without: str,
    container: str = "h5",
    base: Callable[[], Values] = sound,
    **changes: Any,
) -> None:
    """Enter a sound recording with some fields changed or left out (``truth_x`` stands for ``truth/x``)."""

    def make(directory: Path) -> Path:
        values = base()
        for key, value in changes.items():
            key = key.replace("truth_", "truth/")
            values[key] = value(values[key].copy()) if callable(value) else value
        for key in without:
            del values[key]
        return WRITERS[container](directory / f"bad{SUFFIX[container]}", values)

    CASES.append(BadInput(name, make, field, fragment))


def at(*place: int | slice, value: Any) -> Callable[[Any], Any]:
    """A change: ``value`` at one place of an array."""

    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        path = directory / name
        path.write_bytes(content)
        return path

    return make


def _cut(format: str, keep: float) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        path = WRITERS[format](directory / f"cut{SUFFIX[format]}", sound())
        os.truncate(path, int(path.stat().st_size * keep))
        return path

    return make


# The file as a whole.
bad("no such file", PATH, "no such file")(lambda directory: directory / "none.h5")
bad("unknown extension", PATH, "a name that ends in .h5, .npz, .mat")(_bytes("a.wav", b"RIFF"))
bad("empty file", PATH, "an empty file")(_bytes("empty.h5", b""))
bad("PNG renamed to .h5", PATH, "starts with b'\\x89PNG")(_bytes("a.h5", b"\x89PNG\r\n\x1a\n" + bytes(99)))
bad("text renamed to .npz", PATH, "starts with b'time,volt")(_bytes("a.npz", b"time,voltage\n" * 99))
bad("text renamed to .mat", PATH, "a MATLAB 5 file or a MATLAB 7.3 file")(
    _bytes("a.mat", b"time,voltage\n" * 99)
)
bad("truncated .h5", PATH, "a truncated one")(_cut("h5", 0.7))
bad("truncated .npz", PATH, "a complete npz file")(_cut("npz", 0.7))
bad("truncated .mat 5", "codes", "cannot be read")(_cut("mat 5", 0.6))
bad("truncated .mat 7.3", PATH, "a truncated one")(_cut("mat 7.3", 0.7))
bad("header of a .mat alone", PATH, "starts with b'MATLAB 5.0")(_cut("mat 5", 0.01))


@bad("directory", PATH, "expected a recording, found a directory")
def _directory(directory: Path) -> Path:
    (directory / "a.h5").mkdir()
    return directory / "a.h5"


@bad("pipe", PATH, "a device or a pipe")
def _pipe(directory: Path) -> Path:
    os.mkfifo(directory / "a.h5")
    return directory / "a.h5"


@bad("MATLAB 4 file", PATH, "a MATLAB 4 file?")
def _mat4(directory: Path) -> Path:
    scipy.io.savemat(directory / "a.mat", {"wavelength": 0.3}, format="4")
    return directory / "a.mat"


@bad("MATLAB 7.3 file renamed to .h5", PATH, "expected an HDF5 file, found a MATLAB 7.3 file")
def _renamed(directory: Path) -> Path:
    return WRITERS["mat 7.3"](directory / "a.h5", sound())


@bad("plain HDF5 renamed to .mat", PATH, "found an HDF5 file")
def _plain(directory: Path) -> Path:
    return write_h5(directory / "a.mat", sound())


@bad("file that is being written", PATH, "another program is writing")
def _locked(directory: Path) -> Path:
    path = write_h5(directory / "a.h5", sound())
    _HELD.append(path.open("r+b"))
    fcntl.flock(_HELD[-1], fcntl.LOCK_EX)
    return path


@bad("HDF5 of something else", "format", 'the text "rismusic/1"')
def _other(directory: Path) -> Path:
    return write_h5(directory / "a.h5", {"images": np.zeros((3, 3))})


@bad("truth that is no group", "truth", "a group of arrays")
def _truth(directory: Path) -> Path:
    path = write_h5(directory / "a.h5", direct())
    with h5py.File(path, "a") as file:
        del file["truth"]
        file["truth"] = np.zeros(3)
    return path


@bad("group in place of snapshots", "snapshots", "an array, found a group")
def _group(directory: Path) -> Path:
    values = sound()
    values["snapshots/real"] = values.pop("snapshots").real
    return write_h5(directory / "a.h5", values)


@bad("link to a field that is gone", "snapshots", "cannot be read")
def _link(directory: Path) -> Path:
    path = write_h5(directory / "a.h5", sound())
    with h5py.File(path, "a") as file:
        del file["snapshots"]
        file["snapshots"] = h5py.ExternalLink("gone.h5", "/y")
    return path


@bad("field without values", "codes", "without any values")
def _null(directory: Path) -> Path:
    return write_h5(directory / "a.h5", {**sound(), "codes": h5py.Empty("f4")})


@bad("pickled objects in .npz", "snapshots", "nothing is ever unpickled")
def _pickled(directory: Path) -> Path:
    return write_npz(directory / "a.npz", {**sound(), "snapshots": np.array([1, None], dtype=object)})


@bad("pickled format in .npz", "format", "never unpickled")
def _pickled_format(directory: Path) -> Path:
    return write_npz(directory / "a.npz", {**sound(), "format": np.array("rismusic/1", dtype=object)})


@bad("member of .npz that is no array", "snapshots", "numpy's format")
def _member(directory: Path) -> Path:
    path = write_npz(directory / "a.npz", {k: v for k, v in sound().items() if k != "snapshots"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("snapshots.npy", b"1, 2, 3")
    return path


@bad("damaged compressed .npz", "snapshots", "cannot be read")
def _damaged(directory: Path) -> Path:
    path = write_npz(directory / "a.npz", sound(), compressed=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"snapshots.npy") + 160
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    return path


@bad("sparse matrix in .mat", "elements", "a full array")
def _sparse(directory: Path) -> Path:
    return write_mat5(
        directory / "a.mat", {**sound(), "elements": scipy.sparse.csc_matrix(sound()["elements"])}
    )


# Format and wavelength.
altered("no format", "format", "no such text in the file", "format")
altered("no format in .mat 7.3", "format", "no such text in the file", "format", container="mat 7.3")
altered("another format", "format", 'found "rismusic/2"', container="npz", format="rismusic/2")
altered("format that is a number", "format", "found 1.0", container="mat 5", format=1.0)
altered("no wavelength", "wavelength", "one positive length in metres", "wavelength")
altered("several wavelengths", "wavelength", "shape [2]", wavelength=np.array([0.3, 0.1]))
altered(
    "several wavelengths in .npz", "wavelength", "shape [2]", container="npz", wavelength=np.array([0.3, 0.1])
)
altered("wavelength 0", "wavelength", "found 0", wavelength=0.0)
altered("negative wavelength", "wavelength", "found -0.3", container="npz", wavelength=-0.3)
altered("wavelength not finite", "wavelength", "found nan", container="mat 5", wavelength=np.nan)
altered("wavelength as text", "wavelength", "'0.3 m'", wavelength="0.3 m")
altered("wavelength complex", "wavelength", "(0.3+1j)", container="npz", wavelength=0.3 + 1j)
altered("wavelength in millimetres", "wavelength", "0.0005 wavelengths apart", wavelength=300.0)
altered("frequency for wavelength", "wavelength", "another unit", container="mat 5", wavelength=1e9)
altered("elements in millimetres", "wavelength", "500 wavelengths apart", elements=lambda p: p * 1000)
altered(
    "two elements in one place", "wavelength", "0 wavelengths apart", elements=at(1, value=[-0.15, -0.075, 0])
)

# Fields that are missing.
altered("no elements", "elements", "no such field", "elements")
altered("no snapshots", "snapshots", "no such field", "snapshots", container="npz")
altered("codes without channel", "channel", "to go with codes", "channel")
altered("channel without codes", "codes", "to go with channel", "codes", container="mat 5")
altered("truth without range", "truth/range", "to go with truth/azimuth", "truth/range")

# Types.
altered("real snapshots", "snapshots", "float32 (real numbers", snapshots=lambda y: y.real)
altered(
    "real snapshots in .mat", "snapshots", "float64 (real", container="mat 5", snapshots=np.ones((S, L, M))
)
altered(
    "real snapshots in .mat 7.3",
    "snapshots",
    "float64 (real",
    container="mat 7.3",
    snapshots=np.ones((S, L, M)),
)
altered(
    "integer snapshots", "snapshots", "found int16", container="npz", snapshots=np.ones((S, L, M), np.int16)
)
altered("text for codes", "codes", "found text", container="npz", codes=np.array([["+", "-"]]))
altered("text for codes in .h5", "codes", "found object", codes=np.array([["+", "-"]], dtype=object))
altered("complex elements", "elements", "found complex128", elements=lambda p: p + 0j)
altered("integer noise variance", "noise_variance", "found int64", noise_variance=np.ones(S, np.int64))

# Shapes.
altered("elements without z", "elements", "real [N, 3]", elements=lambda p: p[:, 0])
altered(
    "elements of two coordinates", "elements", "real [N, 3], found shape [6, 2]", elements=lambda p: p[:, :2]
)
altered("elements transposed", "elements", "shape [3, 6]", container="mat 5", elements=lambda p: p.T)
altered("snapshots of one scene", "snapshots", "complex [S, L, M]", snapshots=lambda y: y[0])
altered("no scene", "snapshots", "at least one scene", snapshots=np.empty((0, L, M), np.complex64))
altered(
    "no snapshot",
    "snapshots",
    "at least one snapshot",
    container="npz",
    snapshots=np.empty((S, 0, M), np.complex64),
)
altered(
    "no antenna",
    "snapshots",
    "at least one antenna",
    container="mat 5",
    snapshots=np.empty((S, L, 0), np.complex64),
)
altered("L of codes", "codes", f"shape [{L}, {N}] or [{S}, {L}, {N}]", codes=lambda c: c[:, :2])
altered("N of codes", "codes", f"shape [{L}, {N}] or [{S}, {L}, {N}]", codes=lambda c: c[..., :5])
altered("M of channel", "channel", f"shape [{M}, {N}] or [{S}, {M}, {N}]", channel=lambda h: h[:, :1])
altered("N of channel transposed", "channel", f"[{N}, {M}]", container="mat 5", channel=lambda h: h[0].T)
altered("S of channel", "channel", f"[{S - 1}, {M}, {N}]", channel=lambda h: h[1:])
altered("S of noise variance", "noise_variance", f"shape [{S}]", noise_variance=np.ones(S + 1))
altered("one noise variance for all", "noise_variance", f"shape [{S}]", noise_variance=np.float64(1.0))
altered("direct sampling, M != N", "snapshots", f"M = N = {N}", base=direct, snapshots=lambda y: y[..., :M])
altered("S of truth", "truth/azimuth", f"shape [{S}, {K}]", truth_azimuth=lambda a: a[:-1])
altered("K_max of truth", "truth/range", f"shape [{S}, {K}]", truth_range=lambda r: r[:, :1])
altered("truth of no source", "truth/azimuth", "at least one source", truth_azimuth=np.empty((S, 0)))

# Values.
altered(
    "NaN in snapshots", "snapshots", "scene 2, snapshot 1, antenna 0", snapshots=at(2, 1, 0, value=np.nan)
)
altered("infinity in snapshots", "snapshots", "inf", container="npz", snapshots=at(2, 1, 0, value=np.inf))
altered("NaN in channel", "channel", "scene 1, antenna 0, element 5", channel=at(1, 0, 5, value=np.nan))
altered(
    "NaN in codes of all scenes",
    "codes",
    "in snapshot 2, element 3",
    codes=lambda c: at(2, 3, value=1j * np.nan)(c[0]),
)
altered("NaN in elements", "elements", "a NaN", elements=at(0, 0, value=np.nan))
altered("scene of zeros", "snapshots", "zero power (every value is 0) in scene 3", snapshots=at(3, value=0))
altered("snapshots too large", "snapshots", "overflow in scene 1", snapshots=at(1, value=1e30))
altered(
    "snapshots too small",
    "snapshots",
    "so small that their squares are 0 in scene 1",
    snapshots=at(1, value=1e-30),
)
altered(
    "channel of zeros", "channel", "zero power", container="mat 7.3", channel=np.zeros((M, N), np.complex64)
)
altered("codes of zeros", "codes", "zero power (every value is 0) in scene 0", codes=at(0, value=0))
altered("noise variance 0", "noise_variance", "0 in scene 1", noise_variance=at(1, value=0))
altered("negative noise variance", "noise_variance", "-2 in scene 1", noise_variance=at(1, value=-2))
altered(
    "noise variance NaN",
    "noise_variance",
    "nan in scene 1",
    container="mat 5",
    noise_variance=at(1, value=np.nan),
)
altered("range 0", "truth/range", "positive ranges in metres, found 0", truth_range=at(1, 0, value=0))
altered("negative range", "truth/range", "found -3", container="npz", truth_range=at(1, 0, value=-3))
altered(
    "source behind the panel", "truth/azimuth", "in front of the panel", truth_azimuth=at(1, 0, value=2.0)
)
altered("source in the panel's plane", "truth/elevation", "pi/2", truth_elevation=at(1, 0, value=-np.pi / 2))
altered("angles in degrees", "truth/azimuth", "30; degrees?", truth_azimuth=at(1, 0, value=30.0))
altered("NaN in one of three", "truth/range", "NaN in the same places", truth_range=at(1, 0, value=np.nan))
altered("infinite range", "truth/range", "an infinity", truth_range=at(1, 0, value=np.inf))
altered(
    "power 0 of a source",
    "truth/power",
    "positive powers",
    truth_power=np.array([[0.0, np.nan]] + 3 * [[1, 1]]),
)
altered(
    "L of symbols", "truth/symbols", f"shape [{S}, {K}, {L}]", truth_symbols=np.ones((S, K, L + 1), complex)
)
altered(
    "symbols without a source",
    "truth/symbols",
    "scene 0, source 1",
    truth_symbols=np.ones((S, K, L), complex),
)
