"""The log on standard error: readable lines on a terminal, otherwise one JSON object per line, and a limited number of them."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from .. import json_output
from . import limits

STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}

LEVELS = {
    "vgg.serving": logging.INFO, "uvicorn": logging.WARNING, "opentelemetry": logging.WARNING, "asyncio": logging.ERROR
}  # fmt: skip

log = logging.getLogger("vgg.serving")


@contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Log to a stream, and also what C libraries write to descriptor 2, such as libtiff's errors about an image."""
    own = os.fdopen(os.dup(stream.fileno()), "w", buffering=1, errors="backslashreplace")
    configure(own, stream.isatty())
    read, write = os.pipe()
    before = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    stderr, sys.stderr = sys.stderr, own
    reader = threading.Thread(target=_log_lines, args=(read,), daemon=True, name="stderr")
    reader.start()
    try:
        yield
    finally:
        sys.stderr = stderr
        os.dup2(before, 2)  # the last descriptor of the pipe's end, so that the reader ends
        os.close(before)
        reader.join(1)


def _log_lines(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as pipe:
        while line := pipe.readline(limits.MESSAGE):
            log.warning("a library wrote to standard error", extra={"text": line.decode(errors="backslashreplace").rstrip()})


def configure(stream: TextIO, terminal: bool) -> None:
    """Log the records of the server and its libraries."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines() if terminal else _Json())
    handler.addFilter(_Limit())
    for name, level in LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _Limit(logging.Filter):
    """Drops records beyond a number per second. The next record of the same logger and kind has the number of them."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: dict[tuple[str, bool], tuple[int, int]] = {}  # the second, and how many records it had

    def filter(self, record: logging.LogRecord) -> bool:
        warns = record.levelno >= logging.WARNING
        limit = limits.LOG_WARNINGS if warns else limits.LOG_LINES
        key = (record.name, warns)
        second, count = self._seconds.get(key, (0, 0))
        if second == (now := int(time.monotonic())):
            self._seconds[key] = (second, count + 1)
            return count < limit
        self._seconds[key] = (now, 1)
        if count > limit:
            record.dropped = count - limit
        return True


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        entry = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage(), **_facts(record)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json_output.dumps(entry, default=str)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.getMessage()} {facts}"
        # Clients choose parts of it, which must not control the terminal.
        line = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")
