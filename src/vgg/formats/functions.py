"""Functions of each element that several operators compute, recognised by their values.

Exporters write one function in many ways: GELU by `Erf` with a division or a multiplication by the root of 2, its cube by `Pow`
or by two products, batch normalisation as a product and a sum. Instead of the ways, their values are compared.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays import Array
from ..heads import ACTIVATIONS

# The places where functions are compared: closely around 0, and some far away.
GRID = np.concatenate([np.linspace(-8, 8, 129), [-1000.0, -100.0, -30.0, -12.0, 12.0, 30.0, 100.0, 1000.0]])
SWISH = "swish"  # x * sigmoid(a * x), which for a = 1 is SiLU, and for 1.702 the QuickGelu of ONNX Runtime
_ONE = int(np.flatnonzero(GRID == 1)[0])
_MINUS_ONE = int(np.flatnonzero(GRID == -1)[0])
TOLERANCE = 1e-4  # half-precision constants; GELU and its approximation by tanh differ by 5e-4
LARGEST = 2**22  # samples of a function

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 + np.tanh(x / 2) / 2)


def _gelu(x: Array) -> Array:
    return np.asarray(x * (0.5 + 0.5 * _erf(x / math.sqrt(2))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(x * (0.5 + 0.5 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _clip(attributes: Mapping[str, Any], x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    low = attributes.get("min", -np.inf) if low is None else low
    high = attributes.get("max", np.inf) if high is None else high
    return np.asarray(np.minimum(np.maximum(x, low), high))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _leaky(x: Array, slope: Any) -> Array:
    return np.where(x > 0, x, slope * x)


# ONNX's operators of each element, as functions of their attributes and inputs. `None` is an input that is left out.
OPERATORS: dict[str, Callable[..., Array]] = {
    "Identity": lambda attributes, x: x,
    "Add": lambda attributes, x, y: x + y,
    "Sub": lambda attributes, x, y: x - y,
    "Mul": lambda attributes, x, y: x * y,
    "Div": lambda attributes, x, y: x / y,
    "Pow": lambda attributes, x, y: np.power(x, y),
    "Max": lambda attributes, *values: np.maximum.reduce(np.broadcast_arrays(*values)),
    "Min": lambda attributes, *values: np.minimum.reduce(np.broadcast_arrays(*values)),
    "Sum": lambda attributes, *values: sum(values),
    "Neg": lambda attributes, x: -x,
    "Abs": lambda attributes, x: np.abs(x),
    "Sqrt": lambda attributes, x: np.sqrt(x),
    "Reciprocal": lambda attributes, x: 1 / x,
    "Exp": lambda attributes, x: np.exp(x),
    "Erf": lambda attributes, x: _erf(x),
    "Tanh": lambda attributes, x: np.tanh(x),
    "Sigmoid": lambda attributes, x: _sigmoid(x),
    "Relu": lambda attributes, x: np.maximum(x, 0),
    "LeakyRelu": lambda attributes, x: _leaky(x, attributes.get("alpha", 0.01)),
    "PRelu": lambda attributes, x, slope: _leaky(x, slope),
    "Elu": lambda attributes, x: _elu(x, attributes.get("alpha", 1.0)),
    "Celu": lambda attributes, x: _celu(x, attributes.get("alpha", 1.0)),
    "Clip": _clip,
    "Swish": lambda attributes, x: x * _sigmoid(attributes.get("alpha", 1.0) * x),
    "Gelu": lambda attributes, x: (_gelu_tanh if attributes.get("approximate") == "tanh" else _gelu)(x),
    "BiasGelu": lambda attributes, x, bias: _gelu(x + bias),
    "FastGelu": lambda attributes, x, bias=None: _gelu_tanh(x if bias is None else x + bias),
    "QuickGelu": lambda attributes, x: x * _sigmoid(attributes.get("alpha", 1.702) * x),
}
_AFFINE = ("Identity", "Add", "Sub", "Mul", "Div", "Neg", "Sum")
# The activations by name, as functions of x and their number.
_KNOWN: dict[str, Callable[[Array, float], Array]] = {
    "relu": lambda x, number: np.maximum(x, 0), "leaky_relu": _leaky, "elu": _elu, "gelu": lambda x, number: _gelu(x),
    "gelu_tanh": lambda x, number: _gelu_tanh(x), "silu": lambda x, number: x * _sigmoid(x),
    "tanh": lambda x, number: np.tanh(x), "sigmoid": lambda x, number: _sigmoid(x),
}  # fmt: skip


class TooLarge(ValueError):
    """An operator computes more numbers than those of VGG networks, which a small file can ask for."""


def check_broadcast(shapes: Iterable[tuple[int, ...]], attributes: Mapping[str, Any]) -> None:
    """Raise TooLarge if an operator of each element computes too many; ValueError if the shapes don't fit."""
    arrays = [value.shape for value in attributes.values() if isinstance(value, np.ndarray)]
    count = math.prod(np.broadcast_shapes(*shapes, *arrays))
    if count > LARGEST:
        raise TooLarge(f"computes {count} numbers")


