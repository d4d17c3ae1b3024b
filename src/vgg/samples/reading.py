"""Sample data as it lies on disk: a tarball, a folder, or an old `.npz` file. Any of them may be damaged, or hostile.

Nothing is unpacked under a name of an archive's choosing: tensors are read into memory, the model into a temporary file. What
has no place in sample data is refused all the same, so that it is noticed.
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
from ..files import reason

# What is more than any real sample data has. Weights hardly shrink: what unpacks to far more than its own size is a bomb.
MAX_MEMBERS = 1000
MAX_TENSOR_BYTES = 64 * 2**20
MAX_RATIO, ANY_RATIO_BYTES = 200, 64 * 2**20
BLOCK = 2**20

_PARTS = re.compile(r"(?:.*/)?(?:(test_data_set_\d+)/(input|output)_(\d+)\.pb|(test_data_\d+)\.npz|[^/]+\.onnx)")


@dataclass
class Set:
    """One set of sample data."""

    name: str  # such as test_data_set_0
    inputs: dict[int, Array] = field(default_factory=dict)  # float32 [batch, 3, height, width]
    outputs: dict[int, tuple[str, Array]] = field(default_factory=dict)  # the outputs' names, and values


@contextmanager
def opened(place: Path, *, wanted: bool) -> Iterator[tuple[list[Set], Path | None]]:
    """The sets at a place, and the model there, if it is `wanted` and there is one."""
    sets: dict[str, Set] = {}
    models: list[Path] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, size, content in _parts(place):
                found = _PARTS.fullmatch(name)
                if not found or PurePosixPath(name).name.startswith("."):  # such as macOS's ._model.onnx
                    continue
                if not name.endswith(".onnx"):
                    if size > MAX_TENSOR_BYTES:
                        raise Error(f"{place}: {name} has {size:,} bytes, too many for sample data")
                    _take(sets, found, content.read(), f"{place}: {name}")
                elif wanted:
                    models.append(_on_disk(content, Path(folder) / PurePosixPath(name).name))
        except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise Error(f"{place}: is damaged, cut short, or no tarball ({one_line(error)})") from None
        except OSError as error:
            raise Error(f"{place}: can't be unpacked: {reason(error)}") from None
        if len(models) > 1:
            raise Error(f"{place}: holds {len(models)} models, and it is not clear which one is meant")
        yield sorted(sets.values(), key=lambda one: (len(one.name), one.name)), models[0] if models else None


def _parts(place: Path) -> Iterator[tuple[str, int, io.BufferedReader]]:
    """The files at a place that sample data may be made of: names, sizes, contents."""
    if place.is_dir() or place.suffix == ".npz":
        folder = place if place.is_dir() else place.parent
        data = [*folder.glob("test_data_set_*/*.pb"), *folder.glob("test_data_*.npz")] if place.is_dir() else [place]
        for path in [*folder.glob("*.onnx"), *data]:
            with open(path, "rb") as file:
                # A lone .npz may have any name.
                name = "test_data_0.npz" if path == place else path.relative_to(folder).as_posix()
                yield name, path.stat().st_size, file
        return
    with open(place, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = _Guarded(cast(BinaryIO, gzip.GzipFile(fileobj=file) if zipped else file), place)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar):
                inside = PurePosixPath(member.name)
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.sparse is None
                safe = member.name.isprintable() and not inside.is_absolute() and ".." not in inside.parts
                if not (plain and safe and count < MAX_MEMBERS):
                    raise Error(f"{place}: holds {member.name!r}, which has no place in sample data; it is not to be trusted")
                if not member.isdir():
                    yield member.name, member.size, cast(io.BufferedReader, tar.extractfile(member))
        while rest := stream.read(BLOCK):  # a damaged header looks like the end; and gzip's checksum comes last
            if any(rest):
                raise tarfile.ReadError("there is more behind its end")


class _Guarded:
    """A stream for tarfile that refuses what only a bomb asks for: to unpack far more than there is, or to read it at once."""

    def __init__(self, stream: BinaryIO, place: Path) -> None:
        self.stream, self.place = stream, place
        self.most = max(ANY_RATIO_BYTES, MAX_RATIO * place.stat().st_size)

    def read(self, size: int) -> bytes:
        self._check(size <= BLOCK and self.stream.tell() + size <= self.most)
        return self.stream.read(size)

    def seek(self, to: int) -> int:
        self._check(to <= self.most)
        return self.stream.seek(to)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, fine: bool) -> None:
        if not fine:
            raise Error(f"{self.place}: would unpack to far more than its own size; it is not to be trusted")


def _on_disk(content: io.BufferedReader, spool: Path) -> Path:
    """A model as a file: itself where it is one, else unpacked."""
    if isinstance(content.raw, io.FileIO):
        return Path(content.name)
    with open(spool, "xb") as file:
        shutil.copyfileobj(content, file, BLOCK)
    return spool


def _take(sets: dict[str, Set], found: re.Match[str], data: bytes, name: str) -> None:
    """Add what a file holds to the set that it belongs to."""
    group, role, index, old = found.groups()
    one = sets.setdefault(group or old, Set(group or old))
    try:
        if old:
            inputs, outputs = (_npy(data, f"{role}.npy") for role in ("inputs", "outputs"))
            one.inputs.update(enumerate(inputs if inputs.ndim == 5 else inputs[None]))
            one.outputs.update(
                (place, ("", value)) for place, value in enumerate(outputs if outputs.ndim == 3 else outputs[None])
            )
        else:
            title, value = _tensor(data)
            if role == "input":
                one.inputs[int(index)] = value
            else:
                one.outputs[int(index)] = title, value
    except Exception as error:  # protobuf, zip and NumPy raise nearly anything on damaged bytes
        raise Error(f"{name} is damaged, or no sample data ({one_line(error)})") from None


def _tensor(data: bytes) -> tuple[str, Array]:
    """The name and the values of a TensorProto, as float32."""
    from onnx import TensorProto, numpy_helper

    tensor = TensorProto.FromString(data)
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE) or tensor.external_data:
        raise ValueError("not a tensor of floats that holds its own numbers")
    return tensor.name, np.ascontiguousarray(numpy_helper.to_array(tensor), np.float32)


def _npy(data: bytes, name: str) -> Array:
    """An array of an `.npz` file, as float32. Pickled objects aren't loaded, nothing is allocated that isn't there."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.getinfo(name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.file_size > MAX_TENSOR_BYTES:
            raise ValueError(f"{name} is too large, or packed in a way that NumPy doesn't")
        with archive.open(entry) as packed:
            content = io.BytesIO(packed.read(entry.file_size))
    old = np.lib.format.read_magic(content) == (1, 0)
    header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(content)
    if dtype.kind != "f":
        raise ValueError(f"{name} holds {dtype}, not floats")
    values = np.frombuffer(content.getbuffer(), dtype, offset=content.tell())
    return np.ascontiguousarray(values.reshape(shape, order="F" if by_columns else "C"), np.float32)
