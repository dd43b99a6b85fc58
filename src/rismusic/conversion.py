"""Conversion of user-supplied arrays (NumPy arrays, nested lists, torch tensors) to torch tensors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rismusic.errors import InputError

ArrayLike = Any
"""A NumPy array, a torch tensor, a number, or a nested sequence of numbers."""


def to_tensor(field: str, value: ArrayLike, kind: Literal["real", "complex"]) -> Tensor:
    """Convert a user-supplied array to a tensor.

    Real values become float64. Complex values keep their precision, complex64 or complex128. Tensors stay on
    their device and in their autograd graph.

    Args:
        field: name of the argument, for error messages.
        value: NumPy array, torch tensor, number or nested sequence. Integers are accepted in sequences only:
            integer arrays are usually element indices, not metres.
        kind: ``real`` or ``complex``.

    Raises:
        InputError: the values are not numbers of this kind.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        array = value if isinstance(value, (np.ndarray, np.generic)) else _array(field, value)
        if array.dtype.kind not in "fciub":
            raise InputError(field, f"must hold {kind} numbers; got an array of type {array.dtype}")
        # A copy where NumPy's memory layout (negative strides, byte order, read-only) does not suit torch.
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        tensor = torch.from_numpy(native if native.flags.writeable else native.copy()).reshape(array.shape)
    name = str(tensor.dtype).removeprefix("torch.")
    if kind == "real":
        if not tensor.is_floating_point():
            raise InputError(field, f"must hold real floating-point numbers; got {name}")
        return tensor.to(torch.float64)
    if not tensor.is_complex():
        raise InputError(
            field, f"must hold complex numbers; got {name}. If the imaginary part is 0, convert to complex64"
        )
    return tensor if tensor.dtype in (torch.complex64, torch.complex128) else tensor.to(torch.complex64)


def _array(field: str, value: ArrayLike) -> Any:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(field, "must be an array or nested lists of equal length") from error
    return array.astype(np.float64) if array.dtype.kind in "iu" else array
