"""The tensors in pickles of torch.save and torch.jit.save.

A tensor refers to a part of a storage of raw numbers, which is mapped from the file. Layouts from torch/_utils.py and
torch/serialization.py (_rebuild_tensor_v2, persistent_load).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array
from . import pickled_arrays
from .pickles import Record, fill

_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128, "QInt8Storage": np.int8, "QUInt8Storage": np.uint8, "QInt32Storage": np.int32,
    "UntypedStorage": np.uint8,
}  # fmt: skip
_EXPANDED = 2**20  # numbers of a tensor that may repeat those of its storage


class Storage:
    """Numbers of one type in the file; in the old format, their place is known only after the pickle has been read."""

    def __init__(self, dtype: Any, count: int, view: Array | None = None) -> None:
        self.dtype, self.count, self.view = np.dtype(dtype), count, view


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor in a pickle: its place in its storage, in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> Array:
        """The numbers, mapped. Raises ValueError if they exceed the storage."""
        view = self.storage.view
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if min((self.offset, *self.shape, *self.stride)) < 0 or (0 not in self.shape and last >= self.storage.count):
            raise ValueError("a tensor extends beyond its storage")
        if view is None or math.prod(self.shape) > max(self.storage.count, _EXPANDED):
            raise ValueError("a tensor without its storage")
        steps = tuple(step * view.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(view[self.offset :], self.shape, steps, writeable=False)


def as_tensor(value: Any) -> Tensor | None:
    """A value in a pickle as a tensor, if it is one, or an array of NumPy."""
    if isinstance(value, Tensor):
        return value
    found = pickled_arrays.array(value)
    if found is None:
        return None
    steps = tuple(step // found.itemsize for step in found.strides)
    return Tensor(Storage(found.dtype, found.size, found.reshape(-1, order="A")), 0, found.shape, steps)


def stored(pid: Any, storage: Callable[[str, int, Any], Storage]) -> Any:
    """The object with a persistent identifier: a storage, a class, of which old files also hold the source, or unknown."""
    if not isinstance(pid, tuple) or not pid:
        return Record("a persistent object", (pid,))
    if pid[0] == "module" and len(pid) > 1:
        return pid[1]
    _, kind, key, _, count, *view = (*pid, *(None,) * 5)[: max(5, len(pid))]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Record) else ""
    if pid[0] != "storage" or name not in _STORAGES or not isinstance(count, int) or count < 0 or any(view):
        return Record(name or "a persistent object", pid)
    return storage(str(key), count, _STORAGES[name])


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    shape, steps = tuple(size), tuple(stride)
    if not isinstance(storage, Storage) or not all(isinstance(number, int) for number in (offset, *shape, *steps)):
        raise TypeError("not a tensor")
    return Tensor(storage, offset, shape, steps)


def _of_type(function: Record, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a class of its own."""
    return KNOWN[function.name](*arguments) if function.name in _TENSORS else Record(function.name, arguments)


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    fill(made, pairs.items() if isinstance(pairs, dict) else pairs)
    return made


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}
KNOWN: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    **pickled_arrays.KNOWN,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": lambda size=(): tuple(size),
    "collections.OrderedDict": _dictionary,
    # Lists and dictionaries of TorchScript.
    "torch.jit._pickle.restore_type_tag": lambda value, _: value,
    **{f"torch.jit._pickle.build_{kind}list": lambda values: values for kind in ("int", "bool", "double", "tensor")},
    "torch._dynamo.eval_frame.OptimizedModule": lambda module, *_: module,
    # Objects of classes in the protocols 0 and 1.
    "copyreg._reconstructor": lambda made, *_: Record(made.name, ()),
    "copy_reg._reconstructor": lambda made, *_: Record(made.name, ()),
}
