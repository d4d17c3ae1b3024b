"""Files of torch.save, `.pth` and `.pt`, read without torch: the zip format since 1.6 and the pickle stream before it.

Both contain a pickle whose tensors refer to storages of raw numbers, which are mapped from the file. Pickles can run code, so
only the parts of a state dictionary are loaded: containers, numbers, text, tensors. Layouts from torch/serialization.py
(_load, _legacy_load) and torch/_utils.py (_rebuild_tensor_v2).
"""

import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file, stored
from .layouts import Bare, Forbidden, from_state_dict, reading

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"

_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_STATES = ("state_dict", "model_state_dict", "model", "net")  # its keys in the checkpoints of training scripts


class _Storage:
    """Numbers of one type in the file; in the old format, their place is known only after the pickle has been read."""

    def __init__(self, dtype: Any, count: int, view: Array | None = None) -> None:
        self.dtype, self.count, self.view = np.dtype(dtype), count, view


class _Tensor:
    """A tensor in the pickle: its place in its storage, in numbers, not bytes."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or (0 not in size and last >= storage.count):
            raise ValueError("a tensor extends beyond its storage")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> Array:
        view = self.storage.view
        if view is None:
            raise ValueError("a tensor's storage is missing")
        steps = tuple(step * view.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(view[self.offset :], self.size, steps, writeable=False)


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows only the parts of a state dictionary."""

    def __init__(self, file: Any, storage: Callable[[str, int, Any], _Storage]) -> None:
        super().__init__(file, encoding="utf-8")

        # Local functions, so that no pickle can change anything that outlives this call.
        def rebuild(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
            return _Tensor(storage, offset, tuple(size), tuple(stride))

        def parameter(tensor: _Tensor, *_: Any) -> _Tensor:
            return tensor

        def shape(size: Any = ()) -> tuple[int, ...]:
            return tuple(size)

        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): rebuild,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("torch._utils", "_rebuild_parameter"): parameter,
            ("torch", "Size"): shape,
            **{("torch", name): name for name in (*_STORAGES, *_DTYPES)},
        }
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or storage not in _STORAGES or not isinstance(count, int) or count < 0 or any(view):
            raise ValueError("unknown kind of storage")
        return self._storage(str(key), count, _STORAGES[storage])


def read(path: Path) -> Bare:
    """The parameters in a state dictionary with torchvision's, timm's or the paper's keys, alone or in a checkpoint."""
    return from_state_dict(path, read_state(path))


def read_state(path: Path) -> dict[str, Array]:
    """The state dictionary in a file: its arrays by key, mapped.

    Raises:
        ModelError: the file can't be read or contains no state dictionary.
    """
    mapped = map_file(path)
    load = _from_zip if mapped[:4] == ZIP_MAGIC else _from_stream
    with reading(path, "torch"):
        return {key: value.array() for key, value in _state(load(path, mapped)).items()}


def _state(content: Any) -> dict[str, _Tensor]:
    """The state dictionary in a file's content."""
    for key in _STATES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, dict) and content and all(isinstance(value, _Tensor) for value in content.values()):
        return {str(key): value for key, value in content.items()}
    raise ValueError("no state dictionary in it")


def _from_zip(path: Path, mapped: mmap.mmap) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickled = next((name for name in entries if name.split("/")[1:] == ["data.pkl"]), None)
        if pickled is None:
            raise ModelError(f"{path}: a zip file, but not torch's: it has no data.pkl")
        folder = pickled.removesuffix("data.pkl")
        order = entries.get(f"{folder}byteorder")
        if order and archive.read(order) == b"big":
            raise ModelError(f"{path}: unsupported byte order: written on a big-endian machine")

        def storage(key: str, count: int, dtype: Any) -> _Storage:
            begin, end = stored(mapped, entries[f"{folder}data/{key}"])
            if count * np.dtype(dtype).itemsize > end - begin:
                raise ValueError("a truncated storage")
            return _Storage(dtype, count, np.frombuffer(mapped, dtype, count, begin))

        with archive.open(pickled) as file:
            return _Unpickler(file, storage).load()


def _from_stream(path: Path, mapped: mmap.mmap) -> Any:
    storages: dict[str, _Storage] = {}

    def storage(key: str, count: int, dtype: Any) -> _Storage:
        return storages.setdefault(key, _Storage(dtype, count))

    with open(path, "rb") as file:
        # Five pickles: a magic number, the protocol's number, the writer's machine, the content, the keys of the storages.
        # Then an 8-byte count and the numbers of each storage.
        _, _, machine, content, keys = (_Unpickler(file, storage).load() for _ in range(5))
        if not machine.get("little_endian", True):
            raise ModelError(f"{path}: unsupported byte order: written on a big-endian machine")
        place = file.tell()
    for key in keys:
        found = storages[key]
        (count,) = struct.unpack("<q", mapped[place : place + 8])
        if count != found.count:
            raise ValueError("a storage of the wrong length")
        found.view = np.frombuffer(mapped, found.dtype, count, place + 8)
        place += 8 + found.view.nbytes
    return content
