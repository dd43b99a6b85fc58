"""The elements of a MATLAB 5 file: where each variable lies, and what it is.

Nothing but these tags is read here, and every length is checked against the file before it is believed
(``scipy.io.loadmat`` crashes on damaged files). The format is described in MathWorks' "MAT-File Format".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import IO

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX = 0x0800
_LARGEST_RANK = 32
# Tags, flags, dimensions and name of a variable fit into this many bytes.
_HEAD_BYTES = 4096

TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
"""numpy's names for the types that numbers and texts are stored in."""
CLASSES = {
    1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2",
    11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8", 16: "function", 17: "opaque",
}  # fmt: skip
"""What a variable is to MATLAB: numpy's name for numbers, MATLAB's for all else."""


@dataclass(frozen=True)
class Variable:
    """A variable of the file.

    Args:
        name: its name.
        kind: one of :data:`CLASSES`.
        is_complex: whether an imaginary part follows the real one.
        shape: as MATLAB has it.
        order: ``<`` or ``>``, the byte order.
        data: where the values start in the element.
        offset: where the element starts in the file.
        size: bytes of the element in the file.
        compressed: whether it has to be unpacked.
    """

    name: str
    kind: str
    is_complex: bool
    shape: tuple[int, ...]
    order: str
    data: int
    offset: int
    size: int
    compressed: bool


def variables(file: IO[bytes]) -> list[Variable]:
    """All variables of a file.

    Raises:
        ValueError: the file ends too early, or holds something else than variables.
    """
    length = file.seek(0, 2)
    file.seek(_HEADER_BYTES - 2)
    order = "<" if file.read(2) == b"IM" else ">"
    found = []
    place = _HEADER_BYTES
    while place < length:
        file.seek(place)
        tag = file.read(8)
        if len(tag) < 8:
            raise ValueError("the file is truncated")
        kind, size = struct.unpack(f"{order}2I", tag)
        place += 8
        if place + size > length:
            raise ValueError("the file is truncated")
        if kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"an element of type {kind} where a variable should be")
        head = file.read(min(size, _HEAD_BYTES))
        found.append(_variable(head, order, place, size, compressed=kind == _COMPRESSED))
        place += size
    return found


def read_tag(head: bytes, place: int, order: str) -> tuple[int, int, int, int]:
    """A tag: type, bytes, where its values start, and where the next tag is."""
    if place + 8 > len(head):
        raise ValueError("an element ends too early")
    kind, size = struct.unpack_from(f"{order}2I", head, place)
    if kind >> 16:  # up to four bytes of values within the tag
        return kind & 0xFFFF, kind >> 16, place + 4, place + 8
    return kind, size, place + 8, place + 8 + -(-size // 8) * 8


def _variable(head: bytes, order: str, offset: int, size: int, *, compressed: bool) -> Variable:
    start = 0
    if compressed:
        head = zlib.decompressobj().decompress(head, _HEAD_BYTES)
        kind, _, start, _ = read_tag(head, 0, order)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} where a variable should be")
    _, flag_bytes, values, place = read_tag(head, start, order)
    if flag_bytes != 8:
        raise ValueError("a variable without flags")
    (flags,) = struct.unpack_from(f"{order}I", head, values)
    mat_class = CLASSES.get(flags & 0xFF, "opaque")
    shape: tuple[int, ...] = ()
    if mat_class != "opaque":  # an opaque object has no shape
        _, shape_bytes, values, place = read_tag(head, place, order)
        rank = shape_bytes // 4
        if not 2 <= rank <= _LARGEST_RANK:
            raise ValueError(f"a variable of {rank} axes")
        shape = struct.unpack_from(f"{order}{rank}i", head, values)
        if min(shape) < 0:
            raise ValueError("a variable of negative size")
    _, name_bytes, values, place = read_tag(head, place, order)
    name = head[values : values + name_bytes].decode("latin-1")
    return Variable(name, mat_class, bool(flags & _COMPLEX), shape, order, place, offset, size, compressed)
