"""TorchScript archives of torch.jit.save: their operations in order, from traced, scripted and frozen modules.

An archive has a module's arrays and attributes in a pickle and its forward method as code, which `torch_code` follows. torch's
operations on one tensor become a chain. Anything else is refused by its name.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..arrays import Array
from .layouts import Bare
from .pickles import Record
from .torch_code import UNKNOWN, Code
from .torch_operations import Operations
from .torch_tensors import Tensor


@dataclass(frozen=True)
class Script:
    """The content of an archive."""

    module: Any  # a Record
    constants: Any  # the values of CONSTANTS.c0, …
    sources: dict[str, str]  # code by module name
    inputs: Any = None  # those that a module was traced with


class _Data:
    """The tensor that the network computes, at one point; its rank is known, its size isn't."""

    def __init__(self, rank: int) -> None:
        self.rank = rank


# Functions of numbers.
_NUMBERS: dict[str, Callable[..., Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__is__": operator.is_, "__isnot__": operator.is_not, "__not__": operator.not_, "__or__": lambda a, b: a or b,
    "__and__": lambda a, b: a and b, "len": len,
    "__contains__": operator.contains,
}  # fmt: skip
# Functions whose value depends on the size of the data, and casts of such values.
_SIZES = frozenset(("NumToTensor", "mul", "floordiv", "floor_divide", "int", "Int", "format", "sub", "__getitem__"))
_SCALED = ("relu", "leaky_relu", "elu", "silu", "tanh", "sigmoid")


def read(path: object, script: Script) -> Bare:
    """The network that an archive's forward method computes.

    Raises:
        ModelError: it computes something else; the message names the first operation that doesn't fit.
    """
    operations = _Operations(path, script)
    operations.run()
    return operations.bare()


def _input_size(inputs: Any) -> int:
    """The side of the images that a module was traced with; 0 if that is not known."""
    found = inputs.get("forward") if isinstance(inputs, dict) else None
    first = found[0] if isinstance(found, list) and found else None
    shape = first.shape if isinstance(first, Tensor) else ()
    return shape[2] if len(shape) == 4 and shape[2] == shape[3] else 0


class _Operations(Operations):
    """The operations of an archive so far."""

    def __init__(self, path: object, script: Script) -> None:
        super().__init__(path, _input_size(script.inputs))
        self.module = script.module
        self.names = _named(script.module)
        self.current = _Data(4)  # what the next operation must read
        self.code = Code(script.sources, script.constants, self._operation, self.error)

    def run(self) -> None:
        """Follow the forward method."""
        if not isinstance(self.module, Record):
            raise ValueError("no module in it")
        if self.code.method(self.module, "forward", [self.current]) is not self.current:
            raise self.error("its forward method does not return one tensor, the last that it computes")

    def _operation(self, function: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        """The value of one of torch's functions."""
        name = function.rpartition(".")[2]
        values = [*arguments, *named.values()]
        if name in ("dim", "size") and isinstance(arguments[0], _Data):
            if name == "dim":
                return arguments[0].rank
            return UNKNOWN if len(arguments) > 1 else [UNKNOWN] * arguments[0].rank
        if not any(isinstance(value, _Data) for value in values):
            if name in _NUMBERS and not any(value is UNKNOWN for value in values):
                return _NUMBERS[name](*arguments)
            if name in _SIZES or name in _NUMBERS:
                return UNKNOWN
            raise self.error(f"unsupported operation {function}")
        data, *rest = arguments
        if data is not self.current or any(isinstance(value, _Data) for value in (*rest, *named.values())):
            raise self.error(f"the network branches at {function}")
        rank = self._apply(function, name.strip("_"), rest, named)
        if name.endswith("_"):
            data.rank = rank
        else:
            self.current = _Data(rank)
        return [self.current, UNKNOWN] if name.startswith("adaptive_max") else self.current  # with the places

    def _apply(self, function: str, name: str, rest: list[Any], named: dict[str, Any]) -> int:
        """Append one of torch's operations on the data; the rank of its result."""
        rank = self.current.rank
        if name in ("conv2d", "convolution"):
            weight, bias, *numbers = rest
            transposed = numbers[3] if name == "convolution" else False
            groups = numbers[5:6] if name == "convolution" else numbers[3:4]
            self.require(name, transposed=(transposed, False))
            self.conv2d(self._key(weight), _array(weight), _optional(bias), *numbers[:3], *groups)
        elif name == "linear":
            self.linear(self._key(rest[0]), _array(rest[0]), _optional(rest[1] if len(rest) > 1 else None))
        elif name == "batch_norm":
            scale, bias, mean, variance, training, _, epsilon, *_ = rest
            self.require(name, training=(training, False))
            arrays = {"mean": mean, "variance": variance, "scale": scale, "bias": bias}
            self.normalise(self._key(mean), {role: _optional(value) for role, value in arrays.items()}, epsilon)
        elif name in ("max_pool2d", "avg_pool2d"):
            getattr(self, name)(name, *rest, **named)
        elif name.startswith(("adaptive_avg_pool2d", "adaptive_max_pool2d")):
            getattr(self, name.removesuffix("_with_indices"))(name, *rest[:1])
        elif name in ("mean", "amax"):
            self._reduce(name, *rest, **named)
            rank = 4 if True in rest[1:2] or named.get("keepdim") else 2
        elif name in _SCALED:
            self.activation(name, *rest[:1])
        elif name == "gelu":
            self.gelu(**named)
        elif name in ("softmax", "log_softmax"):
            self.softmax(name, rest[0], name)
        elif name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
            self.require(name, train=(rest[1], False))
            self.dropout(rest[0])
        elif name in ("flatten", "view", "reshape", "squeeze"):
            rank = self._reshaped(name, rest)
        elif name not in ("contiguous", "detach", "clone", "alias"):
            raise self.error(f"unsupported operation {function}")
        return rank

    def _reduce(self, name: str, dim: Any = None, keepdim: Any = False, **_: Any) -> None:
        axes = dim if isinstance(dim, list) else [dim]
        if self.current.rank != 4 or {axis % 4 for axis in axes if isinstance(axis, int)} != {2, 3}:
            raise self.error(f"{name} has dim {dim}")
        self.pool("average_pool" if name == "mean" else "global_max_pool")

    def _reshaped(self, name: str, rest: list[Any]) -> int:
        """The rank after a change of the shape, which must keep the images apart."""
        if name == "squeeze":  # of a map of one position
            return 2 if not rest or self.current.rank == 3 else self.current.rank - 1
        if name == "flatten":
            start, end = (*rest, -1)[:2] if rest else (0, -1)
            self.require(name, start_dim=(start, 1), end_dim=(-1 if end == self.current.rank - 1 else end, -1))
            return 2
        shape = rest[0]
        if not isinstance(shape, list) or len(shape) != 2:
            raise self.error(f"unsupported operation {name} to {len(shape) if isinstance(shape, list) else 'other'} dimensions")
        return 2

    def _key(self, value: Any) -> str:
        """The name of an array in the file."""
        return self.names.get(id(value), "a constant")


def _named(module: Any) -> dict[int, str]:
    """The names of the tensors of a module and those in it, by identity."""
    names, seen, found = {}, set(), [("", module)]
    while found:
        name, value = found.pop()
        if isinstance(value, Tensor):
            names[id(value)] = name
        elif isinstance(value, Record) and isinstance(value.state, dict) and id(value) not in seen:
            seen.add(id(value))
            found += [(f"{name}.{key}" if name else str(key), inner) for key, inner in value.state.items()]
    return names


def _array(value: Any) -> Array:
    if not isinstance(value, Tensor):
        raise ValueError("a weight that is not a tensor")
    return value.array()


def _optional(value: Any) -> Array | None:
    return None if value is None else _array(value)
