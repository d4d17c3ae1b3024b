"""Pickles of NumPy arrays in dictionaries, in which Flax's users save parameters, read without running code.

Only text, numbers, containers and arrays are loaded; arrays are made here, from shape, type and bytes. The layout is that of
NumPy's `ndarray.__reduce__`.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..files import map_file
from .layouts import Forbidden, reading

DTYPES = ("f2", "f4", "f8")


def read(path: Path) -> dict[str, Array]:
    """The arrays in a pickle by their keys, outermost first: `VGG16_0/Conv_0/kernel`.

    Raises:
        ModelError: the file can't be read, or contains anything but arrays.
    """
    with reading(path, "Flax"):
        return dict(_flat(_Unpickler(map_file(path)).load()))


class _Array:
    """An array in a pickle; its state follows it."""

    value: Array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError("a truncated array")
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """The dtype of an array in a pickle."""

    def __init__(self, kind: str, *_: Any) -> None:
        if kind not in DTYPES:
            raise ValueError(f"an array of type {str(kind)[:20]!r}")
        self.value = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "="):
            raise ValueError("an array of another byte order")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return lambda *_: _Array()
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("numpy", "ndarray"):
            return None  # an argument of _reconstruct
        raise Forbidden(f"{module}.{name}")


def _flat(content: Any, before: str = "") -> Any:
    if isinstance(content, _Array):
        yield before, content.value
        return
    for key, value in content.items():
        yield from _flat(value, f"{before}/{key}" if before else str(key))
