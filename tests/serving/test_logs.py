"""The log: one line per record whatever a client sends, and a limited number of them."""

import io
import json
import logging
import os
import pty
import subprocess
import sys

import pytest

from conftest import read_terminal
from vgg.serving import limits, logs

PATH = "/v1/%0d%0a%1b%5b31m%c2%9bred%e2%80%a8%5cx"
TEXT = "/v1/\r\n\x1b[31m\x9bred\u2028\\x"


@pytest.fixture
def stream(monkeypatch):
    names = ("vgg.serving", "uvicorn", "asyncio")
    kept = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    yield io.StringIO()
    for name, (handlers, propagate) in kept.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def test_a_path_is_one_line_of_ascii_in_json(server):
    server.ask("GET", PATH, headers={"x-request-id": "path-1"})
    (entry,) = server.logged(request_id="path-1")
    assert entry["path"] == TEXT
    assert not server.other


def test_lines_on_a_terminal_have_no_control_characters(stream):
    logs.configure(stream, terminal=True)
    logging.getLogger("vgg.serving").info("request", extra={"path": TEXT})
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert line.endswith(r"path=/v1/\r\n\x1b[31m\x9bred\u2028\x")


def test_json_lines_are_ascii(stream):
    logs.configure(stream, terminal=False)
    logging.getLogger("vgg.serving").info("request", extra={"path": TEXT})
    assert stream.getvalue().isascii()
    assert json.loads(stream.getvalue())["path"] == TEXT


def test_the_number_of_lines_is_limited(stream, monkeypatch):
    logs.configure(stream, terminal=False)
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    for name, level, limit in (
        ("asyncio", logging.ERROR, limits.LOG_WARNINGS),
        ("vgg.serving", logging.INFO, limits.LOG_LINES),
        ("vgg.serving", logging.ERROR, limits.LOG_WARNINGS),
    ):
        stream.truncate(0)
        stream.seek(0)
        for _ in range(5000):
            logging.getLogger(name).log(level, "no descriptors")
        assert len(stream.getvalue().splitlines()) == limit
        now[0] += 1
        logging.getLogger(name).log(level, "the next second")
        assert json.loads(stream.getvalue().splitlines()[-1])["dropped"] == 5000 - limit


CODE = """
import os, sys
from vgg.serving.logs import log, logging_to
with logging_to(sys.stderr):
    log.info("ready")
    os.write(2, b"TIFFReadDirectory: \\x1b[31mred\\xff\\nnext")
print("after", file=sys.stderr)
"""


def test_what_libraries_write_to_the_descriptor_is_logged():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    *records, last = result.stderr.splitlines()
    assert [json.loads(record).get("text") for record in records] == [None, "TIFFReadDirectory: \x1b[31mred\\xff", "next"]
    assert last == "after"


def test_a_terminal_gets_readable_lines():
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs) as process:
        os.close(theirs)
        lines = read_terminal(ours).decode().splitlines()
    assert process.returncode == 0
    assert [line[9:] for line in lines[:1]] == ["ready "]
    assert r"text=TIFFReadDirectory: \x1b[31mred" in lines[1]
