"""Workers, which compute the parts of bulk work: in this process, or on a Ray cluster."""

import logging
import os
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..classifier import Classifier
from ..errors import Error, Notice, counted, one_line
from ..extras import require
from ..formats import QuantizedGraph, network_of
from ..labels import resolver
from ..network import Network
from ..parallel import cores
from ..sources import UNLABELLED, Sample
from ..sources.listing import is_container, unpack
from ..sources.samples import Unreadable
from ..sources.stores import is_url
from .folder import READERS, Folder, Plan
from .tasks import Task

Model = tuple[str, Network | QuantizedGraph]  # with its name in the rows

MOST_THREADS = 8  # of a worker on Ray by default
TRIES = 4  # attempts at a part whose worker dies
AHEAD = 2  # parts that a worker on Ray is given: the current one and the next


@dataclass(frozen=True)
class Job:
    """The arguments of a worker, without the networks; see `run`."""

    task: Task
    output: str
    plan: Plan
    names: tuple[str, ...]  # of the models
    engine: str
    threads: int | None
    device: str
    precision: str
    batch_size: int
    workers: int | None


class Worker:
    """Computes parts of a job, with an engine for each network."""

    def __init__(self, job: Job, networks: Sequence[Network | QuantizedGraph]) -> None:
        self._job = job
        self._models = [
            Classifier(network, job.engine, threads=job.threads, device=job.device, precision=job.precision, name=name)
            for name, network in zip(job.names, networks, strict=True)
        ]
        self._folder = Folder(job.output)
        self._inputs = self._folder.inputs(job.plan)
        first = network_of(networks[0])
        self._resolve = resolver(first.architecture.classes, first.labels) if job.task.labelled else None

    def do(self, part: int) -> None:
        """Compute a part and write its file. Raises Error if a store or a folder is not accessible."""
        job, listed = self._job, self._inputs(part)
        if not any(is_url(one.path) or Path(one.path).parent.is_dir() for one in listed):
            where = f"{Path(listed[0].path).parent}: folder not found on {platform.node()}"
            raise Error(f"{where}; all machines must have the images under the same path")
        workers = job.workers or (READERS if is_url(listed[0].path) else job.threads or cores())
        table = job.task.table(self._models, self._contents(listed), workers, job.batch_size)
        self._folder.write(job.plan.name(part), table)

    def _contents(self, listed: Sequence[Sample]) -> Sequence[Sample]:
        """The images of a part. A shard that can't be read is one image with an error."""
        if not is_container(listed[0]):
            return listed
        [shard] = listed
        empty = Unreadable(shard.name, UNLABELLED, shard.path, error=f"{shard.path}: has no images in it")
        return list(unpack(listed, self._resolve, keep_unreadable=True)) or [empty]


def on_this_machine(job: Job, networks: Sequence[Network | QuantizedGraph], parts: Sequence[int]) -> Iterator[int]:
    """Compute parts one after another in this process, and yield each finished part."""
    worker = Worker(job, networks)
    for part in parts:
        worker.do(part)
        yield part


def on_ray(job: Job, networks: Sequence[Network | QuantizedGraph], parts: Sequence[int]) -> Iterator[int]:
    """Compute parts on a Ray cluster, and yield each finished part.

    Ray Data hands the parts' numbers to a pool of workers, reassigns the parts of a worker that dies, and lets the pool grow
    with the cluster. The networks are put into Ray's object store once, where all workers of a machine read them.
    """
    require("the runner ray", "scale", "ray")
    import ray
    import ray.data

    with _connected(ray):
        threads, room = _room(ray, job.threads, job.device)
        pool = ray.data.ActorPoolStrategy(
            # A pool of fixed size would wait forever to replace a machine that is lost.
            min_size=1,
            initial_size=max(1, min(room, len(parts))),
            max_size=len(parts),
            max_tasks_in_flight_per_actor=AHEAD,
        )
        tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
        shared = [ray.put(_contiguous(network)) for network in networks]
        todo = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        done = todo.map_batches(
            _Actor,
            fn_constructor_args=(replace(job, threads=threads), shared, tries),
            batch_size=1,
            compute=pool,
            num_cpus=threads,
            num_gpus=1 if job.device == "cuda" else None,
        )
        try:
            for row in done.iter_rows():
                if row["error"]:
                    raise Error(row["error"])
                yield row["part"]
        except ray.exceptions.RayTaskError:
            raise  # a defect of vgg, with its traceback
        except ray.exceptions.RayError as error:
            raise Error(f"Ray failed ({one_line(error)}); the same command resumes") from None


class _Tries:
    """Counts the attempts at each part. Ray Data would repeat a part forever that always ends its worker."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, part: int) -> int:
        self._begun[part] += 1
        return self._begun[part]


class _Actor:
    """A worker for Ray Data, which calls it with a batch of one part's number."""

    def __init__(self, job: Job, shared: Sequence[Any], tries: Any) -> None:
        self._job, self._shared, self._tries = job, shared, tries

    @cached_property
    def _worker(self) -> Worker:
        import ray

        return Worker(self._job, ray.get(list(self._shared)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        part = int(batch["part"][0])
        try:
            if ray.get(self._tries.begin.remote(part)) > TRIES:
                where = f"row group {part} of {self._job.plan.inputs}"
                raise Error(f"part {part} ended its worker {TRIES} times; one of its images may be the cause ({where})")
            self._worker.do(part)
        except Error as error:  # Ray would wrap it in an error of its own, and repeat the part
            return batch | {"error": [str(error)]}
        return batch | {"error": [""]}


def _room(ray: Any, threads: int | None, device: str) -> tuple[int, int]:
    """The number of threads of each worker, and the number of workers that the cluster has room for.

    A cluster may grow, so a notice says if no machine has room now.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    processors = [int(one.get("CPU", 0)) for one in machines]
    each = threads or min([count for count in processors if count] + [MOST_THREADS])
    rooms = [count // each for count in processors]
    needs = f"{counted(each, 'processor')}, one for each thread of a worker"
    if device == "cuda":
        rooms = [min(room, int(one.get("GPU", 0))) for room, one in zip(rooms, machines, strict=True)]
        needs += ", and a GPU"
    if not any(rooms):
        text = f"no machine of the Ray cluster has {needs}; Ray waits until one with these joins it"
        warnings.warn(Notice(text), stacklevel=3)
    return each, sum(rooms)


def _contiguous(model: Network | QuantizedGraph) -> Network | QuantizedGraph:
    """The model with contiguous arrays, which Ray's object store shares; it would pickle views."""
    network = network_of(model)
    parameters = {
        name: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
        for name, value in network.parameters.items()
    }
    network = replace(network, parameters=parameters)
    return replace(model, network=network) if isinstance(model, QuantizedGraph) else network


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connect to a Ray cluster: that of this process, or of RAY_ADDRESS, or else a temporary one on this machine."""
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "include_dashboard": False}
        if where:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run on one machine contacts no other
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Error(f"Ray can't be reached: {one_line(error)}") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come as exceptions
    ray.data.DataContext.get_current().enable_progress_bars = False  # the command line draws its own
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
