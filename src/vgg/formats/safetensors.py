"""safetensors: a JSON header of names, dtypes, shapes and offsets, then the bytes.

The format is described at github.com/huggingface/safetensors. Arrays are views of the mapped file; the package safetensors
would copy them.
"""

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .. import json_output
from ..errors import ModelError
from ..files import map_file, replacing
from ..network import Network
from ..parameters import blocks, is_int4
from . import metadata
from .layouts import Bare
from .state_dict import from_state_dict
from .state_keys import Keys, restored, stored

MAX_HEADER = 100 * 2**20  # the limit of the package safetensors
DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def matches(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a safetensors file."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def read(path: Path) -> Network | Bare:
    """The network in a file that vgg wrote, or the parameters in a file with torchvision's, timm's or the paper's keys."""
    mapped = map_file(path)
    header, start = _header(mapped)
    text = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
        if not 0 <= begin <= end <= len(mapped) - start or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(name)
        tensors[name] = np.frombuffer(mapped, dtype, math.prod(shape), start + begin).reshape(shape)
    if metadata.ARCHITECTURE in text:
        return metadata.build(path, text, restored(path, text, tensors))
    return from_state_dict(path, tensors)


def described(path: Path) -> dict[str, str]:
    """The metadata in a file."""
    header, _ = _header(map_file(path))
    return dict(header.get("__metadata__", {}))


def _header(mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header, and the start of the numbers."""
    start = 8 + int.from_bytes(mapped[:8], "little")
    return json.loads(mapped[8:start]), start


def write(network: Network, path: Path, keys: Keys = "paper") -> None:
    """Write a network with its metadata in `__metadata__`.

    With other keys than the paper's, the network is one that `state_keys.prepared` returns.
    """
    tensors, offset = list(stored(network, keys)), 0
    if any(is_int4(tensor.value) for tensor in tensors):
        raise ModelError(f"{path}: safetensors has no 4-bit numbers; write to .onnx")
    text = {**metadata.describe(network), metadata.SHA256: network.sha256()}
    header: dict[str, Mapping[str, Any]] = {"__metadata__": text | ({} if keys == "paper" else {metadata.KEYS: keys})}
    for key, shape, value in tensors:
        span = [offset, offset := offset + value.nbytes]
        header[key] = {"dtype": NAMES[value.dtype], "shape": list(shape), "data_offsets": span}
    encoded = json_output.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 64 - 8 + 64)
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            for block in blocks(tensor.value):
                file.write(block.view(np.uint8).data)
