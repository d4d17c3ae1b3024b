"""Measurements that are printed and saved one by one, as rows of CSV files; and the options that all benchmarks have."""

import argparse
import csv
import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from vgg import engines
from vgg.engines import native_interface
from vgg.files import replacing

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "vgg", "numpy", "torch", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "onnxruntime", "openvino", "ncnn", "MNN",
    "pillow", "lpips", "dists-pytorch", "ray", "locust", "faiss-cpu",
)  # fmt: skip
MACHINE = ("machine", "instructions", "cores")  # columns that identify a machine

Row = dict[str, str]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=RESULTS, help="folder of the measurements (default: benchmarks/results)")
    return made


class Measurements:
    """The measurements of a script on this machine: a row for each in `SCRIPT-MACHINE.csv`.

    The file is whole after each row. A row replaces that of an earlier measurement of the same thing, so a benchmark can be
    run in parts, and parts of it again. Each row has the machine, the versions and the commit.

    Args:
        script: name of the benchmark.
        folder: of the file.
        gpu: name of the GPU, if that is the machine.
    """

    def __init__(self, script: str, folder: Path, gpu: str = "") -> None:
        native = not gpu and "native" in engines.installed()
        instructions = native_interface.chosen_instructions() if native else ""
        self._machine = dict(zip(MACHINE, (gpu or engines.processor(), instructions, str(os.cpu_count())), strict=True))
        self._run = {**self._machine, "versions": _versions(), "commit": _commit()}
        name = re.sub(r"[^a-z0-9]+", "-", " ".join((script, self._machine["machine"], instructions)).lower()).strip("-")
        self._path = folder / f"{name}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        print(", ".join(f"{key} {value}" for key, value in self._run.items() if value), flush=True)

    @property
    def rows(self) -> list[Row]:
        """All rows of the file, also of other runs."""
        return read(self._path) if self._path.exists() else []

    def find(self, **what: Any) -> Row | None:
        """The row of a measurement, if it was made on this machine before."""
        wanted = {**self._machine, **_texts(what)}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def add(self, what: dict[str, Any], **values: Any) -> None:
        """Print and save a measurement: `what` identifies it, `values` are its results."""
        names, numbers, rows, earlier = _texts(what), _texts(values), self.rows, self.find(**what)
        row = {**names, **numbers, **self._run}
        if earlier:
            rows[rows.index(earlier)] = row
        else:
            rows.append(row)
        columns = [name for name in dict.fromkeys(name for one in rows for name in one) if name not in self._run]
        with replacing(self._path) as binary, open(binary.fileno(), "w", encoding="utf-8", newline="", closefd=False) as text:
            writer = csv.DictWriter(text, [*columns, *self._run], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(", ".join(names.values()), *(f"{name} {text}" for name, text in numbers.items()), sep="; ", flush=True)


def read(path: Path) -> list[Row]:
    """The rows of a file of measurements."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _texts(values: dict[str, Any]) -> Row:
    """Values as cells of a table; six digits of a number are enough."""

    def text(value: Any) -> str:
        return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    return {name: text(value) for name, value in values.items()}


def _versions() -> str:
    """Python's version and those of the installed packages."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _commit() -> str:
    """The commit of the source, with `+` if files differ from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
