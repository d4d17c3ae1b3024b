"""NumPy's arrays in pickles, from the records of `pickles`.

The layouts are those of `ndarray.__reduce__` and `ndarray.__reduce_ex__(5)`.
"""

import math
from typing import Any

import numpy as np

from ..arrays import Array
from .pickles import Record

_KINDS = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin-1")


KNOWN = {"_codecs.encode": _bytes}  # as the protocols 0 to 2 have bytes


def array(value: Any) -> Array | None:
    """The array that a value in a pickle is; None if it is something else, such as an array of objects.

    Raises:
        ValueError: its numbers don't have the size that its shape needs.
    """
    if not isinstance(value, Record):
        return None
    if value.name in _RECONSTRUCT and isinstance(value.state, tuple) and len(value.state) == 5:
        *before, data = value.state
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin-1")
            value.state = (*before, data)  # once, however many keys refer to the array
        _, shape, kind, fortran = before
    elif value.name in _FROM_BUFFER and isinstance(value.arguments, tuple) and len(value.arguments) == 4:
        data, kind, shape, order = value.arguments
        fortran = order == "F"
    else:
        return None
    dtype = _dtype(kind)
    sized = isinstance(shape, tuple) and all(isinstance(side, int) and side >= 0 for side in shape)
    if dtype is None or not sized or not isinstance(data, bytes | bytearray):
        return None
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError("a truncated array")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _dtype(value: Any) -> np.dtype[Any] | None:
    """A dtype in a pickle; None if it is not one of numbers in this machine's order."""
    if not isinstance(value, Record) or value.name != "numpy.dtype" or not isinstance(value.arguments, tuple):
        return None
    kind, *_ = (*value.arguments, None)
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    return np.dtype(kind) if isinstance(kind, str) and kind in _KINDS and order in ("<", "=", "|") else None
