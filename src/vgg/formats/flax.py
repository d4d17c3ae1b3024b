"""Pickles of NumPy arrays in dictionaries, as Flax's users keep parameters, without running what is in them.

Nothing is loaded but text, numbers, containers and arrays; an array is made here, from its shape, type and bytes. The layout
is that of NumPy's own `ndarray.__reduce__`.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import reason

DTYPES = ("f2", "f4", "f8")


def read(path: Path) -> dict[str, Array]:
    """The arrays in a pickle by their keys from the outermost in: `VGG16_0/Conv_0/kernel`. Raises ModelError."""
    try:
        with open(path, "rb") as file:
            found = dict(_flat(_Unpickler(file).load()))
    except OSError as error:
        raise ModelError(f"{path}: {reason(error)}") from None
    except _Forbidden as error:
        what = str(error)[:80]
        raise ModelError(f"{path}: holds {what!r}, which is not loaded since pickles can run code") from None
    except Exception as error:  # a broken pickle can raise anything
        raise ModelError(f"{path}: is a damaged file, or no pickle of arrays ({error})") from None
    return found


class _Forbidden(Exception):
    """A pickle names something that could be run."""


class _Array:
    """An array that a pickle describes; its state comes last."""

    value: Array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError("an array is cut short")
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """A type of numbers that a pickle describes."""

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
            return None  # only named as what to reconstruct
        raise _Forbidden(f"{module}.{name}")


def _flat(content: Any, before: str = "") -> Any:
    if isinstance(content, _Array):
        yield before, content.value
        return
    for key, value in content.items():
        yield from _flat(value, f"{before}/{key}" if before else str(key))
