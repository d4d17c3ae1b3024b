"""Files of torch, `.pth` and `.pt`, read without torch: of torch.save, in the zip format since 1.6 and the pickle stream before
it, and of torch.jit.save.

All contain a pickle whose tensors refer to storages of raw numbers, which are mapped from the file. Nothing in the pickle or
in the code of TorchScript is run; see `pickles` and `torch_script`. Layouts from torch/serialization.py (_load, _legacy_load).
"""

import io
import mmap
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from ..network import Network
from . import metadata, pickles, torch_modules, torch_script, torch_writer
from .layouts import Bare, reading
from .pickles import Record
from .state_dict import choice, from_state_dict, labels
from .state_keys import restored
from .torch_tensors import KNOWN, Storage, Tensor, stored

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"
MOST_CODE = 2**20  # characters of TorchScript's code
DEPTH = 5  # of dictionaries and objects in a checkpoint around the weights


def read(path: Path) -> Network | Bare:
    """The network in a file that vgg wrote, or in a state dictionary, whole module, checkpoint with one of them, or TorchScript
    archive.
    """
    content = _content(path)
    if text := torch_writer.described(path):
        return metadata.build(path, text, restored(path, text, _arrays(path, content)))
    if isinstance(content, torch_script.Script):
        return torch_script.read(path, content)
    found = dict(_candidates(content))
    if not found:
        raise ModelError(f"{path}: no state dictionary in it; save that of a model: torch.save(model.state_dict(), path)")
    name = choice(path, [*found])
    chosen = found[name]
    made = from_state_dict(path, _arrays(path, chosen)) if isinstance(chosen, dict) else torch_modules.read(path, chosen)
    return made._replace(labels=labels(_dictionaries(content), made.architecture.classes))


def read_state(path: Path) -> dict[str, Array]:
    """The state dictionary in a file: its arrays by key, mapped.

    Raises:
        ModelError: the file can't be read or contains no state dictionary.
    """
    with reading(path, "torch"):
        content = _content(path)
        for state in (content, *_dictionaries(content)):
            if isinstance(state, dict) and any(isinstance(value, Tensor) for value in state.values()):
                return _arrays(path, state)
    raise ModelError(f"{path}: no state dictionary in it")


def _arrays(path: Path, state: dict[Any, Any]) -> dict[str, Array]:
    """The arrays of a state dictionary. What is no tensor is left out, unless it is a parameter of an unsupported kind."""
    for key, value in state.items():
        if isinstance(value, Record | tuple) and str(key).endswith(("weight", "bias", "_packed_params")):
            kind = value.name if isinstance(value, Record) else "a quantized weight"
            raise ModelError(f"{path}: not a VGG network: {key} is not a tensor of floats, but {kind}")
    return {str(key): value.array() for key, value in state.items() if isinstance(value, Tensor)}


def _dictionaries(content: Any) -> Iterator[dict[Any, Any]]:
    """The dictionaries in a file's content, outer ones first, without those in modules."""
    for _, value in _walk("", content, DEPTH, set()):
        yield _entries(value)


def _candidates(content: Any) -> Iterator[tuple[str, Any]]:
    """The state dictionaries and modules in a file's content, each with the keys that lead to it."""
    for name, value in _walk("", content, DEPTH, set()):
        entries = _entries(value)
        if torch_modules.is_module(value):
            yield name, value
        elif any(_is_state(inner) for inner in entries.values()) and (joined := _joined(entries)):
            yield name, joined
        elif _is_state(value):
            yield name, value


def _walk(name: str, value: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The dictionaries and records in a value, itself included, each once, with the keys that lead to it."""
    if not isinstance(value, dict | Record) or id(value) in seen:
        return
    seen.add(id(value))
    yield name, value
    if depth and not torch_modules.is_module(value):
        entries = _entries(value)
        if not _joined(entries):
            for key, inner in entries.items():
                yield from _walk(f"{name}.{key}" if name else str(key), inner, depth - 1, seen)


def _entries(value: Any) -> dict[Any, Any]:
    """The entries of a dictionary, or of an object that is one or has attributes."""
    if isinstance(value, Record):
        return value.items or (value.state if isinstance(value.state, dict) else {})
    return value if isinstance(value, dict) else {}


def _is_state(value: Any) -> bool:
    """Whether a value is a dictionary with the weight of a convolution."""
    return any(isinstance(one, Tensor) and len(one.shape) == 4 for one in _entries(value).values())


def _joined(entries: dict[Any, Any]) -> dict[str, Tensor]:
    """One state dictionary from those of a network's parts, such as `features` and `classifier`; empty if there are none."""
    parts = {str(key): inner for key, inner in entries.items() if isinstance(inner, dict) and inner}
    tensors = {
        f"{part}.{key}": value for part, inner in parts.items() for key, value in inner.items() if isinstance(value, Tensor)
    }
    ranks = {part: {len(v.shape) for v in inner.values() if isinstance(v, Tensor)} for part, inner in parts.items()}
    trunks = [part for part, found in ranks.items() if 4 in found]
    rest = [part for part, found in ranks.items() if found and 4 not in found]
    whole = len(trunks) == 1 and 2 not in ranks[trunks[0]] and rest
    return tensors if whole and all(2 in ranks[part] for part in rest) else {}


def _content(path: Path) -> Any:
    """What a file's pickle holds."""
    mapped = map_file(path)
    return _from_zip(path, mapped) if mapped[:4] == ZIP_MAGIC else _from_stream(path, mapped)


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


def _from_stream(path: Path, mapped: mmap.mmap) -> Any:
    storages: dict[str, Storage] = {}

    def storage(key: str, count: int, dtype: Any) -> Storage:
        return storages.setdefault(key, Storage(dtype, count))

    # Five pickles: a magic number, the protocol's number, the writer's machine, the content, the keys of the storages.
    # Then an 8-byte count and the numbers of each storage.
    _, _, machine, content, keys = (
        pickles.load(path, mapped, KNOWN, lambda pid: stored(pid, storage))  # type: ignore[arg-type]
        for _ in range(5)
    )
    if not machine.get("little_endian", True):
        raise ModelError(f"{path}: unsupported byte order: written on a big-endian machine")
    place = mapped.tell()
    for key in keys:
        found = storages[key]
        (count,) = struct.unpack("<q", mapped[place : place + 8])
        if count != found.count:
            raise ValueError("a storage of the wrong length")
        found.view = np.frombuffer(mapped, found.dtype, count, place + 8)
        place += 8 + found.view.nbytes
    return content
