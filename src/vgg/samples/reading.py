"""Reading of sample data: a tarball, a folder, or an old `.npz` file. Any of them may be damaged or hostile.

Nothing is unpacked under a name from the archive: tensors are read into memory, the model into a temporary file. Members that
don't belong to sample data are refused anyway, so that they are noticed.
"""

import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np

from ..arrays import Array
from ..errors import Error, one_line
from ..files import open_file, reason
from ..formats import onnx_file

# Limits that no real sample data reaches. Weights hardly compress, so a high ratio marks a decompression bomb.
MAX_MEMBERS = 1000
MAX_TENSOR_BYTES = 64 * 2**20
MAX_RATIO, ANY_RATIO_BYTES = 200, 64 * 2**20
BLOCK = 2**20

_MEMBER = re.compile(r"(?:.*/)?(?:(test_data_set_\d+)/(input|output)_(\d+)\.pb|(test_data_\d+)\.npz|[^/]+\.onnx)")


@dataclass
class Set:
    """One set of sample data."""

    name: str  # such as test_data_set_0
    inputs: dict[int, Array] = field(default_factory=dict)  # float32 [batch, 3, height, width]
    outputs: dict[int, tuple[str, Array]] = field(default_factory=dict)  # names of the outputs, and values


@contextmanager
def opened(place: Path, *, with_model: bool) -> Iterator[tuple[list[Set], Path | None]]:
    """The sets at a place and, if `with_model`, the model there or None. Raises Error for damaged or hostile files."""
    sets: dict[str, Set] = {}
    models: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, size, content in _members(place):
                match = _MEMBER.fullmatch(name)
                if not match or PurePosixPath(name).name.startswith("."):  # such as ._model.onnx of macOS
                    continue
                if not name.endswith(".onnx"):
                    if size > MAX_TENSOR_BYTES:
                        raise Error(f"{place}: {name} has {size:,} bytes, too many for sample data")
                    _add(sets, match, content.read(), f"{place}: {name}")
                elif with_model:
                    models.append(_on_disk(content, Path(folder) / PurePosixPath(name).name))
        except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise Error(f"{place}: damaged, incomplete, or not a tarball ({one_line(error)})") from None
        except OSError as error:
            raise Error(f"{place}: can't be unpacked: {reason(error)}") from None
        if len(models) > 1:
            raise Error(f"{place}: ambiguous: {len(models)} models; name a model to check")
        yield sorted(sets.values(), key=lambda one: (len(one.name), one.name)), models[0] if models else None


def _members(place: Path) -> Iterator[tuple[str, int, io.BufferedReader]]:
    """The files at a place that can be parts of sample data: names, sizes, contents."""
    if place.is_dir() or place.suffix == ".npz":
        folder = place if place.is_dir() else place.parent
        data = [*folder.glob("test_data_set_*/*.pb"), *folder.glob("test_data_*.npz")] if place.is_dir() else [place]
        for path in [*folder.glob("*.onnx"), *data]:
            with open_file(path) as file:
                # A single .npz file can have any name.
                name = "test_data_0.npz" if path == place else path.relative_to(folder).as_posix()
                yield name, path.stat().st_size, file
        return
    with open_file(place) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = _Limited(cast(BinaryIO, gzip.GzipFile(fileobj=file) if compressed else file), place)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar):
                inside = PurePosixPath(member.name)
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.sparse is None
                safe = member.name.isprintable() and not inside.is_absolute() and ".." not in inside.parts
                if not (plain and safe and count < MAX_MEMBERS):
                    raise Error(f"{place}: untrusted archive: {member.name!r} does not belong to sample data")
                if not member.isdir():
                    yield member.name, member.size, cast(io.BufferedReader, tar.extractfile(member))
        while rest := stream.read(BLOCK):  # tarfile takes a damaged header for the end; gzip's checksum is the last
            if any(rest):
                raise tarfile.ReadError("data after the end")


class _Limited:
    """A stream for tarfile that refuses to unpack far more than its own size, or to read that much at once."""

    def __init__(self, stream: BinaryIO, place: Path) -> None:
        self.stream, self.place, self.tell = stream, place, stream.tell
        self.limit = max(ANY_RATIO_BYTES, MAX_RATIO * place.stat().st_size)

    def read(self, size: int) -> bytes:
        self._check(size <= BLOCK and self.tell() + size <= self.limit)
        return self.stream.read(size)

    def seek(self, to: int) -> int:
        self._check(to <= self.limit)
        return self.stream.seek(to)

    def _check(self, allowed: bool) -> None:
        if not allowed:
            raise Error(f"{self.place}: untrusted archive: it unpacks to far more than its own size")


def _on_disk(content: io.BufferedReader, spool: Path) -> Path:
    """The path of a model: its own if it is a file, otherwise that of a temporary copy."""
    if isinstance(content.raw, io.FileIO):
        return Path(content.name)
    with open(spool, "xb") as file:
        shutil.copyfileobj(content, file, BLOCK)
    return spool


def _add(sets: dict[str, Set], match: re.Match[str], data: bytes, name: str) -> None:
    """Add the content of a file to its set."""
    group, role, index, old = match.groups()
    one = sets.setdefault(group or old, Set(group or old))
    try:
        if old:
            inputs, outputs = (_npy(data, f"{role}.npy") for role in ("inputs", "outputs"))
            one.inputs.update(enumerate(inputs if inputs.ndim == 5 else inputs[None]))
            one.outputs.update(enumerate(("", value) for value in (outputs if outputs.ndim == 3 else outputs[None])))
        else:
            tensor_name, value = _tensor(data)
            if role == "input":
                one.inputs[int(index)] = value
            else:
                one.outputs[int(index)] = tensor_name, value
    except Exception as error:  # protobuf, zip and NumPy raise many kinds of errors for damaged bytes
        raise Error(f"{name}: damaged, or not sample data ({one_line(error)})") from None


def _tensor(data: bytes) -> tuple[str, Array]:
    """The name and the values of a TensorProto, as float32."""
    name, values = onnx_file.tensor(data)
    if values.dtype.kind != "f":
        raise ValueError("not a tensor of floats")
    return name, np.ascontiguousarray(values, np.float32)


def _npy(data: bytes, name: str) -> Array:
    """An array of an `.npz` file, as float32. Pickles are not loaded; memory is allocated for existing data only."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.getinfo(name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.file_size > MAX_TENSOR_BYTES:
            raise ValueError(f"{name} is too large, or has an unsupported compression")
        with archive.open(entry) as packed:
            content = io.BytesIO(packed.read(entry.file_size))
    first_version = np.lib.format.read_magic(content) == (1, 0)
    header = np.lib.format.read_array_header_1_0 if first_version else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(content)
    if dtype.kind != "f":
        raise ValueError(f"{name} holds {dtype}, not floats")
    values = np.frombuffer(content.getbuffer(), dtype, offset=content.tell())
    return np.ascontiguousarray(values.reshape(shape, order="F" if by_columns else "C"), np.float32)
