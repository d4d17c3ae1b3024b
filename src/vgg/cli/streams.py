"""The standard streams of the command line: every name can be written, and a stream that fails or is closed is one line."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from .. import json_output
from ..errors import Error, ImageError
from ..files import reason
from ..images import MAX_BYTES

ESCAPED = "vgg.escaped"  # the error handler of encoding


class Output(io.TextIOWrapper):
    """Standard output. Raises Error if it can't be written; BrokenPipeError if its reader has closed it."""

    def write(self, text: str) -> int:
        with _reported():
            return super().write(text)

    def flush(self) -> None:
        with _reported():
            super().flush()


class Messages(io.TextIOWrapper):
    """Standard error. What can't be written is lost: work must not fail because a message does."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _discard(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _discard(self)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Error(f"standard output: {reason(error)}") from None


@contextmanager
def installed() -> Iterator[None]:
    """Replace the standard streams of this process."""
    codecs.register_error(ESCAPED, _escape)
    former: Any = sys.stdin, sys.stdout, sys.stderr
    # A closed stream is replaced by one that can't be used. Otherwise the next file that is opened would get its descriptor,
    # and output be written into that file.
    sys.stdin = sys.stdin or open(os.open(os.devnull, os.O_WRONLY))  # noqa: SIM115
    output: Any = sys.stdout or open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115
    messages: Any = sys.stderr or open(os.open(os.devnull, os.O_WRONLY), "w")  # noqa: SIM115
    sys.stdout = replaced = Output(output.buffer, output.encoding, ESCAPED, line_buffering=bool(output.line_buffering))
    sys.stderr = reported = Messages(messages.buffer, messages.encoding, ESCAPED, line_buffering=True)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = former
        for stream in (replaced, reported):
            stream.detach()  # or it would close the buffer


def discard_output() -> None:
    """Drop output that can't be written, which Python would try to write again at its end."""
    try:
        sys.stdout.flush()
    except (Error, OSError):
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    stream.flush()


def standard_input() -> bytes:
    """An image's file from standard input. Raises ImageError if it can't be read or exceeds 256 MiB."""
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"standard input: {reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise ImageError(f"standard input: exceeds {MAX_BYTES // 2**20} MiB, the limit for images")
    return data


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Characters that an encoding does not have, as JSON writes them: `\u00e9`, and `\udcff` for a byte that is not UTF-8."""
    assert isinstance(error, UnicodeEncodeError)
    return json_output.dumps(error.object[error.start : error.end])[1:-1], error.end
