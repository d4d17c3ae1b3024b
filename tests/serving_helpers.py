"""A real server in its own process, on loopback."""

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

TICK = 0.02  # seconds: the resolution of CPU times
# A server whose engine waits while its gate is closed: SIGUSR1 opens the gate, SIGUSR2 closes it.
GATED = """
import signal, threading
from vgg.cli import main
from vgg.serving.batcher import Batcher
gate, compute = threading.Event(), Batcher._compute
def wait_and_compute(self, batch):
    gate.wait()
    return compute(self, batch)
Batcher._compute = wait_and_compute
signal.signal(signal.SIGUSR1, lambda *_: gate.set())
signal.signal(signal.SIGUSR2, lambda *_: gate.clear())
main()
"""


class Server:
    """A running `vgg serve` and its log.

    Args:
        options: of the command line.
        run: Python code that starts the command line.
        within: a command that runs a command.
        verify: the certificates that its client trusts.
    """

    def __init__(
        self,
        *options: object,
        run: str = "from vgg.cli import main; main()",
        within: Sequence[str] = (),
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        command = [*within, sys.executable, "-W", "ignore", "-c", run, "serve", "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[dict] = []
        self.other: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(60), "the server did not start within a minute"
        assert self.log, "".join(self.other)
        self.address = next(entry["address"] for entry in self.log if "address" in entry)
        self.client = httpx.Client(base_url=self.address, timeout=60, verify=verify)

    def _read(self) -> None:
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.other.append(line)
            if self.log and "address" in self.log[-1]:
                self._ready.set()
        self._ready.set()

    def ask(self, method: str, path: str, **options) -> httpx.Response:
        return self.client.request(method, path, **options)

    def logged(self, **facts: object) -> list[dict]:
        """Wait for log entries with these facts."""

        def entries() -> list[dict]:
            return [entry for entry in self.log if all(entry.get(key) == value for key, value in facts.items())]

        until(entries)
        return entries()

    def open_gate(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def close_gate(self) -> None:
        self.process.send_signal(signal.SIGUSR2)

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
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


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition did not become true within a minute"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(*options: object, **more: Any) -> Iterator[Server]:
    server = Server(*options, **more)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def gated(*options: object, before: str = "", **more: Any) -> Iterator[Server]:
    """A server whose engine waits until the test calls `open_gate`. `before` is Python code that runs first."""
    with serving(*options, run=before + GATED, **more) as server:
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.open_gate()


def memory(server: Server, key: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) * 1024


def cpu_seconds(server: Server) -> float:
    """The CPU time of the server so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def health_checks(server: Server) -> Iterator[list[float]]:
    """Send health checks during a block; the delay of each in seconds.

    The delay is the CPU time that the server spent meanwhile, if that is shorter: other programs may delay it as well.
    """
    delays, stop = [], threading.Event()
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)

    def check() -> None:
        while not stop.wait(0.002):
            started, spent = time.perf_counter(), cpu_seconds(server)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            delays.append(min(time.perf_counter() - started, cpu_seconds(server) - spent + TICK))

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield delays
    finally:
        stop.set()
        thread.join()
        connection.close()
