"""Reading recordings of any format: the structure is checked on opening, values when scenes are read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from rismusic.array import SPEED_OF_LIGHT, WAVES, Panel
from rismusic.errors import InputError, in_file
from rismusic.files import RECORDING_ENDINGS, check_regular
from rismusic.io.hdf5 import Hdf5Store
from rismusic.io.matlab import HEADER_BYTES, Mat5Store, Mat73Store
from rismusic.io.npz import NpzStore
from rismusic.io.recording import Recording, of_single_subcarrier
from rismusic.io.schema import (
    ATTRIBUTES,
    FIELDS,
    FORMAT,
    Description,
    check_frequencies,
    check_panel,
    check_structure,
    check_symbols,
    check_values,
)
from rismusic.io.store import Array, ComplexPair, Store, StoredArray, understood
from rismusic.sources import Sources
from rismusic.spec import MAX_PATTERN_EXPONENT, SymbolModel
from rismusic.text import any_of

SAMPLES = Path(__file__).parent.parent / "samples"
"""Folder of the sample recordings in the package."""

_Word = TypeVar("_Word", bound=str)

_LARGEST_SCENE_BYTES = 2**29
_BLOCK_BYTES = 2**28  # that blocks of scenes have at most, unless a single scene is larger
# Names of a file that a message lists.
_SHOWN = 6
_HDF5 = b"\x89HDF\r\n\x1a\n"
_STORES: dict[str, dict[str, Callable[[Path], Store]]] = {
    ".h5": {"an HDF5 file": Hdf5Store},
    ".npz": {"a zip archive": NpzStore},
    ".mat": {"a MATLAB 5 file": Mat5Store, "a MATLAB 7.3 file": Mat73Store},
}


def open_recording(path: str | Path) -> RecordingFile:
    """Open a ``.h5``, ``.npz`` or ``.mat`` recording without reading its scenes.

    ``sample:NAME`` opens a sample recording of the package, unless a file of that name exists.

    Raises:
        InputError: the file is missing, damaged or not a recording, or its structure is wrong.
    """
    return RecordingFile(path)


def read(path: str | Path) -> Recording:
    """Read a whole recording into memory and check it.

    Raises:
        InputError: the file cannot be read or holds an invalid recording; the message names file and field.
    """
    with open_recording(path) as file:
        return file[:]


def load_sample(name: str = "") -> Recording:
    """Load a sample recording that comes with the package.

    ``samples/README.md`` in the package describes them. On the command line and in :func:`read`, the file
    name ``sample:NAME`` stands for a sample.

    Args:
        name: name of the sample, such as ``ideal_10dB``.

    Returns:
        The whole recording, with truth where it is known.

    Raises:
        InputError: no sample has this name; the message lists the names.

    Example:
        >>> load_sample("ideal_10dB")
        Recording(24 scenes, L=16, M=16, N=144, wavelength 0.3 m; channel per scene, codes per scene, ...)
    """
    return read(sample_path(name))


class RecordingFile:
    """Recording in a file, read in blocks of scenes; a context manager.

    Opening the file reads only the sizes. Memory use depends on the block that is read, not on the file.

    A complex field may be stored as two real arrays, such as ``snapshots_real`` and ``snapshots_imag``. Codes
    and pilots may be real numbers or signed integers. A matrix of snapshots that fits [L, M], or with several
    subcarriers an array that fits [F, L, M], is one scene.

    Attributes:
        format: ``h5``, ``npz``, ``mat 5`` or ``mat 7.3``.
        scenes: S.
        snapshots: L.
        antennas: M.
        size: elements of the panel, N.
        sources_max: K_max; none without truth.
        wave: form of the wave, ``spherical`` where the file does not say.
        symbols: model of the symbols, ``independent`` where the file has no pilots and does not say.
        pattern_exponent: q of the element pattern cos^q, 0 where the file does not say.
        elements: [N, 3] float64, metres.
        fields: names of the fields that are present, as in ``.h5``.
        ignored: other names in the file.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, (str, Path)):
            raise InputError("path", f"must be the name of a file; got {type(path).__name__}")
        self.path = Path(path)
        if str(path).startswith("sample:") and not self.path.exists():
            self.path = sample_path(str(path).removeprefix("sample:"))
        self._open = True
        self._store, self._shared = open_store(self.path), dict[str, Tensor]()
        try:
            with in_file(self.path):
                self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        self.format = self._store.format
        with understood(str(self.path), "must be a readable recording"):
            names = self._store.names()
        self.fields = tuple(name for name in FIELDS if name in names or names.issuperset(_parts(name)))
        parts = {part for name in self.fields if name not in names for part in _parts(name)}
        self.ignored = tuple(sorted(names - set(FIELDS) - set(ATTRIBUTES) - parts))
        _check_format(self._store, names)
        self.wavelength = _number(self._store, names, "wavelength", "one positive length in metres")
        self.wave = _choice(self._store, names, "wave", WAVES, "spherical")
        default: SymbolModel = "known" if "pilots" in self.fields else "independent"
        self.symbols = _choice(self._store, names, "symbols", get_args(SymbolModel), default)
        self.pattern_exponent = 0.0
        if "pattern_exponent" in names:
            expected = f"one number, 0 to {MAX_PATTERN_EXPONENT:g}"
            self.pattern_exponent = _number(self._store, names, "pattern_exponent", expected)
        self._arrays, descriptions = {}, {}
        for name in self.fields:
            with understood(name, "must be a readable array"):
                if name in names:
                    array = self._store.array(name)
                else:
                    array = ComplexPair(*map(self._store.array, _parts(name)))
                self._arrays[name] = array
                descriptions[name] = Description(array.shape, _type_name(name, array))
        structure = check_structure(descriptions, matlab=self._store.matlab)
        self._structure = structure
        for name, (shape, scene_axis) in structure.placements.items():
            size = 16 * math.prod(shape if scene_axis is None else shape[1:])
            if size > _LARGEST_SCENE_BYTES:
                raise InputError(
                    name, f"has shape {list(shape)}; more than {_LARGEST_SCENE_BYTES:,} bytes a scene"
                )
        self.scenes, self.snapshots, self.antennas = structure.scenes, structure.snapshots, structure.antennas
        self.size, self.sources_max = structure.size, structure.sources_max
        self.elements = self._read("elements", 0, 0)
        check_panel(self.panel)
        if "frequencies" in self.fields:
            frequencies = self._read("frequencies", 0, 0)
            check_frequencies(frequencies, self.wavelength)
            if len(frequencies) == 1:  # narrowband; see of_single_subcarrier
                self.wavelength = SPEED_OF_LIGHT / float(frequencies)
        check_symbols(self.symbols, has_pilots="pilots" in self.fields)

    @property
    def panel(self) -> Panel:
        """Nominal panel."""
        return Panel(self.elements, self.wavelength, self.wave, self.pattern_exponent)

    @property
    def direct(self) -> bool:
        """Whether the panel is sampled directly: no channel, no codes, M = N."""
        return "channel" not in self.fields

    @property
    def channel_per_scene(self) -> bool:
        """Whether each scene has its own channel."""
        return self._structure.per_scene("channel")

    @property
    def codes_per_scene(self) -> bool:
        """Whether each scene has its own RIS configurations."""
        return self._structure.per_scene("codes")

    @property
    def scenes_at_a_time(self) -> int:
        """Number of scenes to read at a time so that memory stays small, at least one."""
        placements = self._structure.placements.values()
        each = sum(16 * math.prod(shape[1:]) for shape, scene_axis in placements if scene_axis is not None)
        # MATLAB drops the axis of the scenes where there is one, so that no field may have it.
        return max(1, _BLOCK_BYTES // max(1, each))

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, scenes: slice) -> Recording:
        """Read the scenes of a slice with step 1, and check their values."""
        start, stop, step = scenes.indices(self.scenes)
        if step != 1 or stop <= start:
            raise InputError(
                "scenes",
                f"needs a non-empty slice without a step within 0 .. {self.scenes}; got {scenes} "
                f"(in {self.path})",
            )
        if not self._open:
            raise InputError(str(self.path), "the recording is closed; open it again to read scenes")
        with in_file(self.path):
            return self._scenes(start, stop)

    def _scenes(self, start: int, stop: int) -> Recording:
        values = {name: self._read(name, start, stop) for name in self.fields}
        truth = {
            name.removeprefix("truth/"): values.pop(name) for name in self.fields if name.startswith("truth/")
        }
        recording = Recording(
            wavelength=self.wavelength,
            wave=self.wave,
            symbols=self.symbols,
            pattern_exponent=self.pattern_exponent,
            **values,  # type: ignore[arg-type]
            truth=Sources(**truth) if truth else None,
        )
        check_values(values, recording.truth, first_scene=start)
        return of_single_subcarrier(recording)

    def batches(self, scenes: int) -> Iterator[Recording]:
        """Yield all scenes in blocks of ``scenes``, fewer where they are large; the last may be smaller."""
        if scenes < 1:
            raise InputError("scenes", f"a batch needs at least one scene; got {scenes}")
        step = min(scenes, self.scenes_at_a_time)
        for start in range(0, self.scenes, step):
            yield self[start : start + step]

    def close(self) -> None:
        """Close the file."""
        if self._open:
            self._open = False
            self._store.close()

    def __enter__(self) -> RecordingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        """Read scenes ``start`` to ``stop - 1`` of a field, or a field that the scenes share."""
        if name in self._shared:
            return self._shared[name]
        array, (shape, scene_axis) = self._arrays[name], self._structure.placements[name]
        index = [slice(None) for _ in array.shape]
        if scene_axis is not None:
            index[scene_axis] = slice(start, stop)
            shape = (stop - start, *shape[1:])
        with understood(name, "must be a readable array"):
            stored = array[tuple(index)]
            value = torch.from_numpy(_native(name, stored).reshape(shape))
        if scene_axis is None:
            self._shared[name] = value
        return value


