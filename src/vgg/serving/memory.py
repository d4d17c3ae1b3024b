"""Memory that requests share: each reserves what it needs before it uses it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .refusals import Busy


class Memory:
    """A number of bytes that the bodies of all requests share. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        self._free, self._lock = size, threading.Lock()

    def take(self, count: int) -> None:
        """Reserve bytes. Raises Busy if there are not enough."""
        with self._lock:
            if count > self._free:
                raise Busy("not enough memory for the request; try again later", retry_after="1")
            self._free -= count

    def give(self, count: int) -> None:
        """Give back reserved bytes."""
        with self._lock:
            self._free += count


class Reservation:
    """The memory of one request, which is given back as a whole."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._size = memory, 0

    def take(self, count: int) -> None:
        """Reserve more bytes. Raises Busy if there are not enough."""
        self._memory.take(count)
        self._size += count

    def release(self) -> None:
        """Give back all bytes."""
        self._memory.give(self._size)
        self._size = 0


class DecodingMemory:
    """A number of bytes that the decoding threads share. A thread waits until there are enough for its image."""

    def __init__(self, size: int) -> None:
        self._free = self.size = size
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def reserved(self, count: int) -> Iterator[None]:
        """Reserve `count` bytes, of at most `size`, for a block. Threads take turns, so that a large image is not overtaken."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: count <= self._free)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()
