"""Interface of the file formats: named arrays, read and written in blocks of scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rismusic.errors import InputError

Array = npt.NDArray[Any]


@runtime_checkable
class StoredArray(Protocol):
    """An array in a file, read in slices on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, in the order of the schema."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type; complex for complex numbers, however the file stores them."""

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a part as a new array."""


class Store(ABC):
    """A file open for reading, as named arrays. Attributes are arrays of one value."""

    format: ClassVar[str]
    matlab: ClassVar[bool] = False
    """Whether trailing axes of length 1 may be missing, and vectors may be rows or columns."""

    @abstractmethod
    def names(self) -> set[str]:
        """Names of everything in the file, in the spelling of :mod:`~rismusic.io.schema`."""

    def structs(self) -> list[str]:
        """Names of MATLAB structs in the file."""
        return []

    @abstractmethod
    def array(self, name: str) -> StoredArray:
        """Open an array; values are read when it is indexed."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class Sink(ABC):
    """A file under construction: arrays are created at full size, then written in blocks of scenes."""

    @abstractmethod
    def attribute(self, name: str, value: str | float) -> None:
        """Write a text or a number."""

    @abstractmethod
    def create(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Create an array of full size."""

    @abstractmethod
    def write(self, name: str, start: int, block: Array) -> None:
        """Write ``block`` at index ``start`` of the first axis."""

    @abstractmethod
    def finish(self) -> None:
        """Complete the file and close it."""

    @abstractmethod
    def abort(self) -> None:
        """Close an incomplete file, which the caller then removes."""


class ComplexPair:
    """A complex array that is stored as two real arrays."""

    def __init__(self, real: StoredArray, imag: StoredArray) -> None:
        if real.shape != imag.shape:
            raise ValueError(f"real part of shape {list(real.shape)}, imaginary part {list(imag.shape)}")
        if real.dtype.kind != "f" or imag.dtype.kind != "f":
            raise ValueError(f"real and imaginary part of types {real.dtype} and {imag.dtype}")
        self._parts, self.shape = (real, imag), real.shape
        self.dtype: np.dtype[Any] = np.result_type(real.dtype, imag.dtype, np.complex64)

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        """Read a part as a new array."""
        real, imag = self._parts
        return to_complex(real[index], imag[index], self.dtype)


def to_complex(real: Array, imag: Array, dtype: np.dtype[Any]) -> Array:
    """Join real and imaginary parts."""
    values = np.empty(real.shape, dtype)
    values.real, values.imag = real, imag
    return values


@contextmanager
def understood(field: str, expected: str) -> Iterator[None]:
    """Convert any exception of a parser on a bad file to an :class:`InputError` for ``field``.

    h5py, zipfile and NumPy raise nearly every built-in exception on broken files, so that the block must
    contain their calls only.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # What HDF5, the system and Python's parser say is about their calls, not about the file.
        said = reason(error)
        theirs = isinstance(error, (OSError, RuntimeError, KeyError)) or said.startswith("Unable to")
        if isinstance(error, UnicodeError):
            said = "its text is damaged"
        elif theirs or "object at 0x" in said:
            said = "it is damaged or cut off"
        raise InputError(field, f"{expected}; cannot be read ({said})") from error


def reason(error: Exception) -> str:
    """First line of the message of an exception, or its class name if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
