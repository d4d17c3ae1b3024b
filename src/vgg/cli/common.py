"""What the verbs share: the options they have in common, and how a list is printed."""

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engines import DEVICES, ENGINES
from ..preprocessing import PRESETS


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


def _presets(incomplete: str) -> list[str]:
    return [name for name in PRESETS if name.startswith(incomplete)]


def _engines(incomplete: str) -> list[str]:
    return [name for name in ("auto", *ENGINES) if name.startswith(incomplete)]


def _devices(incomplete: str) -> list[str]:
    return [name for name in DEVICES if name.startswith(incomplete)]


FormatOption = Annotated[Format, typer.Option("--format", help="How to print the result.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="P", autocompletion=_presets, help=f"Preprocessing of the pictures: {', '.join(PRESETS)}."
    ),
]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="Names of the classes, one a line, or JSON.")
]

EngineOption = Annotated[
    str,
    typer.Option("--engine", "-e", metavar="NAME", autocompletion=_engines, help=f"What computes: auto, {', '.join(ENGINES)}."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="How many the engine uses.  [default: as many as there are cores]"),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="D", autocompletion=_devices, help=f"Where: {', '.join(DEVICES)}.")
]


def print_records(records: Sequence[dict[str, Any]], format: Format, keys: Sequence[str] = ()) -> None:
    """Print records of the same keys as JSON, CSV, or columns with a heading; `keys` are needed where there may be none."""
    keys = keys or list(records[0])
    if format is Format.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
    elif format is Format.csv:
        writer = csv.DictWriter(sys.stdout, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    elif records:
        rows = [list(keys), *([_cell(value) for value in record.values()] for record in records)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        numeric = [isinstance(value, int | float) for value in records[-1].values()]
        for row in rows:
            cells = zip(row, widths, numeric, strict=True)
            print("  ".join(f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell, width, right in cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
