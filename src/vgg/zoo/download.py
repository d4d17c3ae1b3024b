"""Download of a published file: resumed after an interruption, verified, and put in place as a whole.

urllib and a loop do this, since none of the maintained downloaders does all of it: pooch does not resume, huggingface_hub and
torch.hub support their own servers or files only, and none reads `file://`. urllib uses the proxies of the environment.
"""

import http.client
import os
import re
import shutil
import ssl
import time
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..errors import Error, Notice, one_line
from ..files import digest, reason, replacing
from ..progress import Progress
from .manifest import Published

BLOCK = 2**20  # bytes per read at most
TIMEOUT = 30  # seconds without data
FAILURES = 4  # attempts in a row without progress
ATTEMPTS = 500  # per file, so that a server can't keep the client busy forever
RETRIED = (408, 416, 429)  # status codes that are retried, besides 500 and above
PAUSE = 0.5  # seconds before an attempt that follows one without progress; doubled each time


class Unreachable(Error):
    """No connection to the server; usually, there is no network."""


class Incomplete(Exception):
    """An attempt ended before the end of the file; another one may succeed."""


def verified(path: Path, known: Published) -> bool:
    """Whether a file exists and has the published size, or a possible one, and the published hash, if there is one."""
    if not path.is_file() or not known.fits(path.stat().st_size):
        return False
    return known.digest is None or digest(path, known.digest[0]).startswith(known.digest[1])


def download(known: Published, to: Path, progress: Progress) -> None:
    """Download a published file from its address to a path. The path gets the whole, verified file or nothing.

    An interrupted download is kept as `.NAME.part` in the same folder, and the next call resumes it. If another process
    downloads the same file, this one waits and uses the result.

    Raises:
        Unreachable: no connection to the server.
        Error: the content is not the published file, the server keeps failing, or the file can't be written.
    """
    from filelock import FileLock, Timeout

    part, locked = to.with_name(f".{to.name}.part"), to.with_name(f".{to.name}.lock")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locked)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            warnings.warn(Notice(f"waiting for another process that downloads {known.name}"), stacklevel=3)
            lock.acquire()
        try:
            if not verified(to, known):
                _download(known, to, part, progress)
            with suppress(OSError):  # a process that still waits, or comes later, finds the file
                locked.unlink()
        finally:
            lock.release()
    except OSError as error:
        raise Error(f"{to}: can't be written: {reason(error)}") from None


def _download(known: Published, to: Path, part: Path, progress: Progress) -> None:
    for _ in range(2):
        resumed = Transfer(known, part, progress).run()
        if known.member:
            _unpack(known, part)
        if verified(part, known):
            os.replace(part, to)
            if not known.digest:
                warnings.warn(Notice(f"no hash of {known.name} is published; downloaded sha256 {digest(to)}"), stacklevel=4)
            return
        actual, expected = f"{part.stat().st_size:,} bytes", f"{'' if known.bytes else 'about '}{known.max_bytes:,} bytes"
        if known.digest:
            algorithm, expected = known.digest
            actual = f"{algorithm} {digest(part, algorithm)}"
        part.unlink()
        if not resumed:  # otherwise, the file on the server may have changed since the first part
            break
    raise Error(f"{known.address}: not the published file: {actual}, expected {expected}; deleted")


def _unpack(known: Published, part: Path) -> None:
    """Replace a downloaded zip file by the published file in it; one without that file stays, and is not the published file."""
    try:
        with zipfile.ZipFile(part) as archive, archive.open(known.member) as source, replacing(part) as file:
            left = known.max_bytes + 1  # what the archive claims about the size is not used
            while left and (block := source.read(min(left, BLOCK))):
                file.write(block)
                left -= len(block)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError):  # RuntimeError: encrypted
        return


