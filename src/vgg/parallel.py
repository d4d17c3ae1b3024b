"""Work in threads, ahead of the code that uses the results."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Output = TypeVar("Output")


def cores() -> int:
    """The number of cores that this process may use, the default number of threads: `taskset` and schedulers limit it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(work: Callable[[Item], Output], items: Iterable[Item], workers: int, depth: int) -> Iterator[Output]:
    """`work(item)` of each item, in order, computed by `workers` threads while the caller does something else.

    At most `depth` results are waiting, so memory is bounded for any number of items. An exception in `work` is raised in
    its item's turn.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Output]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
