"""Bulk work: millions of images in parts, on one machine or, through Ray Data, on many.

The images are listed once and divided into parts. A worker computes a part at a time and writes its rows as one Parquet file;
nothing is collected in one place. An interrupted run resumes with the missing parts. See docs/bulk.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error
from ..evaluation.results import TOP
from ..evaluation.summary import Tally, settings
from ..extras import require
from ..formats import network_of
from ..predictions import THRESHOLD
from ..progress import Progress, silent
from ..sources import Sample, listing, stores
from ..store import key_of
from ..views import BATCH_SIZE
from .folder import Folder, Plan
from .tasks import Classify, Describe, Score, Task
from .workers import Job, Model, on_ray, on_this_machine

__all__ = ["PART", "RUNNERS", "Classify", "Describe", "Finished", "Score", "Task", "records", "run"]

PART = 1000  # images per part: a minute of VGG-16 on two cores; ten million images are ten thousand files
RUNNERS = {"local": on_this_machine, "ray": on_ray}
SHOWN = 5  # errors in `Finished`; the rows have all of them


@dataclass(frozen=True)
class Finished:
    """A finished run. The rows are in the files of the folder."""

    folder: Folder
    plan: Plan
    images: int  # a shard that can't be read counts as one
    failed: int
    errors: list[str]  # the first few


def run(
    task: Task,
    models: Sequence[Model],
    places: Sequence[str],
    output: str,
    *,
    runner: str = "local",
    fresh: bool = False,
    engine: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    part: int = PART,
    progress: Progress = silent,
) -> Finished:
    """Perform a task on all images at some places, and write its rows to a folder, as Parquet files.

    An interrupted run resumes if the function is called again with the same arguments. It keeps to the images that were present
    when it began.

    Args:
        task: `Classify`, `Describe` or `Score`, which define the rows.
        models: networks with their names; one, or for `Score` several with the same classes.
        places: files, folders, globs, list files, shards or URLs, see `vgg.sources`; for `Score` a single place of labelled
            images. The rows name images by absolute path or URL.
        output: folder, or URL of one; new, or that of the same run.
        runner: `local`, in this process; or `ray`, through Ray Data, on the cluster of RAY_ADDRESS, or else on a temporary
            one on this machine.
        fresh: delete earlier work in the folder, and start over.
        engine: of each worker, as for `vgg.load`.
        device: of each worker's engine, as for `vgg.load`.
        precision: of each worker's engine, as for `vgg.load`.
        threads: number of threads of each worker's engine; the number of cores by default, with Ray at most 8.
        batch_size: number of views in an engine's batch.
        workers: number of threads of each worker that read and decode; by default that of the engine, 16 for URLs.
        part: images per part, which is one file. A shard is always a part.
        progress: called with the number of finished parts.

    Raises:
        Error: there are no images, a place can't be read, the folder holds other work, or an option is not supported.
    """
    if runner not in RUNNERS:
        raise Error(f"unknown runner {runner!r}; choose from {', '.join(RUNNERS)}")
    require("bulk work", "scale", "pyarrow", "fsspec")
    places = list(map(_absolute, places))
    output = _absolute(output)
    networks = [network_of(model) for _, model in models]
    first = networks[0]
    if not isinstance(task, Describe):
        for network in networks:
            network.check_values(["logits"])
    if isinstance(task, Score) and first.architecture.output == "sigmoid":
        raise Error("several classes of an image are evaluated in one piece; leave out --output")
    # Parts may come from different machines, so the key has the engine that was requested, which may be `auto`, and neither
    # its version nor the instruction set.
    key = key_of(
        verb=type(task).__name__.lower(),
        options=asdict(task),  # type: ignore[call-overload]
        models=[[name, model.sha256()] for name, model in models],
        architectures=[asdict(network.architecture) for network in networks],
        preprocessing=[asdict(network.preprocessing) for network in networks],
        labels=first.labels.text() if first.labels else None,
        engine=engine,
        device=device,
        precision=precision,
        images=places,
        part=part,
    )

    def samples() -> Iterator[Sample]:
        if task.labelled:
            return _some(places[0], listing.labelled(places[0], first.architecture.classes, first.labels))
        return (one for place in places for one in _some(place, listing.images(place)))

    folder = Folder(output)
    plan = folder.begin(key, samples, part, fresh)
    missing = folder.missing(plan)
    job = Job(task, output, plan, tuple(name for name, _ in models), engine, threads, device, precision, batch_size, workers)
    done, doing = plan.parts - len(missing), f"{task.doing} in parts"
    progress(doing, done, plan.parts)
    for _ in RUNNERS[runner](job, [model for _, model in models], missing) if missing else ():
        done += 1
        progress(doing, done, plan.parts)
    return _finished(folder, plan, len(models) + (isinstance(task, Score) and task.fuse))


def _absolute(place: str) -> str:
    place = stores.normalised(place)
    return place if stores.is_url(place) else str(Path(place).absolute())


def _some(place: str, found: Iterator[Sample]) -> Iterator[Sample]:
    """The images and shards found at a place. Raises Error if there are none."""
    first = next(found, None)
    if first is None:
        raise Error(f"{place}: has no images in it")
    yield first
    yield from found


def _finished(folder: Folder, plan: Plan, rows: int) -> Finished:
    """The summary of a run with this number of rows per image, from its files."""
    total = failed = 0
    errors: list[str] = []
    for table in folder.tables(plan, ["error"]):
        total += len(table) // rows
        broken = table["error"].drop_null()
        failed += len(broken) // rows
        errors += broken[: rows * (SHOWN - len(errors))].to_pylist()[::rows]
    return Finished(folder, plan, total, failed, errors)


def records(outcome: Finished, task: Score, models: Sequence[Model], threshold: float = THRESHOLD) -> list[dict[str, Any]]:
    """The records of `vgg.evaluation.records`, for a run of `Score`, computed part by part.

    The engine and its speed are unknown: parts may come from different machines.

    Raises Error if no image could be read.
    """
    if outcome.failed == outcome.images:
        raise Error(f"{outcome.folder.place}: none of the {outcome.images:,} images could be read; {outcome.errors[0]}")
    names = [name for name, _ in models] + ([" + ".join(name for name, _ in models)] if task.fuse else [])
    ranks = range(1, min(TOP, network_of(models[0][1]).architecture.classes) + 1)
    best, sure = [f"class_{rank}" for rank in ranks], [f"score_{rank}" for rank in ranks]
    tallies = [Tally(network_of(models[0][1]).architecture.classes) for _ in names]
    for table in outcome.folder.tables(outcome.plan, ["class", "cross_entropy", "error", *best, *sure]):
        good = table.filter(table["error"].is_null())
        columns = {name: good[name].to_numpy() for name in good.column_names if name != "error"}
        top, scores = (np.stack([columns[name] for name in group], 1) for group in (best, sure))
        for index, tally in enumerate(tallies):  # the rows of an image are consecutive
            one = slice(index, None, len(names))
            tally.add(columns["class"][one], top[one], scores[one], columns["cross_entropy"][one], top[:: len(names), 0])
    found = []
    for index, (name, tally) in enumerate(zip(names, tallies, strict=True)):
        used = [network_of(model) for _, model in models[index : index + 1] or models]
        about = {"model": name, "images": tally.images, "failed": outcome.failed} | tally.accuracies()
        about |= {"real": None, "real_images": None} | tally.others(index > 0, threshold) | settings(used, task.protocol)
        found.append(about | {"engine": None, "images_per_second": None})
    return found
