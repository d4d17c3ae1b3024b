"""Dynamic batching: images of different requests go through the engine together.

When the engine becomes free, the images that wait form the next batch. A batch grows only while the engine is busy: a single
request never waits, and there is no delay to configure.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..engines import Engine
from .metrics import Statistics
from .refusals import Busy, TooLarge
from .traces import Trace, current

SMOOTHING = 0.2  # weight of the newest batch in the running mean of the time per image


@dataclass(frozen=True)
class Values:
    """The layer outputs for one image, and the time they took."""

    values: Mapping[str, Array]  # by name, without a batch axis
    queued: float  # seconds
    inferred: float  # seconds, of the whole batch


class Place:
    """A place in a batcher's queue, from the admission of an image until it enters the engine or is cancelled."""

    def __init__(self, batcher: "Batcher") -> None:
        self._batcher: Batcher | None = batcher

    def leave(self) -> None:
        """Free the place. Further calls have no effect."""
        if self._batcher:
            self._batcher.waiting -= 1
            self._batcher = None


@dataclass(frozen=True)
class _Job:
    value: Array  # float32 [3, height, width], or uint8 for an engine that normalises
    outputs: tuple[str, ...]
    place: Place
    future: asyncio.Future[Values]
    created: float
    trace: Trace | None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of a batch have equal kinds."""
        return self.value.shape, self.value.dtype, self.outputs


class Batcher:
    """Runs an engine in its own thread, one batch at a time. Belongs to one event loop.

    Args:
        engine: runs the batches.
        statistics: of the model.
        size: maximum number of images of `area` pixels per batch; of larger images, fewer.
        area: pixels of the network's usual input.
        queue: maximum number of images that wait.
        max_wait: images are refused if the expected wait is longer, in seconds.
        name: of the model, for the thread's name.
    """

    def __init__(
        self, engine: Engine, statistics: Statistics, *, size: int, area: int, queue: int, max_wait: float, name: str = ""
    ) -> None:
        self._engine, self._statistics = engine, statistics
        self._size, self._area, self._queue, self._max_wait = size, area, queue, max_wait
        self._jobs: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, f"engine {name}".rstrip())
        self._running: asyncio.Task[None] | None = None
        self._seconds_per_image = 0.0  # running mean
        self.waiting = 0  # images that were admitted and have not entered the engine

    def admit(self, count: int) -> list[Place]:
        """Places for `count` images; the caller must leave each of them.

        Raises:
            Busy: the queue has no room now, or the expected wait is too long.
            TooLarge: there are more images than the queue can hold.
        """
        if count > self._queue:
            raise TooLarge(f"{count} images in one request; the maximum is {self._queue}")
        self.check_room(count)
        self.waiting += count
        return [Place(self) for _ in range(count)]

    def check_room(self, count: int = 1) -> None:
        """Raise Busy unless the queue has room for `count` images."""
        wait = self.waiting * self._seconds_per_image
        if self.waiting + count > self._queue or wait > self._max_wait:
            raise Busy(Busy.example, retry_after=str(max(1, math.ceil(wait))))

    async def run(self, value: Array, outputs: Sequence[str], place: Place) -> Values:
        """The layer outputs for one image, [3, height, width] as engines take it. Cancelling the caller cancels the work."""
        future: asyncio.Future[Values] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(value, tuple(outputs), place, future, time.perf_counter(), current.get()))
        self._start()
        return await future

    async def close(self) -> None:
        """Finish all jobs, then end the thread."""
        while self._running:
            await asyncio.wait([self._running])
        self._thread.shutdown(wait=False)

    def _start(self) -> None:
        if self._running is None and (batch := self._take()):
            self._running = asyncio.get_running_loop().create_task(self._run(batch))

    def _take(self) -> list[_Job]:
        """The oldest job, and the jobs that can share its batch."""
        batch: list[_Job] = []
        others: list[_Job] = []
        limit = self._size
        while self._jobs and len(batch) < limit:
            job = self._jobs.popleft()
            if job.future.done():  # its caller was cancelled
                job.place.leave()
            elif batch and job.kind != batch[0].kind:
                others.append(job)
            else:
                batch.append(job)
                limit = max(1, min(self._size, self._size * self._area // math.prod(job.value.shape[1:])))
        self._jobs.extendleft(reversed(others))
        for job in batch:
            job.place.leave()
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        started = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
            outputs, inferred = await loop.run_in_executor(self._thread, self._compute, batch)
            for row, job in enumerate(batch):
                if not job.future.done():
                    values = {name: array[row] for name, array in outputs.items()}
                    job.future.set_result(Values(values, started - job.created, inferred))
                    self._statistics.queued(started - job.created)
            _trace(batch, started, inferred)
            change = inferred / len(batch) - self._seconds_per_image
            self._seconds_per_image += change * (SMOOTHING if self._seconds_per_image else 1)
            self._statistics.batch(len(batch), inferred, time.perf_counter() - started - inferred)
        except Exception as error:
            _trace(batch, started, time.perf_counter() - started, failed=True)
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            self._running = None
            self._start()

    def _compute(self, batch: list[_Job]) -> tuple[Mapping[str, Array], float]:
        """In the engine's thread: the layer outputs by name, [batch, …], and the seconds they took."""
        started = time.perf_counter()
        outputs = self._engine.run(np.stack([job.value for job in batch]), batch[0].outputs)
        return outputs, time.perf_counter() - started


def _trace(batch: list[_Job], started: float, seconds: float, failed: bool = False) -> None:
    """Record in the trace of each request that its images waited, and were computed in this batch."""
    images = Counter(job.trace for job in batch if job.trace)
    for trace, count in images.items():
        created = min(job.created for job in batch if job.trace is trace)
        trace.stage("queue", created, started, images=count)
        trace.stage("engine", started, started + seconds, failed, images=count, batch_size=len(batch))
