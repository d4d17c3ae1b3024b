"""The size of each package that `pip install vgg` installs, and the CPU time of its import.

Run it with the Python of an environment with vgg and, for their rows, any of its extras:

    python -m venv clean && clean/bin/pip install '.[keras,onnx,onnxruntime]' && clean/bin/python benchmarks/installation.py
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from measurements import Measurements, parser

ROUNDS = 7
EXTRAS = ("keras", "onnx", "onnxruntime")
NAME = re.compile(r"[\w.-]+")
MODULES = {"pillow": "PIL.Image", "vgg": "vgg.classifier"}  # that a first use imports


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(name: str, extra: str = "") -> Iterator[str]:
    """The installed packages that a package or one of its extras requires."""
    for requirement in metadata.requires(name) or []:
        wanted = f'extra == "{extra}"' in requirement.replace("'", '"') if extra else "extra ==" not in requirement
        found = normal(NAME.match(requirement)[0])  # type: ignore[index]
        if wanted and any(metadata.distributions(name=found)):
            yield found


def closure(name: str, without: Iterable[str] = ()) -> list[str]:
    """A package with all that it requires, but for some packages and what only they require."""
    found, names = [], [name]
    while names:
        name, *names = names
        if name not in found:
            found.append(name)
            names += [one for one in required(name) if one not in without]
    return found


def size(name: str) -> int:
    """The bytes of a package's files; compiled bytecode, which Python writes later, is not counted."""
    files = metadata.distribution(name).files or []
    return sum(path.stat().st_size for one in files if one.suffix != ".pyc" and (path := one.locate()).is_file())


def seconds(module: str) -> float:
    """The least CPU time of an import in a new process, with all other packages that it imports."""
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(ROUNDS))


def main() -> None:
    results, core = Measurements("installation", parser(__doc__).parse_args().output), list(required("vgg"))
    rows = [("vgg", ""), *((name, "") for name in core)]
    rows += [(name, extra) for extra in EXTRAS for name in required("vgg", extra)]
    for name, extra in rows:
        whole = closure(name, core)
        took = 1000 * seconds(MODULES.get(name, name.replace("-", "_")))
        results.add(
            {"package": name, "extra": extra}, mb=size(name) / 1e6, mb_whole=sum(map(size, whole)) / 1e6, import_ms=took
        )
    installed = closure("vgg")
    results.add({"package": "all without extras"}, packages=len(installed), mb_whole=sum(map(size, installed)) / 1e6)


if __name__ == "__main__":
    main()
