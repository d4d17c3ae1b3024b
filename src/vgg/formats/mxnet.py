"""MXNet's `.params`, all versions of the format: arrays one after another, then their names.

Layout from src/ndarray/ndarray.cc (NDArray::Save, Load, LegacyLoad). The file: 0x112, a reserved number, the number of
arrays, the arrays, the number of names, the names with their lengths; all numbers uint64. An array starts with its version:
3 or 2 (followed by the kind of storage), 1, or, in the oldest files, its number of dimensions; then its shape, device, type
and numbers. All is little-endian.
"""

import math
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .. import heads
from ..architectures import Architecture
from ..arrays import Array
from ..files import map_file
from .layouts import REDUCED, Bare, from_names

MAGIC = struct.pack("<QQ", 0x112, 0)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES: tuple[Any, ...] = (np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64, np.bool_)
_BFLOAT16 = 12
_MAX_DIMENSIONS = 32

# Gluon's names within a network, `vgg0_conv0_weight`; its names in files, `features.0.weight` and `output.bias`, or `0.weight`
# of features alone; names of MXNet's own training script (example/image-classification/symbols/vgg.py) and of networks
# converted from Caffe, `conv1_1_weight`, `fc6_bias`, `bn1_1_gamma`. Checkpoints add the prefix `arg:` or `aux:`.
_GLUON = re.compile(r"(?:.*_)?(conv|batchnorm|dense)(\d+)_(\w+)")
_SAVED = re.compile(r"(?:(?:features\.)?(\d+)|output)\.(\w+)")
# Names of gluoncv2: `features.0.0.conv.weight`, `features.0.0.bn.gamma`, `output.1.fc1.fc.weight`, `output.1.fc3.bias`.
_STAGED = re.compile(r"(?:features\.(\d+)\.(\d+)\.(?:conv|(bn))|output\.1\.fc(\d)(?:\.fc)?)\.(\w+)")
_PAPER = re.compile(r"(conv|bn|fc)(\d)(?:_(\d))?_(\w+)")
_ROLES = {
    "weight": "weight", "bias": "bias", "gamma": "scale", "beta": "bias", "running_mean": "mean", "running_var": "variance",
    "moving_mean": "mean", "moving_var": "variance",
}  # fmt: skip
_SYMBOL_EPSILON = 1e-3  # of `mx.symbol.BatchNorm`, by default; that of Gluon's layer is 1e-5


def read(path: Path) -> Bare:
    """The parameters in a file, mapped. The file has no epsilon of batch normalisation; the names show which default it has.

    Gluon's features contain the first two linear layers. Without the last one, they are read as a backbone, as is the reduced
    VGG of SSD, whose linear layers are dilated convolutions.

    Networks with the paper's names take RGB, 0..255, minus the mean. With the channels of the first convolution reversed, they
    take what Caffe's do.
    """
    arrays = _arrays(map_file(path))
    papers = {key for key in arrays if _PAPER.fullmatch(_bare(key))}
    for key in papers:
        arrays[key] = _of_symbol(_bare(key), arrays[key])
    normalised = any(_bare(key).startswith("bn") for key in papers)
    left, why = {}, "there is no output layer"
    if _is_reduced({_bare(key): arrays[key].shape for key in papers}):
        left = {key: arrays[key] for key in arrays if _bare(key).startswith("fc")}
        why = "it is a dilated convolution, as in SSD"
    elif all((match := _SAVED.fullmatch(key)) and match[1] for key in arrays):
        matrices = {key.rpartition(".")[0] for key, value in arrays.items() if value.ndim == 2}
        left = {key: value for key, value in arrays.items() if key.rpartition(".")[0] in matrices}
    kept = {key: value for key, value in arrays.items() if key not in left}
    epsilon = _SYMBOL_EPSILON if normalised else Architecture.epsilon
    bare = from_names(path, kept, _place, "a name such as vgg0_conv0_weight or features.0.weight", epsilon)
    if papers:
        stated = f"batch normalisation with epsilon {epsilon}, the default of MXNet's operator" if normalised else ""
        bare = bare._replace(preset="caffe", part=stated)
    elif any(_STAGED.fullmatch(key) for key in arrays):
        bare = bare._replace(preset="gluon")
    head = bare.architecture.head
    assumed = f"a backbone without {next(iter(left))} and the like, since {why}" if left else ""
    assumed = assumed or ("" if head in ("fc", heads.NONE) else f"the head {head!r}")
    return bare._replace(assumed=assumed, sized=head == heads.NONE)


