"""Bulk work: millions of pictures in parts, on one machine or, through Ray Data, on many.

The pictures are listed once and cut into parts. A worker takes a part at a time, and writes what comes of it as one Parquet
file; nothing is gathered anywhere. A run that is cut goes on with the parts that are missing. docs/bulk.md tells more.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Error
from ..evaluation.results import TOP
from ..evaluation.summary import Tally, settings
from ..parallel import ahead
from ..views import BATCH_SIZE
from .folder import Folder, Plan
from .places import is_url, labelled, pictures
from .tasks import Classify, Describe, Score, Task
from .workers import READERS, Job, Model, on_ray, on_this_machine

if TYPE_CHECKING:
    import pyarrow

__all__ = ["PART", "SCALES", "Classify", "Describe", "Finished", "Score", "Task", "records", "run"]

PART = 1000  # pictures a part: a minute of VGG-16 on two cores, and ten million pictures are ten thousand files
SCALES = {"local": on_this_machine, "ray": on_ray}
SHOWN = 5  # errors that an outcome has; all are in the rows


@dataclass(frozen=True)
class Finished:
    """A run that is done. The rows are in the folder's parts, nowhere else."""

    folder: Folder
    plan: Plan
    pictures: int  # a shard that can't be read counts as one
    failed: int
    errors: list[str]  # of the first few that failed

    def tables(self, columns: Sequence[str]) -> Iterator["pyarrow.Table"]:
        """Some columns of each part; the next parts are read meanwhile."""
        return _tables(self.folder, self.plan, columns)


def _tables(folder: Folder, plan: Plan, columns: Sequence[str]) -> Iterator["pyarrow.Table"]:
    from pyarrow import parquet

    def read(part: int) -> "pyarrow.Table":
        with folder.open(plan.name(part)) as file:
            return parquet.read_table(file, columns=list(columns))

    return ahead(read, range(plan.parts), READERS, READERS)


def run(
    task: Task,
    models: Sequence[Model],
    places: Sequence[str],
    output: str,
    *,
    scale: str = "local",
    engine: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    part: int = PART,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Finished:
    """Do a task with all pictures at some places, and write its rows to a folder, as Parquet files.

    A run that was cut goes on where the same is asked for again, with the pictures that were there when it began.

    Args:
        task: `Classify`, `Describe` or `Score`, which say what the rows are.
        models: networks with their names; one, or for `Score` several with the same classes.
        places: of pictures: files, folders, globs, `.tar` shards, or URLs of such; for `Score` a single one of a folder
            of class folders, a list or shards. In rows, pictures are called by their absolute paths or URLs.
        output: a folder, or a URL of one; new, or that of the same run.
        scale: `local`, in this process; or `ray`, through Ray Data, on the cluster that RAY_ADDRESS names, or else on one
            that is started on this machine alone.
        engine, device: of each worker, see `vgg.load`.
        threads: of each worker's engine; as many as there are cores when not given, with Ray at most 8.
        batch_size: views that an engine gets at once.
        workers: threads of each worker that read and decode; as many as the engine's when not given, from stores 16.
        part: pictures that are one task, and one file. A shard is always one.
        progress: called with the number of parts that are done, and of all.

    Raises:
        Error: there are no pictures, a place can't be read, the folder holds something else, or an option doesn't fit.
    """
    if scale not in SCALES:
        raise Error(f"no scale is called {scale!r}; there are {', '.join(SCALES)}")
    places = [place if is_url(place) else str(Path(place).absolute()) for place in places]
    output = output if is_url(output) else str(Path(output).absolute())
    first = models[0][1]
    decides = {
        "verb": type(task).__name__.lower(),
        "options": asdict(task),  # type: ignore[call-overload]
        "models": [[name, network.sha256()] for name, network in models],
        "preprocessing": [asdict(network.preprocessing) for _, network in models],
        "labels": first.labels.text() if first.labels else None,
        "pictures": places,
        "part": part,
    }

    def samples() -> Iterator[Any]:
        if task.labelled:
            return labelled(places[0], first.architecture.classes, first.labels)
        return pictures(places)

    folder = Folder(output)
    plan = folder.begin(json.loads(json.dumps(decides)), samples, part)
    missing = folder.missing(plan)
    job = Job(task, output, plan, tuple(name for name, _ in models), engine, threads, device, batch_size, workers)
    progress(plan.parts - len(missing), plan.parts)
    for number, _ in enumerate(SCALES[scale](job, [network for _, network in models], missing) if missing else (), 1):
        progress(plan.parts - len(missing) + number, plan.parts)
    return _counted(folder, plan, len(models) + (isinstance(task, Score) and task.fuse))


def _counted(folder: Folder, plan: Plan, rows: int) -> Finished:
    """The outcome of a finished run with so many rows a picture, from what is written."""
    total = failed = 0
    errors: list[str] = []
    for table in _tables(folder, plan, ["error"]):
        total += len(table) // rows
        broken = table["error"].drop_null()
        failed += len(broken) // rows
        errors += broken[: rows * (SHOWN - len(errors))].to_pylist()[::rows]
    return Finished(folder, plan, total, failed, errors)


def records(outcome: Finished, task: Score, models: Sequence[Model]) -> list[dict[str, Any]]:
    """What `vgg.evaluation.records` says, of a run whose task was `Score`, summed up part by part.

    How it was computed is not known: parts may come of different engines and machines.

    Raises Error when no picture could be read.
    """
    if outcome.failed == outcome.pictures:
        raise Error(f"{outcome.folder.place}: none of its {outcome.pictures:,} pictures could be read; {outcome.errors[0]}")
    names = [name for name, _ in models] + ([" + ".join(name for name, _ in models)] if task.fuse else [])
    ranks = range(1, min(TOP, models[0][1].architecture.classes) + 1)
    best, sure = [f"class_{rank}" for rank in ranks], [f"score_{rank}" for rank in ranks]
    tallies = [Tally() for _ in names]
    for table in outcome.tables(["class", "cross_entropy", "error", *best, *sure]):
        good = table.filter(table["error"].is_null())
        columns = {name: good[name].to_numpy() for name in good.column_names if name != "error"}
        top, scores = (np.stack([columns[name] for name in group], 1) for group in (best, sure))
        for index, tally in enumerate(tallies):  # a picture's rows follow one another
            one = slice(index, None, len(names))
            tally.add(columns["class"][one], top[one], scores[one], columns["cross_entropy"][one], top[:: len(names), 0])
    found = []
    for index, (name, tally) in enumerate(zip(names, tallies, strict=True)):
        used = [network for _, network in models[index : index + 1] or models]
        about = {"model": name, "images": tally.images, "failed": outcome.failed} | tally.accuracies()
        about |= {"real": None, "real_images": None} | tally.others(index > 0) | settings(used, task.protocol)
        found.append(about | {"engine": None, "images_per_second": None})
    return found