@dataclass(frozen=True)
class Function:
    """A function of each element: scale * x + shift, or any, by its values at GRID.

    The arrays have the rank of the value, and the function's values one more, the first.
    """

    scale: Array
    shift: Array
    values: Array | None = None  # float64 [len(GRID), ...]
    channels: tuple[int, ...] | None = None  # those of the value, in order, if the function has not all of them
    dropped: bool = False  # the dimension of its one channel is missing

    @staticmethod
    def identity(rank: int) -> "Function":
        return Function(np.ones((1,) * rank), np.zeros((1,) * rank))

    @property
    def is_identity(self) -> bool:
        return self.values is None and self.channels is None and bool((self.scale == 1).all() and (self.shift == 0).all())

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions along which the function differs, 1 for others."""
        return self.values.shape[1:] if self.values is not None else np.broadcast_shapes(self.scale.shape, self.shift.shape)

    def sampled(self) -> Array:
        if self.values is not None:
            return self.values
        if len(GRID) * math.prod(self.shape) > LARGEST:
            raise ValueError("a function that differs at too many places")
        return np.asarray(GRID.reshape(-1, *[1] * len(self.shape)) * self.scale + self.shift)


Operand = Function | Array | None


def compute(operator: str, attributes: Mapping[str, Any], operands: Sequence[Operand]) -> Function:
    """The function that one of OPERATORS computes of functions of the same value and of constants.

    Raises ValueError if the shapes don't fit.
    """
    functions = [one for one in operands if isinstance(one, Function)]
    constants = [one for one in operands if isinstance(one, np.ndarray)]
    rank, channels, dropped = len(functions[0].shape), functions[0].channels, functions[0].dropped
    same = all((len(one.shape), one.channels, one.dropped) == (rank, channels, dropped) for one in functions)
    if not same or any(one.ndim > rank or (dropped and one.size > 1) for one in constants):
        raise ValueError("other dimensions than those of the value")
    with np.errstate(all="ignore"):
        if operator in _AFFINE and all(one.values is None for one in functions):
            lifted = [_lifted(one, rank) for one in operands if one is not None]
            check_broadcast([one.shape for pair in lifted for one in pair], {})
            result = _affine(operator, lifted)
            if result is not None:
                return replace(result, channels=channels, dropped=dropped)
        values = [_sampled(one, rank) for one in operands]
        check_broadcast([one.shape for one in values if one is not None], attributes)
        computed = np.asarray(OPERATORS[operator](attributes, *values))
    return Function(np.ones((1,) * rank), np.zeros((1,) * rank), computed, channels, dropped)


def _sampled(one: Operand, rank: int) -> Array | None:
    return one.sampled() if isinstance(one, Function) else one if one is None else _wide(one, rank)


def _wide(value: Array, rank: int) -> Array:
    """A constant, with as many dimensions as the value, of size 1 if its numbers are the same along them."""
    value = value[tuple(slice(None if step else 1) for step in value.strides)]  # once, if it is repeated in memory
    wide: Array = np.asarray(value, np.float64).reshape((1,) * (rank - value.ndim) + value.shape)
    for axis in range(rank):
        first = wide.take([0], axis) if wide.shape[axis] > 1 else wide
        wide = first if (wide == first).all() else wide
    return wide


def _lifted(one: Function | Array, rank: int) -> tuple[Array, Array]:
    """The scale and shift of a function or constant."""
    return (one.scale, one.shift) if isinstance(one, Function) else (np.zeros((1,) * rank), _wide(one, rank))


def _affine(operator: str, operands: list[tuple[Array, Array]]) -> Function | None:
    """The result of an operator for affine functions and constants, if it is affine."""
    (scale, shift), *others = operands
    if operator == "Neg":
        return Function(-scale, -shift)
    for right, constant in others:
        if operator in ("Add", "Sum"):
            scale, shift = scale + right, shift + constant
        elif operator == "Sub":
            scale, shift = scale - right, shift - constant
        elif operator == "Div" and not right.any():
            scale, shift = scale / constant, shift / constant
        elif operator == "Mul" and not right.any():
            scale, shift = scale * constant, shift * constant
        elif operator == "Mul" and not scale.any():
            scale, shift = right * shift, constant * shift
        else:
            return None
    return Function(scale, shift)


def shortest(number: Any) -> float:
    """The shortest number that is the same float32, since files hold 0.3 as 0.30000001."""
    return float(str(np.float32(number)))


def recognised(function: Function) -> tuple[str, float] | None:
    """The activation that a function is, with its number; None if it is neither SWISH nor one of `vgg.heads.ACTIVATIONS`."""
    values = function.sampled().reshape(len(GRID), -1)
    first = values[:, 0]
    if not np.isfinite(values).all() or (np.ptp(values, axis=1) > TOLERANCE).any():
        return None
    numbers = {"leaky_relu": -first[_MINUS_ONE], "elu": first[_MINUS_ONE] / math.expm1(-1)}
    best, name, number = TOLERANCE, "", 0.0
    for candidate, known in _KNOWN.items():
        own = shortest(numbers.get(candidate, ACTIVATIONS[candidate]))
        wanted = known(GRID, own)
        error = float((np.abs(first - wanted) / (1 + np.abs(wanted))).max())
        if error < best and own >= 0:
            best, name, number = error, candidate, own
    slope = _slope(first)
    if not name and slope and np.abs(first - GRID * _sigmoid(slope * GRID)).max() < TOLERANCE:
        return SWISH, slope
    return (name, number) if name else None


def _slope(values: Array) -> float:
    """The factor a of x * sigmoid(a * x), from its value at 1; 0 if there is none."""
    share = float(values[_ONE])
    return shortest(math.log(share / (1 - share))) if 0.5 < share < 1 else 0.0


def is_pair(function: Function) -> bool:
    """Whether a function has two values, the sigmoids of -x and x."""
    values = function.sampled().reshape(len(GRID), -1)
    return values.shape[1] == 2 and bool(np.abs(values - np.stack([_sigmoid(-GRID), _sigmoid(GRID)], 1)).max() < TOLERANCE)