def _is_reduced(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether the linear layers are those of the reduced VGG: convolutions of 3x3 and 1x1."""
    return (shapes.get("fc6_weight", ())[2:], shapes.get("fc7_weight", ())[2:]) == REDUCED


def _bare(key: str) -> str:
    """A name without a checkpoint's prefix."""
    return key.removeprefix("arg:").removeprefix("aux:")


def _of_symbol(name: str, value: Array) -> Array:
    """An array with one of the paper's names, as the network uses it, for pixels in BGR."""
    if name == "conv1_1_weight" and value.ndim == 4:
        return value[:, ::-1]
    if name.startswith("bn") and name.endswith("_gamma") and (value == value[:1]).all():
        return np.ones_like(value)  # by default, gamma is fixed at 1, whatever weight decay makes of the array
    return value


def _place(key: str) -> tuple[tuple[int, ...], str | None]:
    """The position of an array's layer in the network, and its role there; no role if its name is unknown."""
    bare = _bare(key)
    if match := _SAVED.fullmatch(bare):
        return (0, int(match[1])) if match[1] else (1,), _ROLES.get(match[2])
    if match := _STAGED.fullmatch(bare):
        stage, unit, norm, linear, role = match.groups()
        return (1, int(linear)) if linear else (0, int(stage), int(unit), int(norm == "bn")), _ROLES.get(role)
    if match := _PAPER.fullmatch(bare):
        return (int(match[1] == "fc"), int(match[2]), int(match[3] or 0), int(match[1] == "bn")), _ROLES.get(match[4])
    if match := _GLUON.fullmatch(bare):
        return (int(match[1] == "dense"), int(match[2]), int(match[1] == "batchnorm")), _ROLES.get(match[3])
    return (), None


def _arrays(mapped: Any) -> dict[str, Array]:
    """The arrays by name. Raises ValueError, struct.error or IndexError if the bytes are damaged."""
    (count,) = struct.unpack_from("<Q", mapped, len(MAGIC))
    if count * 16 > len(mapped):
        raise ValueError(f"{count} arrays in {len(mapped)} bytes")
    place, values = len(MAGIC) + 8, []
    for _ in range(count):
        value, place = _array(mapped, place)
        values.append(value)
    (names,) = struct.unpack_from("<Q", mapped, place)
    if names != count:
        raise ValueError(f"{names} names for {count} arrays")
    place += 8
    arrays = {}
    for value in values:
        (length,) = struct.unpack_from("<Q", mapped, place)
        name = mapped[place + 8 : place + 8 + length]
        if len(name) != length:
            raise ValueError("a truncated name")
        place += 8 + length
        arrays[name.decode()] = value
    return arrays


def _array(mapped: Any, place: int) -> tuple[Array, int]:
    """One array as a view of the file, and its end."""
    (version,) = struct.unpack_from("<I", mapped, place)
    side = "q"
    if version in (_V1, _V2, _V3):
        place += 4
        if version != _V1:
            (storage,) = struct.unpack_from("<i", mapped, place)
            if storage != 0:
                raise ValueError("a sparse array")
            place += 4
    else:
        side = "I"
    (dimensions,) = struct.unpack_from("<I", mapped, place)
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"an array of {dimensions} dimensions")
    shape = struct.unpack_from(f"<{dimensions}{side}", mapped, place + 4)
    place += 4 + struct.calcsize(f"<{dimensions}{side}")
    if dimensions == 0:  # an array that was never filled, without further fields
        return np.empty(0, np.float32), place
    _, _, kind = struct.unpack_from("<3i", mapped, place)
    place += 12
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == _BFLOAT16 else _DTYPES[kind])
    count = math.prod(shape)
    if min(shape) < 0 or kind < 0 or count * dtype.itemsize > len(mapped) - place:
        raise ValueError(f"an array of shape {list(shape)} extends beyond the file")
    return np.frombuffer(mapped, dtype, count, place).reshape(shape), place + count * dtype.itemsize
