"""Writing recordings in blocks of scenes, under a temporary name until the file is complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rismusic.errors import InputError
from rismusic.files import OutputFile
from rismusic.interruption import interrupts_held
from rismusic.io.hdf5 import Hdf5Sink, Hdf5Store, PartialHdf5Sink
from rismusic.io.matlab import Mat5Sink, Mat73Sink
from rismusic.io.npz import NpzSink
from rismusic.io.reader import suffix
from rismusic.io.recording import Recording, check_recording, check_shapes, tensors, validate
from rismusic.io.schema import FIELDS, FORMAT, Field, check_values, fields_of
from rismusic.io.store import Array, Sink, StoredArray, reason
from rismusic.partial import PartialFile

MatVersion = Literal["5", "7.3"]
_BLOCK_SCENES = 256


class RecordingWriter:
    """Write a recording block by block; a context manager.

    The file appears under its name when the context ends. If it ends with an exception, what was written is
    removed, and an existing file of that name is left as it was. Memory use depends on the block (a MATLAB 5
    file is kept in memory). Snapshots, channel and codes are stored as complex64, real fields as float64.

    Args:
        path: name ending in ``.h5``, ``.npz`` or ``.mat``.
        scenes: total number of scenes S.
        overwrite: replace an existing file.
        mat_version: version of ``.mat`` files: ``"5"`` (at most 2 GiB for each variable) or ``"7.3"``.
        partial: collects the blocks of a ``.h5`` file, so that a later run can continue it.

    Raises:
        InputError: the extension or version is unknown, the file cannot be written, or it exists; or the part
            of an earlier run has changed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        scenes: int,
        overwrite: bool = False,
        mat_version: MatVersion = "5",
        partial: PartialFile | None = None,
    ) -> None:
        self.path, self.scenes = Path(path), scenes
        make_sink = _sink(self.path, mat_version)
        if scenes < 1:
            raise InputError("scenes", f"needs at least one scene to write; got {scenes}")
        self._written = 0
        self._first: dict[str, Tensor] = {}
        self._attributes: dict[str, str | float] = {}
        self._partial, self._digest = partial, hashlib.sha256()
        with self._on_disk():
            if partial is None:
                self._output = OutputFile(self.path, overwrite=overwrite)
                self._sink = make_sink(self._output.temporary)
            else:
                if partial.scenes:
                    self._read_part(partial)
                self._sink = PartialHdf5Sink(partial.part, resumed=partial.scenes > 0)

    def append(self, block: Recording) -> None:
        """Write the next scenes.

        Raises:
            InputError: the block is invalid, has too many scenes, or differs from the first block in more
                than its scenes; or the disk is full.
        """
        validate(block, first_scene=self._written)
        if self._written + len(block) > self.scenes:
            raise InputError(
                "scenes", f"{self.path} needs {self.scenes} scenes in total; got {self._written + len(block)}"
            )
        block = _as_stored(block, self._written)
        values = tensors(block)
        attributes = _attributes(block)
        if self._first:
            self._compare(values, attributes)
        else:
            self._create(values, attributes)
        # What is on the disk is what the progress says, whenever Ctrl-C comes.
        with nullcontext() if self._partial is None else interrupts_held():
            with self._on_disk():
                for name in _per_scene(values):
                    self._sink.write(name, self._written, values[name].numpy())
            if self._partial is not None:
                assert isinstance(self._sink, PartialHdf5Sink)
                with self._on_disk():
                    self._sink.flush()
                self._hash({name: value.numpy() for name, value in values.items()})
                scenes = self._written + len(block)
                self._partial.keep(scenes=scenes, digest=self._digest.hexdigest())
            self._written += len(block)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._abort()
            return
        if self._written != self.scenes:
            self._abort()
            raise InputError(
                "scenes", f"{self.path} needs {self.scenes} scenes in total; got {self._written}"
            )
        with self._on_disk():
            self._sink.finish()
            if self._partial is not None:
                self._partial.publish()
            else:
                self._output.commit()
                self._output.discard()

    def _read_part(self, partial: PartialFile) -> None:
        """Check what an earlier run has written, and take its first scene and its shared fields from it."""
        try:
            store = Hdf5Store(partial.part)
        except InputError:
            raise partial.changed() from None
        try:
            arrays = {name: store.array(name) for name in store.names() & FIELDS.keys()}
            per_scene = _per_scene(arrays)
            for start in range(0, partial.scenes, _BLOCK_SCENES):
                scenes = slice(start, min(start + _BLOCK_SCENES, partial.scenes))
                block = {
                    name: found[(scenes if name in per_scene else slice(None),)]
                    for name, found in arrays.items()
                }
                self._hash(block)
                if not start:
                    self._first = {
                        name: torch.from_numpy(value[:1] if name in per_scene else value)
                        for name, value in block.items()
                    }
                self._written = scenes.stop
        except Exception:  # h5py raises nearly everything on damaged files
            raise partial.changed() from None
        finally:
            store.close()
        if self._digest.hexdigest() != partial.progress.digest:
            raise partial.changed()

    def _hash(self, block: Mapping[str, Array]) -> None:
        """Continue the digest by the scenes of a block, one by one; before the first one, shared fields."""
        names = sorted(_per_scene(block))
        if not self._written:
            for name in sorted(block.keys() - set(names)):
                self._digest.update(np.ascontiguousarray(block[name]).data)
        arrays = [np.ascontiguousarray(block[name]) for name in names]
        for scene in range(len(arrays[0])):
            for array in arrays:
                self._digest.update(array[scene].data)

    def _create(self, values: dict[str, Tensor], attributes: dict[str, str | float]) -> None:
        self._attributes = attributes
        if not isinstance(self._sink, Mat5Sink):  # which has a limit of its own, and is kept in memory
            self._check_space(values)
        with self._on_disk():
            for name, attribute in attributes.items():
                self._sink.attribute(name, attribute)
            for name, value in values.items():
                per_scene = name in _per_scene(values)
                shape = (self.scenes, *value.shape[1:]) if per_scene else tuple(value.shape)
                array = value.numpy()
                self._sink.create(name, shape, array.dtype)
                if not per_scene:
                    self._sink.write(name, 0, array)
                # Later blocks are compared with one scene and the shared fields.
                self._first[name] = value[:1].clone() if per_scene else value

    def _check_space(self, values: dict[str, Tensor]) -> None:
        """Refuse a file that is larger than the free space of the disk."""
        scenes = dict.fromkeys(_per_scene(values), self.scenes)
        needed = sum(
            value.nbytes // len(value) * scenes.get(name, len(value)) for name, value in values.items()
        )
        with self._on_disk():
            free = shutil.disk_usage(self.path.parent).free
            if needed > free:
                raise InputError(
                    str(self.path),
                    f"needs {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB of the disk are free",
                )

    def _compare(self, values: dict[str, Tensor], attributes: dict[str, str | float]) -> None:
        """Refuse a block that differs from the first one in more than its scenes."""
        expected = self._first
        for name in FIELDS:
            if (name in values) != (name in expected):
                missing, there = ("this", "the first") if name in expected else ("the first", "this")
                raise InputError(
                    name, f"all blocks must have the same fields; {there} block has {name}, {missing} has not"
                )
            if name not in values:
                continue
            value, other, field = values[name], expected[name], fields_of(values)[name]
            per_scene = field.per_scene(value.ndim)
            if (
                value.ndim != other.ndim
                or value.dtype != other.dtype
                or value.shape[per_scene:] != other.shape[per_scene:]
            ):
                raise InputError(
                    name,
                    f"must be {_kind(field, other)} in each block, as in the first; "
                    f"got {_kind(field, value)}",
                )
            if not per_scene and not torch.equal(value, other):
                raise InputError(
                    name, "is shared by all scenes; its values differ from those of the first block"
                )
        self._attributes = self._attributes or attributes  # none are known of the part of an earlier run
        for name, attribute in attributes.items():
            if attribute != self._attributes[name]:
                raise InputError(
                    name, f"must be {self._attributes[name]} as in the first block; got {attribute}"
                )

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Context of file operations: a failure removes the file; disk errors become InputError."""
        try:
            yield
        except BaseException as error:
            self._abort()
            if isinstance(error, (OSError, RuntimeError)):
                raise InputError(str(self.path), f"cannot be written: {_failure(error)}") from error
            raise

    def _abort(self) -> None:
        # Another error is being raised already; a failure to close adds nothing.
        with contextlib.suppress(OSError, RuntimeError):
            if hasattr(self, "_sink"):
                self._sink.abort()
        if hasattr(self, "_output"):
            self._output.discard()


def write(
    path: str | Path, recording: Recording, *, overwrite: bool = False, mat_version: MatVersion = "5"
) -> None:
    """Write a recording; see :class:`RecordingWriter`.

    Raises:
        InputError: the recording is invalid, the extension is unknown, or the file cannot be written.
    """
    if isinstance(path, Recording):
        raise InputError("path", "must be the name of a file; it comes first: write(path, recording)")
    check_recording(recording)
    check_shapes(recording)
    with RecordingWriter(path, scenes=len(recording), overwrite=overwrite, mat_version=mat_version) as writer:
        for start in range(0, len(recording), _BLOCK_SCENES):
            writer.append(recording[start : start + _BLOCK_SCENES])


def _per_scene(arrays: Mapping[str, Tensor] | Mapping[str, StoredArray]) -> list[str]:
    """Names of the arrays that have a scene axis."""
    kinds = fields_of(arrays)
    return [name for name, array in arrays.items() if kinds[name].per_scene(len(array.shape))]


def _attributes(recording: Recording) -> dict[str, str | float]:
    """The attributes of the file of a recording, beside its arrays."""
    return {
        "format": FORMAT,
        "wavelength": float(recording.wavelength),
        "wave": recording.wave,
        "pattern_exponent": float(recording.pattern_exponent),
        "symbols": recording.symbols,
    }


def _sink(path: Path, mat_version: str) -> Callable[[Path], Sink]:
    sinks: dict[str, Callable[[Path], Sink]] = {"5": Mat5Sink, "7.3": Mat73Sink}
    if mat_version not in sinks:
        raise InputError("mat_version", f'must be "5" or "7.3"; got {mat_version!r}')
    sinks |= {".h5": Hdf5Sink, ".npz": NpzSink, ".mat": sinks[mat_version]}
    return sinks[suffix(path)]


def _as_stored(recording: Recording, first_scene: int) -> Recording:
    """Copy of a recording in main memory and in the precision of the file."""
    recording = recording.to("cpu")
    changed: dict[str, Tensor] = {}
    narrowed = False
    for name, value in tensors(recording).items():
        value = value.detach().resolve_conj()
        if FIELDS[name].kind == "real":
            value = value.to(torch.float64)
        elif name != "truth/symbols" and value.dtype != torch.complex64:
            narrowed = True
            value = value.to(torch.complex64)
            if not torch.isfinite(value).all():
                raise InputError(
                    name,
                    "files store complex64, which cannot hold the value "
                    f"{float(tensors(recording)[name].abs().max()):g}. Scale the data",
                )
        changed[name] = value
    truth = {
        name.removeprefix("truth/"): changed.pop(name) for name in list(changed) if name.startswith("truth/")
    }
    stored = replace(
        recording,
        **changed,  # type: ignore[arg-type]
        truth=None if recording.truth is None else replace(recording.truth, **truth),
    )
    if narrowed:
        check_values(tensors(stored), stored.truth, first_scene=first_scene)
    return stored


def _kind(field: Field, value: Tensor) -> str:
    per_scene = field.per_scene(value.ndim)
    shape = ", ".join([*(["S"] if per_scene else []), *map(str, value.shape[per_scene:])])
    return f"{str(value.dtype).removeprefix('torch.')} [{shape}]"


def _failure(error: OSError | RuntimeError) -> str:
    """Reason of a failed write; HDF5 gives the error number of the system in its text only."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or f"errno = {errno.ENOSPC}," in str(error):
        return "no space left on the disk"
    return (isinstance(error, OSError) and error.strerror) or reason(error)
