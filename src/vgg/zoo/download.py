"""A published file, over the network or from a folder: resumed after a cut, verified, put in its place whole.

This is urllib and a loop, because no well-kept downloader does all of it: pooch starts again after a cut, huggingface_hub
and torch.hub know their own servers or files only, and none reads `file://`. urllib honours the environment's proxies.
"""

import http.client
import os
import re
import shutil
import ssl
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import Error, Notice, one_line
from ..files import digest, reason
from .manifest import Published

BLOCK = 2**20  # bytes that are read at once at most
TIMEOUT = 30  # seconds without a byte
FAILURES = 4  # attempts in a row that may bring nothing
ATTEMPTS = 500  # for one file, so that no server can keep us busy forever
RETRIED = (408, 416, 429)  # answers after which another attempt may do better, besides 500 and above
PAUSE = 0.5  # seconds before the next attempt after one that brought nothing; doubled each time

Progress = Callable[[int, int | None], None]  # bytes that are there, and their total


class Unreachable(Error):
    """The server can't be reached at all; most often, there is no network."""


class Cut(Exception):
    """An attempt ended before the file did; the next one may do better."""


def verified(path: Path, known: Published) -> bool:
    """Whether a file is there and is the published one, as far as its publisher lets us tell."""
    if not path.is_file() or known.bytes not in (None, path.stat().st_size):
        return False
    return known.digest is None or digest(path, known.digest[0]).startswith(known.digest[1])


def download(known: Published, to: Path, progress: Progress) -> None:
    """Bring a published file from its address to a path, whole and verified, or not at all.

    What has come before a cut is kept beside it as `.NAME.part`, and the next call goes on from there. Where another process
    is bringing the same file, this one waits and uses that.

    Raises:
        Unreachable: there is no way to the server.
        Error: what the server has is not the published file, it keeps failing, or the file can't be written.
    """
    from filelock import FileLock, Timeout

    part, locked = to.with_name(f".{to.name}.part"), to.with_name(f".{to.name}.lock")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locked)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            warnings.warn(Notice(f"another process is downloading {known.name}; waiting for it"), stacklevel=4)
            lock.acquire()
        try:
            if not verified(to, known):
                _bring(known, to, part, progress)
            with suppress(OSError):  # whoever still waits for it finds the file, and so does who makes a new one
                locked.unlink()
        finally:
            lock.release()
    except OSError as error:
        raise Error(f"{to}: can't be written: {reason(error)}") from None


def _bring(known: Published, to: Path, part: Path, progress: Progress) -> None:
    resumed = Transfer(known, part, progress).run()
    fine = verified(part, known)
    if resumed and not fine:  # the file on the server may be another than the one that was begun
        part.unlink()
        Transfer(known, part, progress).run()
        fine = verified(part, known)
    if not fine:
        found, wanted = f"{part.stat().st_size:,} bytes", f"{known.bytes or 0:,} bytes"
        if known.digest:
            algorithm, wanted = known.digest
            found = f"{algorithm} {digest(part, algorithm)}"
        part.unlink()
        raise Error(f"{known.address}: is not the file that was published: {found}, not {wanted}; it was not kept")
    os.replace(part, to)
    if not known.digest:
        warnings.warn(Notice(f"nobody publishes a hash of {known.name}; the sha256 of what came is {digest(to)}"), stacklevel=6)


