"""The zoo: which model files are published where, brought to this machine, verified, and kept.

Files are kept below `$VGG_HOME`, else below the platform's cache folder, as `publisher/model.suffix`. `$VGG_MIRROR` is where
they come from instead of their publishers: an address, http(s):// or file://, or a folder, laid out as the cache is; so
somebody's cache is a mirror.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import Error, Notice
from ..files import cache_folder, digest
from .manifest import BARE, PUBLISHED, Published

if TYPE_CHECKING:
    from .download import Progress

__all__ = ["EMBEDDED", "EMBEDDED_FILE", "Published", "cached", "info", "list", "locate", "pull", "recognise"]

EMBEDDED = "vgg16-gap"  # the network inside the package; see docs/embedded-model.md
EMBEDDED_FILE = Path(__file__).parent.parent / "embedded.onnx"


def list() -> tuple[Published, ...]:
    """Every published file that is known, the zoo's first."""
    return PUBLISHED


def info(name: str) -> Published:
    """What is known of a published file.

    Args:
        name: publisher and model, such as `torchvision/vgg16`; the zoo's may do without publisher (`vgg16-12-int8`). A bare
            `vgg16` is the zoo's newest float32 file of that name, else torchvision's.

    Raises:
        Error: nothing is published under that name.
    """
    plain = name.replace("_", "-")
    wanted = {BARE.get(plain, plain), f"zoo/{plain}"}
    for known in PUBLISHED:
        if known.name.replace("_", "-") in wanted:
            return known
    names = [*BARE, *(known.name for known in PUBLISHED)]
    near = "".join(f"; did you mean {close}?" for close in get_close_matches(name, names, 1))
    raise Error(f"no published model is called {name!r}{near or ';'} `vgg models` lists them")


def cached(known: Published) -> Path | None:
    """Where a published file lies on this machine; None when it does not, or not whole."""
    path = cache_folder() / known.file
    whole = path.is_file() and known.bytes in (None, path.stat().st_size)
    return path if whole else None


def pull(name: str) -> Path:
    """A published file on this machine, verified: the one that is there, else downloaded, going on after a cut.

    A bar on standard error shows the progress when that is a terminal. Proxies are those of the environment.

    Args:
        name: as `info` takes it; or `vgg16-gap`, which is there already.

    Raises:
        Error: nothing is published under that name; or it can't be downloaded, the message says why.
    """
    if name == EMBEDDED:
        return EMBEDDED_FILE
    from .download import Unreachable, download, verified

    known = info(name)
    path = cache_folder() / known.file
    if verified(path, known):
        return path
    address = _mirrored(known)
    try:
        with _bar(known) as progress:
            download(replace(known, address=address), path, progress)
    except Unreachable as error:
        at_hand = [EMBEDDED, *(other.name for other in PUBLISHED if cached(other))]
        raise Error(f"{known.name} is not on this machine, and {error}; here there is {', '.join(at_hand)}") from None
    return path


def locate(model: str | Path | None) -> Path:
    """The file that a model's name means.

    Nothing, or the embedded network's name, means the one inside the package; a published name a file that is kept here,
    or is downloaded now; anything else is a path.

    Raises:
        Error: it is neither a published name nor looks like a path; or it can't be downloaded.
    """
    import warnings

    if model is None or str(model) == EMBEDDED:
        return EMBEDDED_FILE
    path = Path(model)
    if path.is_file():
        return path
    try:
        known = info(str(model))
    except Error as error:
        if path.suffix or path.exists() or isinstance(model, Path):
            return path
        raise Error(f"{model}: there is no such file, and {error}") from None
    if found := cached(known):
        return found
    size = f", {known.bytes / 1e6:,.1f} MB" if known.bytes else ""
    warnings.warn(Notice(f"{known.name} is not on this machine yet; downloading {_mirrored(known)}{size}"), stacklevel=3)
    return pull(known.name)


def recognise(path: Path, sha256: str) -> Published | None:
    """The published file that this one is, byte for byte, by its hash; None when it is none of them."""
    size = path.stat().st_size
    for known in PUBLISHED:
        if known.digest and known.bytes in (None, size):
            algorithm, expected = known.digest
            found = sha256 if algorithm == "sha256" else digest(path, algorithm)
            if found.startswith(expected):
                return known
    return None


def _mirrored(known: Published) -> str:
    """The address to download from."""
    mirror = os.environ.get("VGG_MIRROR")
    if not mirror:
        return known.address
    if "://" not in mirror:
        mirror = Path(mirror).expanduser().absolute().as_uri()
    if not mirror.startswith(("http://", "https://", "file://")):
        raise Error(f"VGG_MIRROR={mirror}: a mirror is a folder, or an address of http://, https:// or file://")
    return f"{mirror.rstrip('/')}/{quote(known.file)}"


@contextmanager
def _bar(known: Published) -> Iterator["Progress"]:
    """Shows on a terminal how far a download is: call it with the bytes that are there, and their total if that is known."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task(known.name, total=known.bytes)
        yield lambda done, total: bar.update(task, completed=done, total=total)
