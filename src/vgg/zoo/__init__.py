"""The zoo: published model files, downloaded, verified and cached.

Files are cached as `publisher/model.suffix` in `$VGG_HOME`, by default in the platform's cache folder. If `$VGG_MIRROR` is set,
they are downloaded from there instead of from their publishers: a folder, or an http://, https:// or file:// address, with the
layout of the cache, so that a copy of a cache is a mirror. Files of any repository on the Hugging Face Hub are named by their
address, see `vgg.zoo.hub`.
"""

import os
import warnings
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote

from ..errors import Error, Notice
from ..files import cache_folder, digest
from ..progress import Progress, silent
from . import hub
from .manifest import BARE, PUBLISHED, Published

__all__ = ["EMBEDDED", "EMBEDDED_FILE", "Published", "cached", "info", "list", "locate", "pull", "recognise"]

EMBEDDED = "vgg16-gap"  # the network in the package; see docs/embedded-model.md
EMBEDDED_FILE = Path(__file__).parent.parent / "embedded.onnx"


def list() -> tuple[Published, ...]:
    """All published files, those of the ONNX Model Zoo first."""
    return PUBLISHED


def info(name: str) -> Published:
    """The published file with a name.

    Args:
        name: publisher and model, such as `torchvision/vgg16`. The publisher can be left out for files of the ONNX Model Zoo
            (`vgg16-12-int8`). A bare `vgg16` is the newest float32 file of that name in the ONNX Model Zoo, otherwise
            torchvision's.

    Raises:
        Error: the name is unknown.
    """
    plain = name.replace("_", "-")
    wanted = {BARE.get(plain, plain), f"zoo/{plain}"}
    for known in PUBLISHED:
        if known.name.replace("_", "-") in wanted:
            return known
    similar = "".join(f"; did you mean {near}?" for near in get_close_matches(name, [*BARE, *(k.name for k in PUBLISHED)], 1))
    raise Error(f"unknown published model {name!r}{similar or ';'} `vgg models` lists all")


def cached(known: Published) -> Path | None:
    """The path of a published file in the cache; None if it is missing or has an impossible size."""
    path = cache_folder() / known.file
    return path if os.path.isfile(path) and known.fits(path.stat().st_size) else None


def pull(name: str, progress: Progress = silent) -> Path:
    """Download a published file, or verify the cached one.

    An interrupted download resumes. Proxies are those of the environment.

    Args:
        name: a name that `info` accepts; `vgg16-gap`, which is part of the package; or an address of the Hugging Face Hub.
        progress: called with the name, the bytes downloaded so far, their total if known, and `bytes`.

    Returns:
        The path of the file in the cache.

    Raises:
        Error: the name is unknown, or the file can't be downloaded.
    """
    if name == EMBEDDED:
        return EMBEDDED_FILE
    if hub.is_address(name):
        return hub.locate(name, progress)
    from .download import Unreachable, download, verified

    known = info(name)
    path = cache_folder() / known.file
    if verified(path, known):
        return path
    try:
        download(_mirrored(known), path, progress)
    except Unreachable as error:
        available = ", ".join([EMBEDDED, *(other.name for other in PUBLISHED if cached(other))])
        raise Error(f"{known.name}: not downloaded yet, and {error}; available offline: {available}") from None
    return path


def locate(model: str | Path | None, progress: Progress = silent) -> Path:
    """The file of a model.

    Args:
        model: a path; a published name or an address on the Hugging Face Hub, such as `hf://owner/name`, whose file is
            downloaded if it is not cached; `vgg16-gap` or None, the network in the package. An existing file has priority.
        progress: see `pull`.

    Raises:
        Error: the model is neither a file nor a published name, or can't be downloaded.
    """
    if model is None or str(model) == EMBEDDED:
        return EMBEDDED_FILE
    path = Path(model)
    if os.path.isfile(path):  # Path.is_file fails for a name that is too long
        return path
    if hub.is_address(model):
        return hub.locate(str(model), progress)
    try:
        known = info(str(model))
    except Error as error:
        if path.suffix or os.path.exists(path) or isinstance(model, Path):
            return path
        raise Error(f"{model}: file not found; {error}") from None
    if file := cached(known):
        return file
    size = f" ({known.bytes / 1e6:,.1f} MB)" if known.bytes else ""
    warnings.warn(Notice(f"downloading {known.name} from {_mirrored(known).address}{size}"), stacklevel=3)
    return pull(known.name, progress)


def recognise(path: Path, sha256: str) -> Published | None:
    """The published file with the content of a file, whose SHA-256 is given; None if there is none."""
    size, found = path.stat().st_size, {"sha256": sha256}
    for known in PUBLISHED:
        if known.digest and known.bytes in (None, size):
            algorithm, expected = known.digest
            if algorithm not in found and known.fits(size):
                found[algorithm] = digest(path, algorithm)
            if found.get(algorithm, "").startswith(expected):
                return known
    return None


def _mirrored(known: Published) -> Published:
    """The published file with the address to download it from: the publisher's, or the mirror's."""
    mirror = os.environ.get("VGG_MIRROR")
    if not mirror:
        return known
    if "://" not in mirror:
        mirror = Path(mirror).expanduser().absolute().as_uri()
    if not mirror.startswith(("http://", "https://", "file://")):
        raise Error(f"VGG_MIRROR={mirror}: invalid mirror; use a folder, or an http://, https:// or file:// address")
    return replace(known, address=f"{mirror.rstrip('/')}/{quote(known.file)}", member="")