def sample_names() -> list[str]:
    """Names of the sample recordings."""
    return sorted(path.stem for path in SAMPLES.iterdir() if path.suffix in (".h5", ".mat"))


def sample_path(name: str) -> Path:
    """File of a sample recording."""
    if name not in sample_names():
        close = difflib.get_close_matches(name, sample_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise InputError("sample", f"unknown name {name!r}{hint} Samples: {', '.join(sample_names())}")
    return next(path for path in SAMPLES.glob(f"{name}.*") if path.suffix in (".h5", ".mat"))


def suffix(path: Path) -> str:
    """Extension of a recording in lower case."""
    found = path.suffix.lower()
    if found not in RECORDING_ENDINGS:
        raise InputError(
            str(path),
            f"a recording needs a name that ends in {any_of(RECORDING_ENDINGS)}; got "
            f"{found or 'no extension'}",
        )
    return found


def open_store(path: Path) -> Store:
    """Open a file in the format that its extension and its first bytes say."""
    stores = _STORES[suffix(path)]
    content = _content(path)
    expected = " or ".join(stores)
    if content not in stores:
        raise InputError(str(path), f"should be {expected} by its name, but is {content}")
    try:
        return stores[content](path)
    except OSError as error:
        raise InputError(str(path), f"cannot be read as {expected} ({error.strerror})") from error


def _content(path: Path) -> str:
    """Describe the format of a file from its first bytes."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(2 * HEADER_BYTES)
            signatures = [head[offset : offset + 8] for offset in (0, HEADER_BYTES)]
            offset = 2 * HEADER_BYTES
            # HDF5 content may follow a user block of 512 bytes times a power of two.
            while (
                head and _HDF5 not in signatures and file.seek(offset) == offset and (found := file.read(8))
            ):
                signatures.append(found)
                offset *= 2
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (OSError, ValueError) as error:
        found_instead = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(str(path), f"cannot be read: {found_instead}") from error
    version = {b"IM": head[124:126][::-1], b"MI": head[124:126]}.get(head[126:128], b"")
    if not head:
        return "an empty file"
    if version == b"\2\0" and signatures[1] == _HDF5:
        return "a MATLAB 7.3 file"
    if _HDF5 in signatures:
        return "an HDF5 file"
    if version == b"\1\0":
        return "a MATLAB 5 file"
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return "a zip archive"
    if path.suffix.lower() == ".mat" and 0 in head[:4]:
        return "something else (a MATLAB 4 file?)"
    return f"a file that starts with {head[:16]!r}"


def _parts(name: str) -> tuple[str, str]:
    """Names of the real and the imaginary part of a field that is stored as two arrays."""
    return f"{name}_real", f"{name}_imag"


def _type_name(name: str, array: StoredArray) -> str:
    """Type of an array. Real RIS configurations and pilots, such as +1 and -1, count as complex."""
    if name in ("codes", "pilots") and array.dtype.kind in "fi":
        return "complex64"
    return "text" if array.dtype.kind in "SU" else array.dtype.name


def _native(name: str, stored: Array) -> Array:
    """Convert to float64, complex64 or complex128, in C order and native byte order."""
    if name == "codes" and stored.dtype.kind == "i" and np.isin(stored, (0, 1)).all():
        raise InputError(
            name,
            f"must hold reflection coefficients; got {stored.dtype} values 0 and 1 only. If they are phase "
            "bits, store 1 - 2 * codes",
        )
    target: type[np.generic] = np.float64
    if FIELDS[name].kind == "complex":
        target = np.complex64 if np.can_cast(stored.dtype, np.complex64) else np.complex128
    # Overflow gives an infinity, which the check of the values refuses.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(stored, target)


def _check_format(store: Store, names: set[str]) -> None:
    expected = f'must be the text "{FORMAT}"'
    if "format" not in names:
        hint = ""
        if structs := store.structs():
            hint = (
                f". Are the fields inside the struct {' or '.join(structs)}? Save them as variables: "
                f"save('file.mat', '-struct', '{structs[0]}')"
            )
        elif absent := [name for name in ("wavelength", "elements", "snapshots") if name not in names]:
            found = sorted(names)[:_SHOWN]
            hint = f", and no {', '.join(absent)}; it has {', '.join(found)}" if found else ""
        raise InputError(
            "format", f"{expected}, which marks the file as a recording; no such text in the file{hint}"
        )
    text = _scalar("format", store, expected)
    if not isinstance(text, str):
        raise InputError("format", f"{expected} (in MATLAB in single quotes); got {text!r}")
    if text != FORMAT:
        raise InputError("format", f'{expected}; got "{text[:80]}"')


def _choice(store: Store, names: set[str], name: str, options: tuple[_Word, ...], default: _Word) -> _Word:
    """An optional text attribute that is one of several words."""
    if name not in names:
        return default
    expected = f"must be one of the texts {', '.join(options)}"
    text = _scalar(name, store, expected)
    for option in options:
        if text == option:
            return option
    raise InputError(name, f"{expected}; got {str(text)[:80]!r}")


def _number(store: Store, names: set[str], name: str, expected: str) -> float:
    """An attribute that is a number; :class:`Panel` checks its limits."""
    if name not in names:
        raise InputError(name, f"must be {expected}; no such value in the file")
    value = _scalar(name, store, f"must be {expected}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        # Without the names of Python's types.
        found = repr(value) if isinstance(value, (bool, complex, str)) else "values of another type"
        raise InputError(name, f"must be {expected}; got {found}")
    return float(value)


def _scalar(name: str, store: Store, expected: str) -> object:
    """Read an attribute of one value; bytes are text."""
    with understood(name, expected):
        array: StoredArray = store.array(name)
        if int(np.prod(array.shape)) != 1:
            raise InputError(name, f"{expected}; got an array of shape {list(array.shape)}")
        if array.dtype.hasobject and not isinstance(array, np.ndarray):
            raise InputError(name, f"{expected}; got Python objects, which are never unpickled")
        value: object = np.asarray(array[tuple(slice(None) for _ in array.shape)]).item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
