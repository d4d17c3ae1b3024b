"""Who does the parts of a run: this process, or an engine a worker on Ray."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..classifier import Classifier
from ..errors import Error, one_line
from ..formats import QuantizedGraph, network_of
from ..labels import resolver
from ..network import Network
from .folder import Folder, Inputs, Plan
from .places import is_url, opened
from .tasks import Task

Model = tuple[str, Network | QuantizedGraph]  # and what it is called in the rows

READERS = 16  # threads that read from a store, which mostly wait
MOST_THREADS = 8  # of a worker on Ray, when nobody says how many
TRIES = 4  # at a part whose worker dies
AHEAD = 2  # parts that a worker on Ray has: the one that it is at, and the next


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, but the networks; see `run`."""

    task: Task
    output: str
    plan: Plan
    names: tuple[str, ...]  # of the models
    engine: str
    threads: int | None
    device: str
    batch_size: int
    workers: int | None


class Worker:
    """Does parts of a job, with an engine of its own for each network."""

    def __init__(self, job: Job, networks: Sequence[Network | QuantizedGraph]) -> None:
        self._job = job
        self._models = [
            Classifier(network, job.engine, threads=job.threads, device=job.device, name=name)
            for name, network in zip(job.names, networks, strict=True)
        ]
        self._folder = Folder(job.output)
        self._inputs = Inputs(self._folder, job.plan)
        first = network_of(networks[0])
        self._resolve = resolver(first.architecture.classes, first.labels) if job.task.labelled else None

    def do(self, part: int) -> None:
        job, listed = self._job, self._inputs.part(part)
        workers = job.workers or (READERS if is_url(listed[0].path) else job.threads or os.cpu_count() or 1)
        with opened(listed, self._resolve) as samples:
            table = job.task.table(self._models, samples, workers, job.batch_size)
        self._folder.write(job.plan.name(part), table)


def on_this_machine(job: Job, networks: Sequence[Network | QuantizedGraph], parts: Sequence[int]) -> Iterator[int]:
    """Do parts one after another in this process; gives each when it is done."""
    worker = Worker(job, networks)
    for part in parts:
        worker.do(part)
        yield part


def on_ray(job: Job, networks: Sequence[Network | QuantizedGraph], parts: Sequence[int]) -> Iterator[int]:
    """Do parts on a Ray cluster; gives each when it is done.

    Ray Data hands the parts' numbers to a pool of workers, gives the parts of a worker that dies to others, and lets the pool
    grow with the cluster. The networks are put into Ray's object store once; all workers of a machine read them there.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise Error(f"the scale ray needs {error.name}; `pip install 'vgg[scale]'` brings it") from None
    with _connected(ray):
        threads, room = _room(ray, job.threads)
        pool = ray.data.ActorPoolStrategy(
            # A pool of fixed size would wait forever for the place of a machine that is gone.
            min_size=1,
            initial_size=max(1, min(room, len(parts))),
            max_size=len(parts),
            max_tasks_in_flight_per_actor=AHEAD,
        )
        tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
        lent = [ray.put(_in_one_piece(network)) for network in networks]
        todo = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        done = todo.map_batches(
            _Actor,
            fn_constructor_args=(replace(job, threads=threads), lent, tries),
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
            raise  # a fault of ours, with its traceback
        except ray.exceptions.RayError as error:
            raise Error(f"Ray failed ({one_line(error)}); the same command goes on from here") from None


class _Tries:
    """Counts how often each part has been begun, since Ray Data would try forever what ends its worker each time."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, part: int) -> int:
        self._begun[part] += 1
        return self._begun[part]


class _Actor:
    """A worker as Ray Data has it: called with a batch of one part's number."""

    def __init__(self, job: Job, lent: Sequence[Any], tries: Any) -> None:
        self._job, self._lent, self._tries = job, lent, tries

    @cached_property
    def _worker(self) -> Worker:
        import ray

        return Worker(self._job, ray.get(list(self._lent)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        part = int(batch["part"][0])
        try:
            if ray.get(self._tries.begin.remote(part)) > TRIES:
                where = f"row group {part} of {self._job.plan.inputs}"
                raise Error(f"part {part} ended its worker {TRIES} times; one of its pictures may be to blame ({where})")
            self._worker.do(part)
        except Error as error:  # which Ray would wrap in its own, and try again
            return batch | {"error": [str(error)]}
        return batch | {"error": [""]}


def _room(ray: Any, threads: int | None) -> tuple[int, int]:
    """Threads of each worker, and how many workers there are processors for."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    each = threads or min([count for count in found if count] + [MOST_THREADS])
    return each, sum(count // each for count in found)


def _in_one_piece(model: Network | QuantizedGraph) -> Network | QuantizedGraph:
    """The same model with arrays that Ray's object store takes as they are, instead of views that it would pickle."""
    network = network_of(model)
    parameters = {
        name: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
        for name, value in network.parameters.items()
    }
    network = replace(network, parameters=parameters)
    return replace(model, network=network) if isinstance(model, QuantizedGraph) else network


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """On a Ray cluster: the one that the process is on, or RAY_ADDRESS names; else one on this machine, for the time being."""
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "include_dashboard": False}
        if where:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run on one machine talks to no other
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Error(f"Ray can't be reached: {one_line(error)}") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters comes as an exception
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
