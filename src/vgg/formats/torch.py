"""Files of torch, `.pth` and `.pt`, read without torch: of torch.save, in the zip format since 1.6 and the pickle stream before
it, of torch.jit.save, and pickles of state dictionaries.

All contain a pickle whose tensors refer to storages of raw numbers, which are mapped from the file. Nothing in the pickle or
in the code of TorchScript is run; see `pickles` and `torch_script`. Layouts from torch/serialization.py (_load, _legacy_load).
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from ..network import Network
from . import checkpoints, metadata, pickles, torch_modules, torch_script, torch_writer
from .layouts import Bare, reading
from .pickles import Record
from .state_dict import from_state_dict, labels
from .state_keys import restored
from .torch_contents import candidates, dictionaries, entries, summary
from .torch_tensors import KNOWN, Storage, Tensor, stored

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
MOST_CODE = 2**20  # characters of TorchScript's code


def read(path: Path) -> Network | Bare:
    """The network in a file that vgg wrote, or in a state dictionary, whole module, checkpoint with one of them, or TorchScript
    archive.
    """
    content = _content(path)
    if text := torch_writer.described(path):
        return metadata.build(path, text, restored(path, text, _arrays(path, content)))
    if isinstance(content, torch_script.Script):
        return torch_script.read(path, content)
    found = dict(candidates(content))
    if not found:
        raise ModelError(
            f"{path}: no network in it; it holds {summary(content)}. Save that of a model: torch.save(model.state_dict(), path)"
        )
    readers = {name: partial(_read, path, value) for name, value in found.items()}
    bare = checkpoints.chosen(path, readers, checkpoints.exchanged(entries(content)))
    return bare._replace(labels=labels(dictionaries(content), bare.architecture.classes))


def _read(path: Path, value: Any) -> Bare:
    return from_state_dict(path, _arrays(path, value)) if isinstance(value, dict) else torch_modules.read(path, value)


def read_state(path: Path) -> dict[str, Array]:
    """The state dictionary in a file: its arrays by key, mapped.

    Raises:
        ModelError: the file can't be read or contains no state dictionary.
    """
    with reading(path, "torch"):
        content = _content(path)
        for state in dictionaries(content):
            if any(isinstance(value, Tensor) for value in state.values()):
                return _arrays(path, state)
    raise ModelError(f"{path}: no state dictionary in it; it holds {summary(content)}")


def _arrays(path: Path, state: dict[Any, Any]) -> dict[str, Array]:
    """The arrays of a state dictionary. What is no tensor is left out, unless it is a parameter of an unsupported kind."""
    for key, value in state.items():
        if isinstance(value, Record | tuple) and str(key).endswith(("weight", "bias", "_packed_params")):
            kind = value.name if isinstance(value, Record) else "a quantized weight"
            raise ModelError(f"{path}: not a VGG network: {key} is not a tensor of floats, but {kind}")
    return {str(key): value.array() for key, value in state.items() if isinstance(value, Tensor)}


def _content(path: Path) -> Any:
    """What a file's pickle holds."""
    mapped = map_file(path)
    if mapped[:4] == ZIP_MAGIC:
        return _from_zip(path, mapped)
    if mapped[: len(LEGACY_MAGIC)] == LEGACY_MAGIC:
        return _from_stream(path, mapped, mapped, pickles.budget())
    return _from_pickle(path, mapped)


def _from_pickle(path: Path, mapped: mmap.mmap) -> Any:
    """The content of a pickle of Python's own, in which each storage is a whole file of the old format."""
    opcodes = pickles.budget()

    def storage(data: bytes) -> Any:
        return _from_stream(path, io.BytesIO(data), data, opcodes)

    def joblibs(*_: Any) -> Any:
        raise ModelError(f"{path}: unsupported arrays of joblib between the parts of the pickle; save them with pickle")

    known = {
        **KNOWN, "torch.storage._load_from_bytes": storage, "joblib.numpy_pickle.NumpyArrayWrapper": joblibs,
    }  # fmt: skip
    return pickles.load(path, mapped, known, lambda pid: Record("a persistent object", (pid,)), opcodes)  # type: ignore[arg-type]


def _from_zip(path: Path, mapped: mmap.mmap) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickled = next((name for name in entries if name.split("/")[1:] == ["data.pkl"]), None)
        if pickled is None:
            raise ModelError(f"{path}: a zip file, but not torch's: it has no data.pkl")
        folder = pickled.removesuffix("data.pkl")
        order = entries.get(f"{folder}byteorder")

        def read(entry: zipfile.ZipInfo) -> bytes:
            if max(entry.file_size, entry.compress_size) > MOST_CODE:  # zipfile allocates as much as an entry claims to have
                raise ValueError(f"{entry.filename[:80]} is too large")
            return archive.read(entry)

        if order and read(order) == b"big":
            raise ModelError(f"{path}: unsupported byte order: written on a big-endian machine")

        def bounds(name: str) -> tuple[int, int]:
            entry = entries[f"{folder}{name}"]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ModelError(f"{path}: {entry.filename} is compressed, which torch's own files are not; unpack it")
            return files.stored(mapped, entry)

        def load(name: str) -> Any:
            def storage(key: str, count: int, dtype: Any) -> Storage:
                begin, end = bounds(f"{name}/{key}")
                whole = count * np.dtype(dtype).itemsize <= end - begin  # that of a traced input may be missing
                return Storage(dtype, count, np.frombuffer(mapped, dtype, count, begin) if whole else None)

            begin, end = bounds(f"{name}.pkl")
            return pickles.load(path, io.BytesIO(mapped[begin:end]), KNOWN, lambda pid: stored(pid, storage))

        content = load("data")
        if f"{folder}constants.pkl" not in entries:
            return content
        code = [entry for name, entry in entries.items() if name.startswith(f"{folder}code/") and name.endswith(".py")]
        if sum(entry.file_size for entry in code) > MOST_CODE:
            raise ModelError(f"{path}: not a VGG network: more than {MOST_CODE} characters of TorchScript")
        sources = {
            entry.filename.removeprefix(f"{folder}code/").removesuffix(".py").replace("/", "."): read(entry).decode()
            for entry in code
        }
        inputs = load("traced_inputs") if f"{folder}traced_inputs.pkl" in entries else None
        return torch_script.Script(content, load("constants"), sources, inputs)


def _from_stream(path: Path, file: Any, numbers: Any, opcodes: Iterator[int]) -> Any:
    """The content of a file of the old format, given as a file and as bytes."""
    storages: dict[str, Storage] = {}

    def storage(key: str, count: int, dtype: Any) -> Storage:
        return storages.setdefault(key, Storage(dtype, count))

    # Five pickles: a magic number, the protocol's number, the writer's machine, the content, the keys of the storages.
    # Then an 8-byte count and the numbers of each storage.
    _, _, machine, content, keys = (
        pickles.load(path, file, KNOWN, lambda pid: stored(pid, storage), opcodes) for _ in range(5)
    )
    if not machine.get("little_endian", True):
        raise ModelError(f"{path}: unsupported byte order: written on a big-endian machine")
    place = file.tell()
    for key in keys:
        found = storages[key]
        (count,) = struct.unpack("<q", numbers[place : place + 8])
        if count != found.count:
            raise ValueError("a storage of the wrong length")
        found.view = np.frombuffer(numbers, found.dtype, count, place + 8)
        place += 8 + found.view.nbytes
    return content
