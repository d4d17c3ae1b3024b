"""The output folder of bulk work: its key, the list of its images, and its finished parts.

    _run.json                   the key of the work, and the number of its parts
    _inputs-1b2c3d4e.parquet    the images and shards, a row group for each part
    part-00000-5f60718a.parquet …

A part is complete or absent: it gets its name when it is finished, on a disk by renaming, in an object store by one put. So
the parts that are present are finished, however a run ended, and a part that is computed twice replaces itself. Readers of
Parquet folders ignore names that begin with an underscore.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import json_output
from ..errors import Error
from ..files import replacing
from ..parallel import ahead
from ..sources import Sample, stores
from ..sources.listing import is_container
from ..store import digest_of, refuse_other_work

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

MANIFEST = "_run.json"
READERS = 16  # threads that read from a store, and mostly wait
OURS = (MANIFEST, "_inputs-", "part-")  # how names of files in the folder begin


@dataclass(frozen=True)
class Plan:
    """The work of a folder."""

    run: dict[str, Any]  # the key: everything that decides the rows
    inputs: str  # name of the list's file
    parts: int

    @cached_property
    def id(self) -> str:
        return digest_of(asdict(self))[:8]

    def name(self, part: int) -> str:
        """The name of a part's file."""
        return f"part-{part:05}-{self.id}.parquet"


class Folder:
    """A folder on a disk or in an object store. Raises Error if it can't be read or written."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._system, self._path = stores.filesystem(place)

    def names(self) -> set[str]:
        return {one.name for one in stores.entries(self.place)} if stores.is_folder(self.place) else set()

    def put(self, name: str, content: bytes) -> None:
        """Write a file as a whole."""
        with self._writing():
            if stores.is_url(self.place):
                self._system.pipe_file(f"{self._path}/{name}", content)
            else:
                with replacing(Path(self.place, name)) as file:
                    file.write(content)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with stores.reported(self.place, "can't be written"):
            if not stores.is_url(self.place):
                Path(self.place).mkdir(parents=True, exist_ok=True)
            yield

    def open(self, name: str) -> Any:
        """A file, open for reading."""
        with stores.reported(f"{self.place}/{name}", "can't be read"):
            try:
                return self._system.open(f"{self._path}/{name}", "rb")
            except FileNotFoundError:
                raise Error(f"{self.place}/{name}: file not found; all machines must share the folder") from None

    def tables(self, plan: Plan, columns: Sequence[str]) -> Iterator["pyarrow.Table"]:
        """Columns of each part of finished work; the next parts are read meanwhile."""

        def read(part: int) -> "pyarrow.Table":
            with self.open(plan.name(part)) as file:
                return _reader(file).read(list(columns), use_threads=False)

        return ahead(read, range(plan.parts), READERS, READERS)

    def begin(self, key: Mapping[str, Any], samples: Callable[[], Iterator[Sample]], size: int, fresh: bool = False) -> Plan:
        """The plan of new work in this folder, or of the work to resume.

        Args:
            key: everything that decides the rows, as JSON.
            samples: lists the images and shards; not called if the work is resumed, which has its list.
            size: images per part; a shard is a part of its own.
            fresh: delete earlier work.

        Raises:
            Error: the folder holds other work, or files of another program.
        """
        names = self.names()
        if MANIFEST not in names and any(name[0] not in "._" for name in names):
            raise Error(f"{self.place}: is not empty and holds no run of vgg; choose a new folder")
        if MANIFEST in names and not fresh:
            try:
                with self.open(MANIFEST) as file:
                    plan = Plan(**json.load(file))
            except (ValueError, TypeError):
                raise Error(f"{self.place}/{MANIFEST}: is damaged; use --fresh to start over, or another folder") from None
            if plan.run == key:
                return plan
            if any(name.startswith("part-") for name in names):
                refuse_other_work(self.place, key, plan.run)
        with tempfile.TemporaryDirectory(prefix="vgg-") as temporary:
            file = Path(temporary, "inputs.parquet")
            parts, digest = _write_list(samples(), file, size)
            plan = Plan(dict(key), f"_inputs-{digest[:8]}.parquet", parts)
            with self._writing():
                # Earlier work: the manifest goes after the parts, so that a folder that is half deleted can be started over.
                for name in sorted((one for one in names if one.startswith(OURS)), reverse=True):
                    self._system.rm_file(f"{self._path}/{name}")
                self._system.put_file(str(file), f"{self._path}/{plan.inputs}")  # is valid when the manifest names it
        self.put(MANIFEST, json_output.dumps(asdict(plan), indent=2).encode())
        return plan

    def inputs(self, plan: Plan) -> Callable[[int], list[Sample]]:
        """A function that returns the images of a part, read from the list."""
        file = _reader(self.open(plan.inputs))
        return lambda part: [
            Sample(path, row["class"], path, size=row["size"])
            for row in file.read_row_group(part, use_threads=False).to_pylist()
            for path in [os.fsdecode(row["path"])]
        ]

    def missing(self, plan: Plan) -> list[int]:
        """The parts that are not finished."""
        names = self.names()
        return [part for part in range(plan.parts) if plan.name(part) not in names]

    def write(self, name: str, table: "pyarrow.Table") -> None:
        from pyarrow import parquet

        content = io.BytesIO()
        parquet.write_table(table, content, compression="zstd")
        self.put(name, content.getvalue())


def _reader(file: IO[bytes]) -> "parquet.ParquetFile":
    """A Parquet file, for reads with `use_threads=False`.

    Arrow's own threads read nothing then. They may still hold a Python file when the process ends, which aborts it:
    https://github.com/apache/arrow/issues/33975.
    """
    from pyarrow import parquet

    return parquet.ParquetFile(file, pre_buffer=False)


def _write_list(samples: Iterable[Sample], path: Path, size: int) -> tuple[int, str]:
    """Write the list of images, and return the number of its parts and its digest."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema({"path": pyarrow.binary(), "class": pyarrow.int32(), "size": pyarrow.int64()})
    digest, parts = hashlib.sha256(), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(samples, size):
            for one in group:
                digest.update(f"{one.path}\0{one.target}\n".encode(errors="surrogateescape"))
            columns = [[os.fsencode(one.path) for one in group], [one.target for one in group], [one.size for one in group]]
            writer.write_table(pyarrow.table(columns, schema))
            parts += 1
    return parts, digest.hexdigest()


def _groups(samples: Iterable[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """The samples of each part."""
    group: list[Sample] = []
    for one in samples:
        if is_container(one):
            yield [one]
            continue
        group.append(one)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
