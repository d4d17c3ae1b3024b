"""What this installation of vgg has and what it lacks, for a report of a problem. A broken part is a line of the report."""

import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from . import engines
from .engines import native_interface
from .engines.engine import instruction_set
from .errors import Error, one_line
from .files import cache_folder, reason
from .parallel import cores

# A requirement in a package's metadata: name, extras of it, versions, and the extra of vgg that it belongs to.
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[(.*?)\])?([^;]*?)(?:;.*extra == ["']([\w-]+)["'])?""")


@dataclass(frozen=True)
class Fact:
    """A line of the report."""

    part: str  # `version`, `processor`, `engine`, `gpu`, `cache` or `extra`
    name: str
    value: str  # such as a version; `missing` or `broken` where that is the case
    detail: str = ""  # a folder, a number, or how to get what is missing


def facts() -> Iterator[Fact]:
    """The versions of vgg and its packages, the processor, the engines, the GPU, the cache folder and the extras of vgg.

    Engines are imported, to find those that are broken. Nothing is changed but for a temporary file in the cache folder, which
    shows that it can be written.
    """
    yield Fact("version", "vgg", _version("vgg"), str(Path(__file__).parent))
    yield Fact("version", "Python", platform.python_version(), sys.executable)
    yield Fact("version", "system", platform.system(), platform.platform())
    required, extras = _requirements()
    for name, versions in required.items():
        yield Fact("version", name, _version(name), f"required: {versions.strip()}")
    yield Fact("processor", "name", engines.processor(), platform.machine())
    yield Fact("processor", "cores", str(os.cpu_count()), f"{cores()} for this process")
    yield Fact("processor", "instructions", *_tried(_instructions))
    for name in engines.ENGINES:
        yield Fact("engine", name, *_tried(lambda name=name: _engine(name)))  # type: ignore[misc]
    yield Fact("gpu", "cuda", *_tried(_gpu))
    yield Fact("cache", "folder", *_tried(_cache))
    for extra, packages in extras.items():
        yield _extra(extra, packages)


def _tried(describe: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """What a function returns, or that the part is broken, with its error."""
    try:
        return describe()
    except Exception as error:  # of any library
        return "broken", one_line(error)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _metadata() -> list[str]:
    try:
        return metadata.requires("vgg") or []
    except metadata.PackageNotFoundError:  # a copy of the source that was not installed
        return []


def _requirements() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The packages that vgg requires, with their versions, and those of each extra that has packages of its own."""
    required: dict[str, str] = {}
    extras: dict[str, list[str]] = {}
    within: dict[str, list[str]] = {}  # extras that an extra contains
    for match in filter(None, map(_REQUIREMENT.fullmatch, _metadata())):
        name, inner, versions, extra = match.groups()
        if extra is None:
            required[name] = versions
        elif name == "vgg":
            within[extra] = inner.split(",")
        else:
            extras.setdefault(extra, []).append(name)
    for extra, parts in within.items():
        if extra in extras:
            extras[extra] += [name for part in parts for name in extras.get(part, ())]
    return required, extras


def _instructions() -> tuple[str, str]:
    """The instruction set of the native engine, and those that it could use."""
    if "native" not in engines.installed():
        return instruction_set(), ""
    available = ", ".join(name for name in native_interface.available_instructions() if name != "auto")
    return native_interface.chosen_instructions(), f"of the native engine; available: {available}"


def _engine(name: str) -> tuple[str, str]:
    if problem := engines.problem(name):
        return "missing" if name != "native" or engines.native_library() is None else "broken", problem
    if name == "native":
        return "installed", str(engines.native_library())
    package = import_module(name)
    return str(package.__version__), str(Path(str(package.__file__)).parent)


def _gpu() -> tuple[str, str]:
    """The GPUs that torch can use."""
    if "torch" not in engines.installed():
        return "none", "requires torch"
    import torch

    if not torch.cuda.is_available():
        return "none", f"torch {torch.__version__} finds none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names), f"CUDA {torch.version.cuda}"


def _cache() -> tuple[str, str]:
    """The cache folder, its size, and whether it can be written; it is made when it is first needed."""
    folder = cache_folder()
    present = next(one for one in (folder, *folder.parents) if one.exists())
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = f"{len(files):,} files, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB"
    try:
        with tempfile.TemporaryFile(dir=present):
            return str(folder), size
    except OSError as error:
        raise Error(f"{folder}: can't be written: {reason(error)}; set VGG_HOME to another folder") from None


def _extra(extra: str, packages: list[str]) -> Fact:
    """An extra with its packages: their versions, or what is missing."""
    found = {name: _version(name) for name in packages}
    if missing := [name for name, version in found.items() if version == "missing"]:
        return Fact("extra", extra, "missing", f"{', '.join(missing)}; `pip install 'vgg[{extra}]'`")
    return Fact("extra", extra, "installed", ", ".join(f"{name} {version}" for name, version in found.items()))
