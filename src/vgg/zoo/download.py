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
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import Error, Notice
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
        finally:
            lock.release()
    except OSError as error:
        raise Error(f"{to}: can't be written: {reason(error)}") from None


def _bring(known: Published, to: Path, part: Path, progress: Progress) -> None:
    with open(part, "ab") as file:
        if known.digest is None or file.tell() > known.max_bytes:
            file.truncate(0)  # without a digest, nothing would tell if the server had another version by now
        transfer = Transfer(known, file, progress)
        transfer.run()
        if transfer.resumed and not verified(part, known):
            file.truncate(0)  # the file on the server may be another than the one that was begun
            transfer = Transfer(known, file, progress)
            transfer.run()
    if not verified(part, known):
        found = f"{known.digest[0]} {digest(part, known.digest[0])}" if known.digest else f"{part.stat().st_size:,} bytes"
        wanted = f"{known.digest[0]} {known.digest[1]}" if known.digest else f"{known.bytes:,} bytes"
        part.unlink()
        raise Error(f"{known.address}: is not the file that was published: {found}, not {wanted}; it was not kept")
    os.replace(part, to)
    if known.digest is None:
        warnings.warn(Notice(f"nobody publishes a hash of {known.name}; the sha256 of what came is {digest(to)}"), stacklevel=6)


class Transfer:
    """The bytes of one address, appended to a file in as many attempts as it takes."""

    def __init__(self, known: Published, file: BinaryIO, progress: Progress) -> None:
        self.known, self.file, self.progress = known, file, progress
        self.done = file.seek(0, os.SEEK_END)
        self.resumed = self.done > 0
        self.reached = False  # whether the server has answered at all
        self.validator = ""  # what the server calls this version of the file
        self.opener = build_opener(_SafeRedirects)

    def run(self) -> None:
        """Ask until everything is there. Raises Error when that won't come about."""
        failures = 0
        for _ in range(ATTEMPTS):
            before = self.done
            try:
                if self.done != self.known.bytes:
                    self.attempt()
                self.file.flush()
                return
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
            answer = " ".join(f"the server answers {error.code} {error.reason}".split())
            if error.code == 416:  # what we have is longer than what there is: begin again
                self.restart()
            if error.code in RETRIED or error.code >= 500:
                raise Cut(answer) from None
            raise Error(f"{self.known.address}: {answer}") from None
        except (OSError, http.client.HTTPException) as error:
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
        length = response.headers.get("Content-Length", "")
        remaining = int(length) if length.isdecimal() else None
        if self.done:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if response.status == 206 and (not place or int(place[1]) != self.done):
                self.restart()
                raise Cut("the server sends another part than it was asked for")
            if response.status != 206:
                self.restart()  # it doesn't do ranges, or the file has changed
        self.validator = _validator(response.headers)
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
    return str(error) or type(error).__name__
