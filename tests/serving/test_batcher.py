"""Dynamic batching, with an engine that waits for the test."""

import asyncio
import functools
import threading

import numpy as np
import pytest

from vgg.serving.batcher import Batcher
from vgg.serving.metrics import Metrics, Statistics
from vgg.serving.refusals import Busy, TooLarge

AREA = 32 * 32


class GatedEngine:
    """An engine that waits for the test before each batch, and doubles its input."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.gate = threading.Semaphore(0)
        self.fails = False

    def run(self, batch, outputs):
        self.batches.append(batch.shape)
        assert self.gate.acquire(timeout=10)
        if self.fails:
            raise MemoryError
        return {name: 2 * batch.max((1, 2, 3)) for name in outputs}


def image(number: float, side: int = 32, dtype=np.float32):
    return np.full((3, side, side), number, dtype)


def batcher(engine, queue=16, size=4, max_wait=30.0) -> Batcher:
    return Batcher(engine, Statistics("m", "1", Metrics()), size=size, area=AREA, queue=queue, max_wait=max_wait)


def send(one: Batcher, number: float, outputs=("logits",), side: int = 32, dtype=np.float32) -> asyncio.Task:
    (place,) = one.admit(1)
    return asyncio.create_task(one.run(image(number, side, dtype), outputs, place))


def in_a_loop(test):
    """Run an asynchronous test."""

    @functools.wraps(test)
    def run():
        asyncio.run(test())

    return run


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@in_a_loop
async def test_a_single_image_runs_at_once_and_a_batch_grows_while_the_engine_is_busy():
    engine = GatedEngine()
    one = batcher(engine)
    first = send(one, 1)
    await until(lambda: engine.batches == [(1, 3, 32, 32)])
    others = [send(one, number) for number in range(2, 8)]
    engine.gate.release(9)
    found = await asyncio.gather(first, *others)
    assert [shape[0] for shape in engine.batches] == [1, 4, 2]  # never more than the size
    assert [row.values["logits"] for row in found] == [2, 4, 6, 8, 10, 12, 14]
    assert one.waiting == 0
    await one.close()


@in_a_loop
async def test_only_equal_jobs_share_a_batch_and_batches_of_large_images_are_small():
    engine = GatedEngine()
    one = batcher(engine)
    first = send(one, 1)
    await until(lambda: engine.batches)
    pixels = send(one, 6, dtype=np.uint8)
    others = [send(one, 2), send(one, 3, ("fc7",)), send(one, 4), *(send(one, 5, side=64) for _ in range(3)), pixels]
    engine.gate.release(9)
    await asyncio.gather(first, *others)
    assert engine.batches[1:] == [(1, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32), *[(1, 3, 64, 64)] * 3]
    await one.close()


@in_a_loop
async def test_the_queue_is_bounded_and_places_come_back():
    engine = GatedEngine()
    one = batcher(engine, queue=3)
    first = send(one, 1)
    await until(lambda: engine.batches)
    others = [send(one, 2) for _ in range(3)]
    with pytest.raises(Busy) as refused:
        one.admit(1)
    assert int(refused.value.headers["retry-after"]) >= 1
    with pytest.raises(TooLarge):
        one.admit(4)
    engine.gate.release(9)
    await asyncio.gather(first, *others)
    assert one.waiting == 0
    places = one.admit(3)
    for place in places * 2:  # leaving twice is leaving once
        place.leave()
    assert one.waiting == 0
    await one.close()


@in_a_loop
async def test_requests_that_would_wait_too_long_are_refused():
    engine = GatedEngine()
    one = batcher(engine, max_wait=0.02)
    engine.gate.release()
    first = send(one, 1)
    await first
    one._seconds_per_image = 1.0  # as if an image took a second
    second = send(one, 2)
    await until(lambda: len(engine.batches) == 2)
    third = send(one, 3)
    with pytest.raises(Busy):
        one.check_room()
    engine.gate.release(9)
    await asyncio.gather(second, third)
    await one.close()


@in_a_loop
async def test_the_work_of_a_cancelled_caller_is_dropped():
    engine = GatedEngine()
    one = batcher(engine)
    first = send(one, 1)
    await until(lambda: engine.batches)
    gone, stays = send(one, 2), send(one, 3)
    await asyncio.sleep(0)
    gone.cancel()
    engine.gate.release(9)
    await asyncio.gather(first, stays)
    assert engine.batches == [(1, 3, 32, 32)] * 2
    assert one.waiting == 0
    await one.close()


@in_a_loop
async def test_an_engine_error_fails_its_batch_only():
    engine = GatedEngine()
    one = batcher(engine)
    engine.fails = True
    engine.gate.release(9)
    with pytest.raises(MemoryError):
        await send(one, 1)
    engine.fails = False
    assert (await send(one, 2)).values["logits"] == 4
    await one.close()
