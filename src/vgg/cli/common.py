"""What the verbs share: the options they have in common, and how a list is printed."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..engines import DEVICES, ENGINES
from ..errors import Error
from ..preprocessing import PRESETS

if TYPE_CHECKING:
    from ..features import Features
    from ..formats import QuantizedGraph
    from ..network import Network
    from ..predictions import Result
    from ..runs import Finished, Task

PROTOCOLS = ("center", "ten-crop", "dense", "multi-crop", "dense+multi-crop")  # as vgg.evaluation has them
MANY = 8  # pictures that are worth a progress bar

Outcome = TypeVar("Outcome", "Result", "Features")  # what came of one picture


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
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=1, metavar="N", help="Threads that decode.  [default: as many as there are cores]"),
]

ProtocolOption = Annotated[
    str, typer.Option("--protocol", "-p", metavar="P", help=f"How a picture is looked at: {', '.join(PROTOCOLS)}.")
]
SizesOption = Annotated[
    str | None, typer.Option("--sizes", metavar="N,N", help="Short sides in pixels, instead of the preset's: 256,384,512.")
]
FlipOption = Annotated[bool, typer.Option("--flip", help="Also look at each view mirrored.")]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Work in parts, and write the rows to this folder or URL, as Parquet files; a run that was cut goes on.",
    ),
]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", metavar="S", help="With --output: local, or ray, on many machines.  [default: local]")
]
ViewsOption = Annotated[int, typer.Option("--batch-size", "-b", min=1, metavar="N", help="Views an engine gets at once.")]


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
        numeric = [any(isinstance(record[name], int | float) for record in records) for name in records[0]]
        for row in rows:
            cells = zip(row, widths, numeric, strict=True)
            print("  ".join(f"{cell:>{width}}" if right else f"{cell:<{width}}" for cell, width, right in cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def find_pictures(images: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The pictures that a verb's arguments mean, with their names, and what is wrong with arguments that mean none."""
    from ..errors import ImageError
    from ..images import find

    pictures: list[Any] = []
    failures = []
    for image in images:
        try:
            pictures += [("standard input", sys.stdin.buffer.read())] if image == "-" else find(image)
        except ImageError as error:
            failures.append(str(error))
    return pictures, failures


def counted(results: Iterable[Outcome], total: int, failures: list[str], doing: str) -> Iterator[Outcome]:
    """The results, with a progress bar on a terminal when there are many; their errors are gathered in `failures`."""
    for result in _tracked(results, total, doing) if total > MANY and sys.stderr.isatty() else results:
        if result.error:
            failures.append(result.error)
        yield result


def _tracked(results: Iterable[Outcome], total: int, doing: str) -> Iterator[Outcome]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    # Where results scroll through the same terminal, the bar must know of them to stay below.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        yield from bar.track(results, total=total, description=doing)


def numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers with commas between them. Raises Error for anything else."""
    try:
        return tuple(int(one) for one in text.split(",")) if text else ()
    except ValueError:
        raise Error(f"{option} takes whole numbers with commas between them, such as 256,384,512, not {text!r}") from None


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows how much of what is done; a bar for each thing, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)

        yield show


def in_parts(
    task: "Task",
    models: Sequence[tuple[str, "Network | QuantizedGraph"]],
    places: Sequence[str],
    output: str | None,
    scale: str | None,
    *,
    without: dict[str, Any] | None = None,
    **options: Any,
) -> "Finished":
    """A verb's work in parts, with a progress bar on a terminal. `without`: options that don't go with --output."""
    from ..runs import run

    if output is None:
        raise Error("--scale needs --output, the folder or URL where the results go")
    for option in (name for name, value in (without or {}).items() if value):
        raise Error(f"{option} doesn't go with --output")
    try:
        with progress() as show:
            doing = f"{type(task).__name__} in parts"
            return run(
                task, models, places, output, scale=scale or "local", progress=lambda *done: show(doing, *done), **options
            )
    except KeyboardInterrupt:
        print("vgg: cut short; the same command goes on from here", file=sys.stderr)
        raise


def end(run: "Finished") -> None:
    """Say on standard error what came of a run in parts, and end with code 1 where pictures failed."""
    parts = f"{run.plan.parts:,} part{'s' * (run.plan.parts != 1)}"
    print(f"{run.folder.place}: {run.pictures:,} pictures in {parts}, {run.failed:,} failed", file=sys.stderr)
    for error in run.errors:
        print(f"vgg: {error}", file=sys.stderr)
    if run.failed > len(run.errors):
        print(f"vgg: and {run.failed - len(run.errors):,} more; the column `error` has all", file=sys.stderr)
    if run.failed:
        raise typer.Exit(1)
