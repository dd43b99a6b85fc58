from __future__ import annotations

import errno
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import SUFFIX, WRITERS, simulated, write_mat5, write_npz

from rismusic.errors import InputError
from rismusic.io import RecordingWriter, open_recording, validate, write
from rismusic.io.hdf5 import Hdf5Sink
from rismusic.io.matlab import Mat5Sink
from rismusic.sources import Sources

VERSION = {"mat 7.3": "7.3"}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def refused(field: str | Path, fragment: str) -> Iterator[None]:
    with pytest.raises(InputError) as caught:
        yield
    assert caught.value.field == str(field)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("container", WRITERS)
def test_a_failing_write_leaves_everything_as_it_was(container: str, tmp_path: Path) -> None:
    path, recording = tmp_path / f"a{SUFFIX[container]}", simulated()
    path.write_bytes(b"precious")
    settings: Any = {"scenes": 4, "overwrite": True, "mat_version": VERSION.get(container, "5")}

    def interrupted() -> None:
        with RecordingWriter(path, **settings) as writer:
            writer.append(recording[:2])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == [path.name]

    with refused("scenes", "4 scenes in total; got 2"), RecordingWriter(path, **settings) as writer:
        writer.append(recording[:2])
    with refused("scenes", "4 scenes in total; got 6"), RecordingWriter(path, **settings) as writer:
        writer.append(recording)
        writer.append(recording[:2])
    bad = recording.snapshots.clone()
    bad[1, 2, 3] = torch.nan
    with refused("snapshots", "scene 3, snapshot 2, antenna 3"), RecordingWriter(path, **settings) as writer:
        writer.append(recording[:2])
        writer.append(replace(recording, snapshots=bad)[:2])
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"precious"

    write(path, recording, overwrite=True, mat_version=settings["mat_version"])
    assert names(tmp_path) == [path.name]
    with open_recording(path) as file:
        assert len(file) == 4


