"""Datatypes of input tensors, and their values as float32, the type that networks compute with."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array
from .refusals import Refusal

EXACT = 2**24  # float32 has every integer below it


@dataclass(frozen=True)
class Datatype:
    """A datatype of the Open Inference Protocol."""

    name: str
    dtype: np.dtype[Any]
    contents: str = ""  # field of gRPC's InferTensorContents; none: raw contents only

    @property
    def integer(self) -> bool:
        return self.dtype.kind in "iu"


FP32 = Datatype("FP32", np.dtype("<f4"), "fp32_contents")
BYTES = "BYTES"  # encoded images, the one datatype whose values are not numbers
DATATYPES = {
    one.name: one
    for one in (
        FP32,
        Datatype("FP16", np.dtype("<f2")),
        Datatype("BF16", np.dtype(ml_dtypes.bfloat16)),
        Datatype("FP64", np.dtype("<f8"), "fp64_contents"),
        Datatype("UINT8", np.dtype("u1"), "uint_contents"),
        Datatype("INT8", np.dtype("i1"), "int_contents"),
        Datatype("UINT16", np.dtype("<u2"), "uint_contents"),
        Datatype("INT16", np.dtype("<i2"), "int_contents"),
        Datatype("UINT32", np.dtype("<u4"), "uint_contents"),
        Datatype("INT32", np.dtype("<i4"), "int_contents"),
        Datatype("UINT64", np.dtype("<u8"), "uint64_contents"),
        Datatype("INT64", np.dtype("<i8"), "int64_contents"),
    )
}
NAMES = ", ".join(DATATYPES)


def to_float32(values: Array, datatype: Datatype) -> Array:
    """The values of a tensor as float32. Only FP64 is rounded.

    Raises:
        Refusal: a value is not a finite float32, or an integer that float32 may not have.
    """
    if datatype.integer:
        if datatype.dtype.itemsize > 2 and values.size and not (values.min() > -EXACT and values.max() < EXACT):
            raise Refusal(f"the input has integers of {EXACT:,} or more, which float32 can't represent exactly")
        return values.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(np.float32, copy=False)
    if not np.isfinite(converted).all():
        raise Refusal("the input has values that are not finite")
    return converted


def from_json(values: Array, datatype: Datatype) -> Array:
    """Numbers of JSON, which were read as float32, after a check that the datatype has them. Raises Refusal if not."""
    if datatype.integer:
        kind = np.iinfo(datatype.dtype)
        low, high = max(kind.min, 1 - EXACT), min(kind.max, EXACT - 1)
        if not (np.trunc(values) == values).all() or values.min() < low or values.max() > high:
            raise Refusal(f"values of {datatype.name} must be integers from {low:,} to {high:,}")
    elif not np.isfinite(values).all():
        raise Refusal("the input has values that are not finite")
    return values
