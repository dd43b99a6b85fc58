"""Bad files as a whole: foreign, broken, locked, or of another make inside."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from bad_case import PATH, bad
from foreign import SUFFIX, WRITERS, direct, sound, write_h5, write_mat5, write_npz

_HELD: list[Any] = []  # locks must outlive the function that takes them


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


bad("no such file", PATH, "no such file")(lambda directory: directory / "none.h5")
bad("unknown extension", PATH, "a name that ends in .h5, .npz or .mat")(_bytes("a.wav", b"RIFF"))
bad("empty file", PATH, "an empty file")(_bytes("empty.h5", b""))
bad("PNG renamed to .h5", PATH, "starts with b'\\x89PNG")(_bytes("a.h5", b"\x89PNG\r\n\x1a\n" + bytes(99)))
bad("text renamed to .npz", PATH, "starts with b'time,volt")(_bytes("a.npz", b"time,voltage\n" * 99))
bad("text renamed to .mat", PATH, "a MATLAB 5 file or a MATLAB 7.3 file")(
    _bytes("a.mat", b"time,voltage\n" * 99)
)
bad("truncated .h5", PATH, "a truncated HDF5 file")(_cut("h5", 0.7))
bad("truncated .npz", PATH, "a complete npz file")(_cut("npz", 0.7))
bad("truncated .mat 5", PATH, "truncated")(_cut("mat 5", 0.6))
bad("truncated .mat 7.3", PATH, "a truncated HDF5 file")(_cut("mat 7.3", 0.7))
bad("header of a .mat alone", PATH, "starts with b'MATLAB 5.0")(_cut("mat 5", 0.01))


@bad("directory", PATH, "is a folder, not a file")
def _directory(directory: Path) -> Path:
    (directory / "a.h5").mkdir()
    return directory / "a.h5"


@bad("pipe", PATH, "is a pipe, not a file")
def _pipe(directory: Path) -> Path:
    os.mkfifo(directory / "a.h5")
    return directory / "a.h5"


@bad("MATLAB 4 file", PATH, "a MATLAB 4 file?")
def _mat4(directory: Path) -> Path:
    scipy.io.savemat(directory / "a.mat", {"wavelength": 0.3}, format="4")
    return directory / "a.mat"


@bad("MATLAB 7.3 file renamed to .h5", PATH, "should be an HDF5 file by its name, but is a MATLAB 7.3 file")
def _renamed(directory: Path) -> Path:
    return WRITERS["mat 7.3"](directory / "a.h5", sound())


@bad("plain HDF5 renamed to .mat", PATH, "but is an HDF5 file")
def _plain(directory: Path) -> Path:
    return write_h5(directory / "a.mat", sound())


@bad("file that is being written", PATH, "another program is writing")
def _locked(directory: Path) -> Path:
    fcntl = pytest.importorskip("fcntl", exc_type=ImportError)
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


@bad("group in place of snapshots", "snapshots", "must be an array; got a group")
def _group(directory: Path) -> Path:
    values = sound()
    values["snapshots/real"] = values.pop("snapshots").real
    return write_h5(directory / "a.h5", values)


def _relinked(directory: Path, field: str, link: Any, suffix: str = "h5") -> Path:
    path = WRITERS[suffix](directory / f"a{SUFFIX[suffix]}", sound())
    other = write_h5(directory / "other.h5", sound())
    with h5py.File(path, "a") as file:
        values = file[field][()] if isinstance(file[field], h5py.Dataset) else None
        del file[field]
        if callable(link):
            link(file, field, values, other)
        else:
            file[field] = link
    return path


@bad("link to a field that is gone", "snapshots", "cannot be read")
def _gone(directory: Path) -> Path:
    return _relinked(directory, "snapshots", h5py.SoftLink("/gone"))


@bad("link to another file", "snapshots", "a link to another file, which is not followed")
def _link(directory: Path) -> Path:
    return _relinked(directory, "snapshots", h5py.ExternalLink("other.h5", "/snapshots"))


@bad("link to another file in .mat", "snapshots", "a link to another file, which is not followed")
def _link_mat(directory: Path) -> Path:
    return _relinked(directory, "snapshots", h5py.ExternalLink("other.h5", "/snapshots"), "mat 7.3")


@bad("truth in another file", "truth", "a link to another file, which is not followed")
def _link_truth(directory: Path) -> Path:
    return _relinked(directory, "truth", h5py.ExternalLink("other.h5", "/truth"))


@bad("link to a link to another file", "snapshots", "a link to another file, which is not followed")
def _link_twice(directory: Path) -> Path:
    def link(file: h5py.File, field: str, _: Any, __: Path) -> None:
        file["there"] = h5py.ExternalLink("other.h5", "/")
        file[field] = h5py.SoftLink("/there/snapshots")

    return _relinked(directory, "snapshots", link)


@bad("link to itself", "snapshots", "a link that leads to itself")
def _circle(directory: Path) -> Path:
    return _relinked(directory, "snapshots", h5py.SoftLink("/snapshots"))


@bad("virtual dataset", "snapshots", "a virtual dataset, whose values are in other files")
def _virtual(directory: Path) -> Path:
    def link(file: h5py.File, field: str, values: Any, other: Path) -> None:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(str(other), field, values.shape)
        file.create_virtual_dataset(field, layout)

    return _relinked(directory, "snapshots", link)


@bad("values in another file", "noise_variance", "has its values in another file, which is not read")
def _external(directory: Path) -> Path:
    def link(file: h5py.File, field: str, values: Any, _: Path) -> None:
        raw = directory / "values.raw"
        raw.write_bytes(values.tobytes())
        file.create_dataset(field, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])

    return _relinked(directory, "noise_variance", link)


def _declared(**layout: Any) -> Callable[[Path], Path]:
    """Snapshots of 10^12 scenes that were never written."""

    def make(directory: Path) -> Path:
        def link(file: h5py.File, field: str, values: Any, _: Path) -> None:
            file.create_dataset(field, (10**12, *values.shape[1:]), values.dtype, **layout)

        return _relinked(directory, "snapshots", link)

    return make


NOT_HELD = "the file does not hold so many values"
bad("10^12 scenes declared", "snapshots", NOT_HELD)(_declared())
bad("10^12 scenes declared in chunks", "snapshots", NOT_HELD)(_declared(chunks=(64, 3, 2)))
bad("10^12 scenes declared, compressed", "snapshots", NOT_HELD)(_declared(chunks=(64, 3, 2), compression=4))


@bad("scenes that were not written", "snapshots", NOT_HELD)
def _unwritten(directory: Path) -> Path:
    def link(file: h5py.File, field: str, values: Any, _: Path) -> None:
        found = file.create_dataset(field, values.shape, values.dtype, chunks=(1, 3, 2), compression=4)
        found[:2] = values[:2]

    return _relinked(directory, "snapshots", link)


@bad("blocks that unpack to gigabytes", "snapshots", "use smaller chunks")
def _large_block(directory: Path) -> Path:
    def link(file: h5py.File, field: str, _: Any, __: Path) -> None:
        file.create_dataset(field, (4, 3, 2), "c8", chunks=(1, 3, 2), compression=9)
        # The chunk is declared, not written: one of 2 GiB would take a minute.
        del file[field]
        shape = (2**17 + 1, 2**10, 1)
        found = file.create_dataset(field, shape, "c8", chunks=shape, compression=1)
        found.id.write_direct_chunk((0, 0, 0), bytes(2**20))

    return _relinked(directory, "snapshots", link)


@bad("name that is no text", "snapshots", "missing; a recording needs snapshots")
def _name(directory: Path) -> Path:
    path = write_h5(directory / "a.h5", sound())
    path.write_bytes(path.read_bytes().replace(b"snapshots", b"snapsh\xfft\xff"))
    return path


@bad("field without values", "codes", "without any values")
def _null(directory: Path) -> Path:
    return write_h5(directory / "a.h5", {**sound(), "codes": h5py.Empty("f4")})


@bad("pickled objects in .npz", "snapshots", "never unpickled")
def _pickled(directory: Path) -> Path:
    return write_npz(directory / "a.npz", {**sound(), "snapshots": np.array([1, None], dtype=object)})


@bad("pickled format in .npz", "format", "never unpickled")
def _pickled_format(directory: Path) -> Path:
    return write_npz(directory / "a.npz", {**sound(), "format": np.array("rismusic/1", dtype=object)})


@bad("member of .npz that is no array", "snapshots", "NumPy's format")
def _member(directory: Path) -> Path:
    path = write_npz(directory / "a.npz", {k: v for k, v in sound().items() if k != "snapshots"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("snapshots.npy", b"1, 2, 3")
    return path


@bad("code in the header of an array of .npz", "snapshots", "cannot be read")
def _npz_code(directory: Path) -> Path:
    path = write_npz(directory / "a.npz", {k: v for k, v in sound().items() if k != "snapshots"})
    header = b"{'descr': '<c8', 'fortran_order': False, 'shape': __import__('os').getcwd()}\n"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("snapshots.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    return path


@bad("damaged compressed .npz", "snapshots", "cannot be read")
def _damaged(directory: Path) -> Path:
    path = write_npz(directory / "a.npz", sound(), compressed=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"snapshots.npy") + 160
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    return path


@bad("elements as one number", "elements", "must be real [N, 3]; got shape []")
def _one_number(directory: Path) -> Path:
    np.savez(directory / "a.npz", **{**sound(), "elements": np.float64(1.0)})
    return directory / "a.npz"


@bad("sparse matrix in .mat", "elements", "a full array")
def _sparse(directory: Path) -> Path:
    return write_mat5(
        directory / "a.mat", {**sound(), "elements": scipy.sparse.csc_matrix(sound()["elements"])}
    )


@bad("text without a size in the heap of an HDF5 file", PATH, "a block of its texts has no size")
def _heap(directory: Path) -> Path:
    """HDF5 walks such a heap forever. One flipped bit in the length of a text suffices."""
    path = write_h5(directory / "a.h5", direct())
    content = bytearray(path.read_bytes())
    place = content.index(b"GCOL\1\0\0\0") + 16
    (length,) = struct.unpack_from("<Q", content, place + 8)
    struct.pack_into("<Q", content, place + 8, length + 2048)
    path.write_bytes(content)
    return path


@bad("attribute of another type", "wavelength", "a text or a real number")
def _opaque_attribute(directory: Path) -> Path:
    path = write_h5(directory / "a.h5", direct())
    with h5py.File(path, "a") as file:
        file.attrs["wavelength"] = np.void(b"0.3 m")
    return path