@pytest.mark.parametrize("container", WRITERS)
def test_a_disk_that_takes_no_more(container: str, tmp_path: Path) -> None:
    """A real limit of the system on the size of a file, in the middle of writing."""
    path, recording = tmp_path / f"a{SUFFIX[container]}", simulated(64)
    path.write_bytes(b"precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with refused(path, "cannot be written"):
            write(path, recording, overwrite=True, mat_version=VERSION.get(container, "5"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"precious"
    write(path, recording, overwrite=True, mat_version=VERSION.get(container, "5"))


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(
            "Can't write data (file write failed: errno = 28, error message = 'No space left on device')"
        ),
        RuntimeError("Unable to flush (errno = 28, error message = 'No space left on device')"),
    ],
)
def test_full_disk_is_said_as_such(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Hdf5Sink, "write", full)
    with refused(tmp_path / "a.h5", "no space left on the disk"):
        write(tmp_path / "a.h5", simulated())
    assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = simulated()
    with refused(tmp_path / "no" / "a.h5", "does not exist"):
        write(tmp_path / "no" / "a.h5", recording)
    with refused(tmp_path / "a.wav", "a name that ends in .h5, .npz or .mat"):
        write(tmp_path / "a.wav", recording)
    with refused(tmp_path / "a", "got no extension"):
        write(tmp_path / "a", recording)
    (tmp_path / "dir.h5").mkdir()
    with refused(tmp_path / "dir.h5", "is a folder"):
        write(tmp_path / "dir.h5", recording, overwrite=True)
    (tmp_path / "a.h5").write_bytes(b"precious")
    with refused(tmp_path / "a.h5", "the file exists already"):
        write(tmp_path / "a.h5", recording)
    with refused("scenes", "at least one"):
        RecordingWriter(tmp_path / "b.h5", scenes=0)
    assert names(tmp_path) == ["a.h5", "dir.h5"]

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("rismusic.io.hdf5.HeldErrors", denied)
    with refused(tmp_path / "b.h5", "Permission denied"):
        write(tmp_path / "b.h5", recording)


@pytest.mark.usefixtures("untyped")
def test_unknown_version_of_matlab(tmp_path: Path) -> None:
    with refused("mat_version", '"5" or "7.3"'):
        write(tmp_path / "a.mat", simulated(), mat_version="4")  # type: ignore[arg-type]


def test_blocks_must_agree(tmp_path: Path) -> None:
    own, shared = simulated(), simulated(one_link=True)
    other = simulated(one_link=True, seed=1)
    for first, second, field, fragment in (
        (shared, other, "channel", "differ from those of the first block"),
        (own, shared, "channel", "[S, 16, 12] in each block"),
        (
            own,
            replace(own, noise_variance=None),
            "noise_variance",
            "the first block has noise_variance, this has not",
        ),
        (
            replace(own, noise_variance=None),
            own,
            "noise_variance",
            "this block has noise_variance, the first has not",
        ),
        (own, replace(own, wavelength=0.2), "wavelength", "0.3 as in the first block"),
        (own, simulated(sources=3), "truth/azimuth", "float64 [S, 2]"),
        (own, simulated(codebook={"snapshots": 8}), "snapshots", "complex64 [S, 16, 16]"),
    ):
        with refused(field, fragment), RecordingWriter(tmp_path / "a.h5", scenes=8) as writer:
            writer.append(first)
            writer.append(second)
    assert names(tmp_path) == []


def test_values_that_complex64_cannot_hold(tmp_path: Path) -> None:
    recording = replace(simulated(dtype=torch.float64), noise_variance=None)
    for factor, fragment in (
        (1e100, "e+100 in scene 0"),
        (1e30, "e+30 in scene 0"),
        (1e-60, "scale it to 1e-15 to 1e+15"),
    ):
        loud = replace(recording, snapshots=recording.snapshots * factor)
        with refused("snapshots", fragment):
            write(tmp_path / "a.h5", loud)
    loud = replace(
        recording, noise_covariance=1e39 * torch.eye(recording.snapshots.shape[-1]).to(torch.complex128)
    )
    with refused("noise_covariance", "complex64, which cannot hold the value"):
        write(tmp_path / "a.h5", loud)


def test_variables_beyond_2_gib_are_refused_before_they_are_gathered(tmp_path: Path) -> None:
    sink = Mat5Sink(tmp_path / "a.mat")
    with refused("codes", 'mat_version="7.3"'):
        sink.create("codes", (2**20, 16, 144), np.dtype(np.complex64))
    sink.abort()
    with refused("snapshots", "2 GiB"), RecordingWriter(tmp_path / "b.mat", scenes=2**24) as writer:
        writer.append(simulated())
    assert names(tmp_path) == ["a.mat"]


@pytest.mark.usefixtures("untyped")
def test_recordings_in_memory_are_held_to_the_same_rules() -> None:
    recording = simulated()
    validate(recording)
    assert recording.truth is not None
    far = replace(recording.truth, range=-recording.truth.range)
    for change, field, fragment in (
        ({"snapshots": recording.snapshots[0]}, "snapshots", "[S, L, M]"),
        ({"snapshots": recording.snapshots.real}, "snapshots", "float32"),
        (
            {"snapshots": recording.snapshots * 0},
            "snapshots",
            "zero power (every value is 0) in scene 7; leave it out",
        ),
        ({"codes": None}, "codes", "to go with channel"),
        ({"codes": recording.codes[:, :3]}, "codes", "[16, 12] or [4, 16, 12]"),
        ({"elements": recording.elements * 1000}, "wavelength", "another unit"),
        ({"wavelength": -1.0}, "wavelength", "got -1"),
        ({"noise_variance": torch.ones(3)}, "noise_variance", "[4]"),
        ({"truth": far}, "truth/range", "ranges must be positive"),
        (
            {"truth": Sources(azimuth=far.azimuth[0], elevation=far.azimuth, range=far.range)},
            "truth/azimuth",
            "[S, K_max]",
        ),
    ):
        with refused(field, fragment):
            validate(replace(recording, **change), first_scene=7)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("container", ["h5", "npz", "npz compressed", "mat 5", "mat 5 compressed", "mat 7.3"])
def test_memory_is_bounded_by_the_block(container: str, tmp_path: Path) -> None:
    """104 MiB (or 52) in blocks of 2: numpy takes less than 12 at any time, the process less than 30."""
    block_scenes, blocks = 256, 52 if container == "h5" else 26
    block = simulated(block_scenes, panel={"rows": 8, "columns": 8}, channel={"kind": "direct"})
    path = tmp_path / f"a{SUFFIX[container.split(' comp')[0]]}"
    scenes = block_scenes * blocks
    write_whole = {"npz compressed": write_npz, "mat 5": write_mat5, "mat 5 compressed": write_mat5}.get(
        container
    )
    if write_whole:
        # One scene over and over: small enough for deflate to see that, and be quick.
        block = replace(block, snapshots=block.snapshots[:1].repeat(block_scenes, 1, 1))
        whole = block.snapshots.repeat(blocks, 1, 1).numpy()
        values = {
            "format": "rismusic/1",
            "wavelength": 0.3,
            "elements": block.elements.numpy(),
            "snapshots": whole,
        }
        write_whole(path, values, compressed="compressed" in container)
        del whole, values  # what is in memory now would hide what reading takes
    resident, most_resident = resident_bytes(), 0
    tracemalloc.start()
    try:
        if not write_whole:
            with RecordingWriter(path, scenes=scenes, mat_version="7.3") as writer:
                for _ in range(blocks):
                    writer.append(block)
                    most_resident = max(most_resident, resident_bytes())
            assert path.stat().st_size > blocks << 21
        with open_recording(path) as file:
            for part in file.batches(block_scenes):
                assert torch.equal(part.snapshots, block.snapshots)
                most_resident = max(most_resident, resident_bytes())
        most_traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    path.unlink()
    assert most_traced < 12 << 20
    assert most_resident - resident < 30 << 20