class Transfer:
    """The bytes of one address, appended to a file in as many attempts as it takes."""

    def __init__(self, known: Published, part: Path, progress: Progress) -> None:
        self.known, self.progress = known, progress
        self.file = open(part, "ab")  # noqa: SIM115 (closed by `run`)
        self.done = self.file.tell()
        self.resumed = self.done > 0  # whether what is there may be of two versions of the file
        self.reached = False  # whether the server has answered at all
        self.validator = ""  # what the server calls its version of the file
        self.opener = build_opener(_SafeRedirects)

    def run(self) -> bool:
        """Ask until everything is there; whether it may be of two versions. Raises Error when it won't come."""
        with self.file:
            if self.done > self.known.max_bytes:
                self.restart()
            failures = 0
            for _ in range(ATTEMPTS):
                before = self.done
                try:
                    if self.done != self.known.bytes:
                        self.attempt()
                    return self.resumed
                except Cut as cut:
                    failures = failures + 1 if self.done <= before else 0
                    why = cut
                if failures >= FAILURES:
                    break
                if failures:
                    time.sleep(PAUSE * 2**failures)
        raise Error(f"{self.known.address}: {why}; what came is kept, and the next attempt goes on from there")

    def attempt(self) -> None:
        """Ask for what is missing, once. Raises Cut when not all of it came."""
        headers = {"User-Agent": "vgg", "Accept-Encoding": "identity"}
        if self.done and not self.known.digest and not self.validator:
            self.restart()  # nothing would tell if the server had another version by now
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.validator:
                headers["If-Range"] = self.validator
        with self.open(Request(self.known.address, headers=headers)) as response:
            total = self.begin(response)
            while block := self.read(response):
                self.write(block)
                self.progress(self.done, total)
        if total is not None and self.done < total:
            raise Cut(f"the connection was cut after {self.done:,} of {total:,} bytes")

    def open(self, request: Request) -> Any:
        try:
            response = self.opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            self.reached = True
            answer = one_line(f"the server answers {error.code} {error.reason}")
            if error.code == 416:  # what we have is longer than what there is: begin again
                self.restart()
            if error.code in RETRIED or error.code >= 500:
                raise Cut(answer) from None
            raise Error(f"{self.known.address}: {answer}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # urllib lets ValueError through on a bad address
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, FileNotFoundError | IsADirectoryError | PermissionError):
                raise Error(f"{self.known.address}: {reason(cause)}") from None
            if isinstance(cause, ssl.SSLError):
                raise Error(f"{self.known.address}: there is no safe connection ({cause})") from None
            if self.reached or isinstance(cause, TimeoutError | ConnectionResetError | http.client.BadStatusLine):
                raise Cut(_why(cause)) from None
            raise Unreachable(f"there is no connection to {self.known.address} ({_why(cause)})") from None
        self.reached = True
        return response

    def begin(self, response: Any) -> int | None:
        """Get ready for the body of an answer; the file's whole length, where the server gives one."""
        length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""))
        remaining = int(length[0]) if length else None
        validator = _validator(response.headers)
        if self.done and response.status == 206:
            place = re.fullmatch(r"bytes (\d{1,18})-\d+/(?:\d+|\*)", response.headers.get("Content-Range", ""))
            if not place or int(place[1]) != self.done or (self.validator and validator != self.validator):
                self.restart()
                raise Cut("the server sends another part than it was asked for")
            self.resumed = True
        elif self.done:
            self.restart()  # the server doesn't do ranges, or has another version
        self.validator = validator
        total = None if remaining is None else self.done + remaining
        if None not in (total, self.known.bytes) and total != self.known.bytes:
            raise Error(f"{self.known.address}: is not the file that was published: {total:,} bytes, not {self.known.bytes:,}")
        self.room((self.known.bytes or total or 0) - self.done)
        return total or self.known.bytes

    def read(self, response: IO[bytes]) -> bytes:
        try:
            return response.read1(BLOCK)  # type: ignore[attr-defined, no-any-return]
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"the connection was cut after {self.done:,} bytes ({_why(error)})") from None

    def write(self, block: bytes) -> None:
        if self.done + len(block) > self.known.max_bytes:
            raise Error(f"{self.known.address}: is not the file that was published: more than {self.known.max_bytes:,} bytes")
        self.file.write(block)
        self.done += len(block)

    def room(self, needed: int) -> None:
        free = shutil.disk_usage(os.path.dirname(self.file.name)).free
        if needed > free:
            raise Error(
                f"{self.known.name}: the disk is full: {needed / 1e6:,.1f} MB more are needed in "
                f"{os.path.dirname(self.file.name)}, {free / 1e6:,.1f} are free; VGG_HOME names another folder"
            )

    def restart(self) -> None:
        self.file.truncate(0)
        self.done, self.resumed, self.validator = 0, False, ""


class _SafeRedirects(HTTPRedirectHandler):
    """Follows a redirect from https to https only: not every publisher gives a hash that would notice a forgery."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise HTTPError(req.full_url, code, f"and redirects to {newurl}, which is not safe", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _validator(headers: Any) -> str:
    """What `If-Range` may say of this version of a file: a strong ETag, else its date."""
    etag: str = headers.get("ETag") or ""
    return headers.get("Last-Modified") or "" if not etag or etag.startswith("W/") else etag


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT} seconds"
    if isinstance(error, OSError):
        return reason(error)
    return one_line(error) or type(error).__name__
