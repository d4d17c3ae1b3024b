"""State dictionaries as torch.save writes them, without torch: a zip file of a pickle and the numbers of each tensor.

Layout from torch/serialization.py (_save) and caffe2/serialize/inline_container.cc (PyTorchStreamWriter): entries are not
compressed, and numbers start at multiples of 64 bytes. A state dictionary has no place for metadata; that of vgg is an entry
beside it, where TorchScript keeps its extra files, and which torch.load ignores.
"""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import json_output
from ..files import replacing
from ..network import Network
from ..parameters import blocks
from . import metadata
from .state_keys import Keys, Stored, stored

ALIGNMENT = 64  # bytes
_FOLDER = "archive"  # torch's, if it saves to a stream
_METADATA = f"{_FOLDER}/extra/vgg.json"
_MOST = 2**20  # bytes of metadata
_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}
_HEADER = 30  # bytes of an entry's header before its name
_PADDING = 0x4246  # torch's identifier of the field that fills a header


def write(network: Network, path: Path, keys: Keys) -> None:
    """Write the state dictionary of a network, as `state_keys.prepared` returns it, and its metadata."""
    tensors = list(stored(network, keys))
    text = {**metadata.describe(network), metadata.KEYS: keys, metadata.SHA256: network.sha256()}
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, file, "data.pkl", [_pickle(tensors)])
        _add(archive, file, "byteorder", [b"little"])
        for number, tensor in enumerate(tensors):
            parts = (block.view(np.uint8).data for block in blocks(tensor.value))
            _add(archive, file, f"data/{number}", parts, tensor.value.nbytes)
        _add(archive, file, "version", [b"3\n"])
        _add(archive, file, _METADATA.removeprefix(f"{_FOLDER}/"), [json_output.dumps(text).encode()])


def described(path: Path) -> dict[str, str]:
    """The metadata in a zip file that `write` made; empty in any other file."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        entry = archive.NameToInfo.get(_METADATA)
        if entry is None:
            return {}
        if max(entry.file_size, entry.compress_size) > _MOST:
            raise ValueError(f"{_METADATA} is too large")
        text = json.loads(archive.read(entry))
    return {key: value for key, value in text.items() if isinstance(value, str)}


def _add(
    archive: zipfile.ZipFile, file: BinaryIO, name: str, parts: Iterable[bytes | memoryview], length: int | None = None
) -> None:
    """Add an entry that starts at a multiple of ALIGNMENT; `parts` are its bytes, `length` their number."""
    entry = zipfile.ZipInfo(f"{_FOLDER}/{name}")  # with a fixed date
    if length is not None:
        entry.file_size = length  # so that zipfile knows whether the header needs 64 bits
    start = file.tell() + _HEADER + len(entry.filename) + 4
    padding = -start % ALIGNMENT
    entry.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    with archive.open(entry, "w") as target:
        for part in parts:
            target.write(part)


def _pickle(tensors: Iterable[Stored]) -> bytes:
    """A pickle of the dictionary of tensors, of protocol 2, as torch makes it."""
    entries = b"".join(piece for number, tensor in enumerate(tensors) for piece in _tensor(number, tensor))
    return b"".join((pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK, entries, pickle.SETITEMS, pickle.STOP))


def _tensor(number: int, tensor: Stored) -> Iterator[bytes]:
    """A key and a call of torch's function that makes a tensor of a storage, offset, shape and steps."""
    steps = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    yield _plain(tensor.key)
    yield from (_named("torch._utils", "_rebuild_tensor_v2"), pickle.MARK)
    yield from (pickle.MARK, _plain("storage"), _named("torch", _STORAGES[tensor.value.dtype.name]))
    yield from (_plain(str(number)), _plain("cpu"), _plain(tensor.value.size), pickle.TUPLE, pickle.BINPERSID)
    yield from (_plain(0), _plain(tensor.shape), _plain(steps), pickle.NEWFALSE)  # without a gradient
    yield from (_named("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE)  # of hooks
    yield from (pickle.TUPLE, pickle.REDUCE)


def _named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value: str | int | tuple[int, ...]) -> bytes:
    """The opcodes of a plain value: its pickle without the first and the last one."""
    return pickle.dumps(value, 2)[2:-1]
