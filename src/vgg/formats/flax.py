"""Pickles of NumPy arrays in dictionaries, in which Flax's users save parameters, read without running code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from . import pickled_arrays, pickles
from .layouts import Forbidden, reading
from .pickles import Record

_DEPTH = 20  # of dictionaries


def read(path: Path) -> dict[str, Array]:
    """The arrays in a pickle by their keys, outermost first: `VGG16_0/Conv_0/kernel`.

    Raises:
        ModelError: the file can't be read, or contains anything but arrays of floats.
    """
    with reading(path, "Flax"):
        file: Any = map_file(path)
        content = pickles.load(path, file, pickled_arrays.KNOWN, lambda pid: Record("a persistent object", (pid,)))
        return dict(_flat(path, content))


def _flat(path: Path, content: Any, before: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Array]]:
    found = pickled_arrays.array(content)
    if found is not None and found.dtype.kind == "f":
        yield before, found
    elif isinstance(content, dict) and depth:
        for key, value in content.items():
            yield from _flat(path, value, f"{before}/{key}" if before else str(key), depth - 1)
    elif isinstance(content, Record) and not content.name.startswith("numpy."):
        raise Forbidden(content.name)
    else:
        raise ModelError(f"{path}: not arrays of floats in dictionaries: {before or 'it'} is something else")
