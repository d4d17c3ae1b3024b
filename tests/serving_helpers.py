"""A real server in a process of its own, on loopback."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx


class Server:
    """`vgg serve` with some options, and what it has logged; `run` is the code that starts the command line, `within` a
    command that runs a command."""

    def __init__(self, *options: object, run: str = "from vgg.cli import main; main()", within: Sequence[str] = ()) -> None:
        command = [*within, sys.executable, "-W", "ignore", "-c", run, "serve", "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[dict] = []
        self.other: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(60), "the server took too long"
        assert self.log, "".join(self.other)
        self.address = self.log[0]["address"]
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def _read(self) -> None:
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.other.append(line)
            if self.log:
                self._ready.set()
        self._ready.set()

    def ask(self, method: str, path: str, **options) -> httpx.Response:
        return self.client.request(method, path, **options)

    def logged(self, **facts: object) -> list[dict]:
        """The requests in the log that have these facts; waits for the first a little."""
        for _ in range(100):
            found = [entry for entry in self.log if all(entry.get(key) == value for key, value in facts.items())]
            if found:
                return found
            time.sleep(0.02)
        return []

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
        self._reader.join(5)
        self.process.stderr.close()
        return code


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is bound to happen."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(*options: object, **more: Any) -> Iterator[Server]:
    server = Server(*options, **more)
    try:
        yield server
    finally:
        server.stop()
