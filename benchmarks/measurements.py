"""Measurements that are saved as they are made."""

import csv
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import vgg
from vgg.engines import processor
from vgg.files import replacing
from vgg.json_output import dumps


class Measurements:
    """Prints each measurement and saves all of them, with the machine, the versions and the commit.

    `gpu-NAME.csv` has a row for each, `gpu-NAME.json` the same as `rows` of an object that describes the run. Both are whole
    after each measurement.

    Args:
        folder: of the files, which replace those of an earlier run on the same device.
        device: `cuda` or `cpu`.
    """

    def __init__(self, folder: Path, device: str) -> None:
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        versions = {"vgg": vgg.__version__, "torch": torch.__version__, "python": platform.python_version()}
        cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if device == "cuda" else {}
        self._run = {"device": name, "processor": processor(), "commit": _commit(), **versions, **cuda}
        self._rows: list[Mapping[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = folder / f"gpu-{name.lower().replace(' ', '-')}"
        print(", ".join(f"{key} {value}" for key, value in self._run.items()), flush=True)

    def add(self, name: str, batch: int, value: float, unit: str, share: float | None = None) -> None:
        """Add a measurement of a batch; `share` is that of the peak."""
        self._rows.append({"measurement": name, "batch": batch, "value": value, "unit": unit, "share_of_peak": share})
        with replacing(self._stem.with_suffix(".json")) as file:
            file.write(dumps({**self._run, "rows": self._rows}, indent=1).encode())
        with replacing(self._stem.with_suffix(".csv")) as binary, open(binary.fileno(), "w", newline="", closefd=False) as text:
            writer = csv.DictWriter(text, [*self._rows[0], *self._run])
            writer.writeheader()
            writer.writerows({**row, **self._run} for row in self._rows)
        print(f"{name:64} {batch:5} {value:10,.4g} {unit}" + (f", {share:.1%} of the peak" if share else ""), flush=True)


def _commit() -> str:
    """The commit of the source, with `+` if files differ from it; empty outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
