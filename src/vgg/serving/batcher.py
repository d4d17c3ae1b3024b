"""Dynamic batching: requests of many callers go through the engine together.

A batch is what waits at the moment when the engine becomes free. It grows only while the engine is busy, so a request that
comes alone waits for nothing, and nobody has to choose a delay.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..arrays import Array
from .metrics import Statistics
from .refusals import Busy, TooLarge

SMOOTHING = 0.2  # the weight of the newest batch in what a picture is expected to take


class Runs(Protocol):
    """What an engine is to a batcher."""

    def run(self, batch: Array, outputs: Sequence[str]) -> Mapping[str, Array]: ...


@dataclass(frozen=True)
class Values:
    """What the engine made of one picture, and how long that took."""

    values: Mapping[str, Array]  # by name, without the axis of the batch
    queued: float  # seconds
    inferred: float  # seconds, of the whole batch


class Place:
    """A place in a batcher's queue, held from a request's admission until its picture is in the engine, or given up."""

    def __init__(self, batcher: "Batcher") -> None:
        self._batcher: Batcher | None = batcher

    def leave(self) -> None:
        if self._batcher:
            self._batcher.waiting -= 1
            self._batcher = None


@dataclass(frozen=True)
class _Job:
    value: Array  # float32 [3, height, width]
    outputs: tuple[str, ...]
    place: Place
    future: asyncio.Future[Values]
    since: float

    @property
    def kind(self) -> tuple[Any, ...]:
        """Only jobs of one kind go into one batch."""
        return self.value.shape, self.outputs


class Batcher:
    """Runs an engine in a thread of its own, a batch at a time. Belongs to one event loop.

    Args:
        engine: what computes.
        size: pictures that a batch holds at most, of `area` pixels; larger ones are fewer.
        queue: pictures that may wait.
        patience: seconds after which nobody waits for an answer any more.
    """

    def __init__(
        self, engine: Runs, statistics: Statistics, *, size: int, area: int, queue: int, patience: float, name: str = ""
    ) -> None:
        self._engine, self._statistics = engine, statistics
        self._size, self._area, self._queue, self._patience = size, area, queue, patience
        self._jobs: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, f"engine {name}".rstrip())
        self._running: asyncio.Task[None] | None = None
        self._pace = 0.0  # seconds that a picture takes, smoothed
        self.waiting = 0  # pictures that were admitted and are not in the engine yet

    def admit(self, count: int) -> list[Place]:
        """Places for `count` pictures; the caller sees to it that each is left.

        Raises:
            Busy: the queue has no room for them, or they would wait longer than anybody does.
            TooLarge: it never has.
        """
        if count > self._queue:
            raise TooLarge(f"{count} pictures in one request; at most {self._queue} are taken")
        self.check_room(count)
        self.waiting += count
        return [Place(self) for _ in range(count)]

    def check_room(self, count: int = 1) -> None:
        """Raises Busy unless there is room for `count` pictures now."""
        wait = self.waiting * self._pace
        if self.waiting + count > self._queue or wait > self._patience:
            raise Busy("the queue is full; try again later", retry_after=str(max(1, math.ceil(wait))))

    async def run(self, value: Array, outputs: Sequence[str], place: Place) -> Values:
        """What the engine makes of one picture, float32 [3, height, width]. When the caller is cancelled, so is its work."""
        future = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(value, tuple(outputs), place, future, time.perf_counter()))
        self._start()
        result: Values = await future
        return result

    async def close(self) -> None:
        """Finish what waits, then let the thread go."""
        while self._running:
            await asyncio.wait([self._running])
        self._thread.shutdown(wait=False)

    def _start(self) -> None:
        if self._running is None and (batch := self._take()):
            self._running = asyncio.get_running_loop().create_task(self._run(batch))

    def _take(self) -> list[_Job]:
        """The oldest job, and what can go with it."""
        batch: list[_Job] = []
        others: list[_Job] = []
        most = self._size
        while self._jobs and len(batch) < most:
            job = self._jobs.popleft()
            if job.future.done():  # nobody waits for it any more
                job.place.leave()
            elif batch and job.kind != batch[0].kind:
                others.append(job)
            else:
                batch.append(job)
                most = max(1, min(self._size, self._size * self._area // math.prod(job.value.shape[1:])))
        self._jobs.extendleft(reversed(others))
        for job in batch:
            job.place.leave()
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        begun = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
            found, inferred = await loop.run_in_executor(self._thread, self._compute, batch)
            for row, job in enumerate(batch):
                if not job.future.done():
                    values = {name: array[row] for name, array in found.items()}
                    job.future.set_result(Values(values, begun - job.since, inferred))
            pace = inferred / len(batch)
            self._pace += (pace - self._pace) * (SMOOTHING if self._pace else 1)
            self._statistics.batch(len(batch), inferred, time.perf_counter() - begun - inferred)
        except Exception as error:
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
        finally:
            self._running = None
            self._start()

    def _compute(self, batch: list[_Job]) -> tuple[Mapping[str, Array], float]:
        """In the engine's thread: the values by name, [batch, …], and the seconds that the engine took."""
        begun = time.perf_counter()
        found = self._engine.run(np.stack([job.value for job in batch]), batch[0].outputs)
        return found, time.perf_counter() - begun
