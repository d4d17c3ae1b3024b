"""The folder that a run writes to: what the run is, the list of its pictures, and its finished parts.

    _run.json                   what decides the rows, and how many parts there are
    _inputs-1b2c3d4e.parquet    the pictures and shards, a row group for each part
    part-00000-5f60718a.parquet …

A part is there whole or not at all: it is put under its name when it is finished, on a disk by renaming, in an object store by
one put. So what is there is done, however a run ended, and a part that is computed twice takes its own place. Readers of
Parquet folders pass over names with an underscore.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Error, one_line
from ..files import replacing
from ..sources import Sample
from .places import asking, filesystem, is_local, is_shard, sample

if TYPE_CHECKING:
    import pyarrow

MANIFEST = "_run.json"


@dataclass(frozen=True)
class Plan:
    """What a run is, as its folder keeps it."""

    run: dict[str, Any]  # what decides the rows: the verb and its options, the networks, the places of the pictures
    inputs: str  # the list's file
    parts: int

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def name(self, part: int) -> str:
        """Of a part's file."""
        return f"part-{part:05}-{self.id}.parquet"


class Folder:
    """A folder on a disk or in an object store. Raises Error where it can't be read or written."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._system, self._path = filesystem(place)

    def names(self) -> set[str]:
        with asking(self.place):
            found = self._system.ls(self._path, detail=True) if self._system.exists(self._path) else []
        return {Path(one["name"]).name for one in found}

    def put(self, name: str, content: bytes) -> None:
        """A file, whole or not at all."""
        with self._writing():
            if is_local(self._system):
                with replacing(Path(self._path, name)) as file:
                    file.write(content)
            else:
                self._system.pipe_file(f"{self._path}/{name}", content)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            if is_local(self._system):
                Path(self._path).mkdir(parents=True, exist_ok=True)
            yield
        except Error:
            raise
        except Exception as error:  # stores raise what they like
            raise Error(f"{self.place}: can't be written: {one_line(error)}") from None

    def open(self, name: str) -> Any:
        """A file open for reading."""
        try:
            return self._system.open(f"{self._path}/{name}", "rb")
        except FileNotFoundError:
            raise Error(f"{self.place}: has no {name}; is it there on every machine?") from None
        except Exception as error:
            raise Error(f"{self.place}/{name}: can't be read: {one_line(error)}") from None

    def begin(self, run: dict[str, Any], samples: Callable[[], Iterator[Sample]], size: int) -> Plan:
        """The plan of a run that begins here, or goes on here.

        Args:
            run: what decides the rows, as JSON holds it.
            samples: lists the pictures and shards. A run that goes on has its list already.
            size: pictures a part; a shard is a part of its own.

        Raises:
            Error: another run has written here, or somebody else.
        """
        names = self.names()
        if MANIFEST in names:
            try:
                with self.open(MANIFEST) as file:
                    there = Plan(**json.load(file))
            except (ValueError, TypeError):
                raise Error(f"{self.place}/{MANIFEST}: is damaged, or of another version of vgg") from None
            if there.run == run:
                return there
            if any(name.startswith("part-") for name in names):
                other = next(key for key in (*run, *there.run) if there.run.get(key) != run.get(key))
                raise Error(f"{self.place}: holds another run (its {other} differ); write this one to another folder")
        elif any(name[0] not in "._" for name in names):
            raise Error(f"{self.place}: is not empty, and holds no run of vgg; write to a new folder")
        with tempfile.NamedTemporaryFile(prefix="vgg-") as file:
            parts, digest = _write_list(samples(), file, size)
            file.flush()
            plan = Plan(run, f"_inputs-{digest[:8]}.parquet", parts)
            with self._writing():  # not whole at once, but it counts only when the manifest names it
                self._system.put_file(file.name, f"{self._path}/{plan.inputs}")
        self.put(MANIFEST, json.dumps(asdict(plan), indent=2).encode())
        return plan

    def missing(self, plan: Plan) -> list[int]:
        """The parts that are not there yet."""
        names = self.names()
        return [part for part in range(plan.parts) if plan.name(part) not in names]

    def write(self, name: str, table: "pyarrow.Table") -> None:
        from pyarrow import parquet

        content = io.BytesIO()
        parquet.write_table(table, content, compression="zstd")
        self.put(name, content.getvalue())


class Inputs:
    """The list of a run's pictures, read a part at a time."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(folder.open(plan.inputs))

    def part(self, number: int) -> list[Sample]:
        return [sample(*row.values()) for row in self._file.read_row_group(number).to_pylist()]


def _write_list(samples: Iterable[Sample], file: Any, size: int) -> tuple[int, str]:
    """Write the list, and say how many parts it has, and its digest."""
    import pyarrow
    from pyarrow import parquet

    kinds = pyarrow.schema({"path": pyarrow.string(), "class": pyarrow.int32(), "size": pyarrow.int64()})
    digest, parts = hashlib.sha256(), 0
    with parquet.ParquetWriter(file, kinds, compression="zstd") as writer:
        for group in _groups(samples, size):
            rows = [(one.path, one.target, one.size) for one in group]
            writer.write_table(pyarrow.table([list(column) for column in zip(*rows, strict=True)], kinds))
            digest.update("".join(f"{path}\0{target}\n" for path, target, _ in rows).encode())
            parts += 1
    return parts, digest.hexdigest()


def _groups(samples: Iterable[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """The samples of each part."""
    group: list[Sample] = []
    for one in samples:
        if is_shard(one):
            yield [one]
            continue
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