class Transfer:
    """The bytes of one address, appended to a file in as many attempts as necessary."""

    def __init__(self, known: Published, part: Path, progress: Progress) -> None:
        self.known, self.progress = known, progress
        self.file = open(part, "ab")  # noqa: SIM115 (closed by `run`)
        self.done = self.file.tell()
        self.resumed = self.done > 0  # whether the file may mix two versions
        self.reached = False  # whether the server has responded at all
        self.validator = ""  # the server's identifier of its version of the file
        self.opener = build_opener(_SafeRedirects)

    def run(self) -> bool:
        """Try until the file is complete; whether it may mix two versions. Raises Error if all attempts fail."""
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
                except Incomplete as error:
                    failures = failures + 1 if self.done <= before else 0
                    cause = error
                if failures >= FAILURES:
                    break
                if failures:
                    time.sleep(PAUSE * 2**failures)
        raise Error(f"{self.known.address}: {cause}; the same command resumes the download")

    def attempt(self) -> None:
        """Request the rest of the file once. Raises Incomplete if it does not arrive completely."""
        headers = {"User-Agent": "vgg", "Accept-Encoding": "identity"}
        if self.done and not self.known.digest and not self.validator:
            self.restart()  # a changed file on the server would not be noticed
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.validator:
                headers["If-Range"] = self.validator
        with self.open(Request(self.known.address, headers=headers)) as response:
            total = self.begin(response)
            while block := self.read(response):
                if self.done + len(block) > self.known.max_bytes:
                    raise Error(f"{self.known.address}: not the published file: more than {self.known.max_bytes:,} bytes")
                self.file.write(block)
                self.done += len(block)
                self.progress(self.known.name, self.done, total, "bytes")
        if total is not None and self.done < total:
            raise Incomplete(f"connection closed after {self.done:,} of {total:,} bytes")

    def open(self, request: Request) -> Any:
        try:
            response = self.opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            error.close()
            self.reached = True
            status = one_line(f"the server responded {error.code} {error.reason}")
            if error.code == 416:  # the local part is longer than the file
                self.restart()
            if error.code in RETRIED or error.code >= 500:
                raise Incomplete(status) from None
            raise Error(f"{self.known.address}: {status}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # urllib raises ValueError for an invalid address
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, FileNotFoundError | IsADirectoryError | PermissionError):
                raise Error(f"{self.known.address}: {reason(cause)}") from None
            if isinstance(cause, ssl.SSLError):
                raise Error(f"{self.known.address}: no secure connection ({cause})") from None
            if self.reached or isinstance(cause, TimeoutError | ConnectionResetError | http.client.BadStatusLine):
                raise Incomplete(_describe(cause)) from None
            raise Unreachable(f"can't connect to {self.known.address} ({_describe(cause)})") from None
        self.reached = True
        return response

    def begin(self, response: Any) -> int | None:
        """Prepare for the body of a response. Returns the length of the whole file, if known."""
        length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""))
        remaining = int(length[0]) if length else None
        validator = _validator(response.headers)
        if self.done and response.status == 206:
            place = re.fullmatch(r"bytes (\d{1,18})-\d+/(?:\d+|\*)", response.headers.get("Content-Range", ""))
            if not place or int(place[1]) != self.done or (self.validator and validator != self.validator):
                self.restart()
                raise Incomplete("the server sent another range than requested")
            self.resumed = True
        elif self.done:
            self.restart()  # the server doesn't support ranges, or has another version
        self.validator = validator
        total = None if remaining is None else self.done + remaining
        if None not in (total, self.known.bytes) and total != self.known.bytes:
            raise Error(f"{self.known.address}: not the published file: {total:,} bytes, expected {self.known.bytes:,}")
        self.reserve((self.known.bytes or total or 0) - self.done)
        return total or self.known.bytes

    def read(self, response: IO[bytes]) -> bytes:
        try:
            return response.read1(BLOCK)  # type: ignore[attr-defined, no-any-return]
        except (OSError, http.client.HTTPException) as error:
            raise Incomplete(f"connection closed after {self.done:,} bytes ({_describe(error)})") from None

    def reserve(self, needed: int) -> None:
        """Raises Error if the disk has not enough space for so many bytes."""
        folder = os.path.dirname(self.file.name)
        free = shutil.disk_usage(folder).free
        if needed > free:
            sizes = f"{needed / 1e6:,.1f} MB needed in {folder}, {free / 1e6:,.1f} MB free"
            raise Error(f"{self.known.name}: the disk is full: {sizes}; set VGG_HOME to another folder")

    def restart(self) -> None:
        self.file.truncate(0)
        self.done, self.resumed, self.validator = 0, False, ""


class _SafeRedirects(HTTPRedirectHandler):
    """Follows redirects from https to https only: without a published hash, a forgery would not be noticed."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise HTTPError(req.full_url, code, f"insecure redirect to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:  # an invalid address, for which urllib leaves the first response open
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _validator(headers: Any) -> str:
    """The value of `If-Range` for this version of a file: a strong ETag, otherwise its date."""
    etag: str = headers.get("ETag") or ""
    return headers.get("Last-Modified") or "" if not etag or etag.startswith("W/") else etag


def _describe(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no data for {TIMEOUT} seconds"
    if isinstance(error, OSError):
        return reason(error)
    return one_line(error) or type(error).__name__
