"""Shared parts of the verbs: common options, sources of images, progress bars, and printed lists."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from .. import json_output
from ..engines import DEVICES, ENGINES, PRECISIONS
from ..errors import Error, counted, printable
from ..preprocessing import PRESETS
from ..progress import Progress, silent
from ..zoo import EMBEDDED
from .streams import standard_input

if TYPE_CHECKING:
    from ..features import Features
    from ..formats import QuantizedGraph
    from ..heads import Output
    from ..network import Network
    from ..perceptual import Comparison
    from ..predictions import Result
    from ..runs import Finished, Task

PROTOCOLS = ("center", "ten-crop", "dense", "multi-crop", "dense+multi-crop")  # of vgg.views, which is slow to import
MANY = 8  # images for which a progress bar is shown

Outcome = TypeVar("Outcome", "Result", "Features", "Comparison")  # of one image or pair


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


def completion(*names: str) -> Any:
    """Shell completion of one of these names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def one_of(subject: str, names: Iterable[str], metavar: str, *flags: str) -> Any:
    """An option whose value is one of these names."""
    help = f"{subject}: {', '.join(names)}."
    return typer.Option(*flags, metavar=metavar, autocompletion=completion(*names), help=help)


ImagesArgument = Annotated[
    list[str], typer.Argument(help="Images, folders, globs, list files, .tar shards, URLs, or - for standard input.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="M", help=f"Model file or published name (see `vgg models`).  [default: {EMBEDDED}]"),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the printed result.")]
PresetOption = Annotated[str | None, one_of("Preprocessing", PRESETS, "P", "--preset")]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="Class names: text with one per line, JSON, CSV or YAML.")
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        "--head", metavar="H", help="Head, such as 'average, 256 relu dropout 0.5, classes'; replaces the file's reading."
    ),
]
OutputActivationOption = Annotated[
    Literal["softmax", "sigmoid", "binary"] | None,
    typer.Option("--output-activation", help="Scores: of one class of many, of each class, or of two classes with one logit."),
]
InputSizeOption = Annotated[
    int | None, typer.Option("--input-size", min=32, metavar="N", help="Input size in pixels; replaces the file's.")
]
EngineOption = Annotated[str, one_of("Inference engine", ("auto", *ENGINES), "NAME", "--engine", "-e")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="Number of engine threads.  [default: number of cores]")
]
DeviceOption = Annotated[str, one_of("Device", DEVICES, "D", "--device")]
PrecisionOption = Annotated[str, one_of("Precision of products", PRECISIONS, "P", "--precision")]
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top", "-k", min=1, metavar="K", help="Maximum number of predictions per image.  [default: 5; sigmoid: any]"
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", min=0, max=1, metavar="T", help="Predictions have a score above it.  [default: none; sigmoid: 0.5]"
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", "-j", min=1, metavar="N", help="Number of threads that read and decode.  [default: number of cores]"
    ),
]
ProtocolOption = Annotated[
    str, typer.Option("--protocol", "-p", metavar="P", help=f"Views of each image: {', '.join(PROTOCOLS)}.")
]
SizesOption = Annotated[
    str | None,
    typer.Option("--sizes", metavar="N,N", help="Short sides of the resized image in pixels, instead of the preset's."),
]
FlipOption = Annotated[bool, typer.Option("--flip", help="Add the mirrored copy of each view.")]
PartsOption = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="DIR", help="Output folder or URL for bulk work in parts, as Parquet files."),
]
RunnerOption = Annotated[
    str | None, typer.Option("--runner", metavar="R", help="Where bulk work runs: local or ray.  [default: local]")
]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming interrupted work.")]
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", min=1, metavar="N", help="Number of views per engine batch.")]


def print_records(records: Sequence[dict[str, Any]], format: Format, keys: Sequence[str] = ()) -> None:
    """Print records with the same keys as JSON, CSV or a table. `keys` is required if there may be no records."""
    keys = keys or list(records[0])
    if format is Format.json:
        print(json_output.dumps(records, indent=2, ensure_ascii=False))
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
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else printable(str(value))


def reading(
    head: str | None,
    output_activation: "Output | None",
    input_size: int | None,
    preset: str | None,
    labels: Path | None = None,
) -> dict[str, Any]:
    """The arguments of `vgg.load` for the options that replace what a file says of its network."""
    return {
        "head": head, "output": output_activation, "input_size": input_size, "preprocessing": preset, "labels": labels,
    }  # fmt: skip


def read_network(model: str | Path | None, replaced: dict[str, Any]) -> "Network":
    """The network of a model, with what `reading` returns."""
    from ..classifier import described
    from ..formats import read

    given = [name for name, value in replaced.items() if value is not None]
    return described(read(locate(model), given), **replaced)


def find_images(arguments: Sequence[str]) -> tuple[list[Any], list[str]]:
    """The images that a verb's arguments name, and the errors of arguments that name none."""
    from ..sources import find

    images: list[Any] = []
    failures = []
    for argument in arguments:
        try:
            images += [("standard input", standard_input())] if argument == "-" else find(argument)
        except Error as error:
            failures.append(str(error))
    return images, failures


@contextmanager
def reporting(failures: Sequence[str]) -> Iterator[None]:
    """Print the errors of single images on standard error when the block ends, and exit with 1 if there are any."""
    try:
        yield
    finally:
        for failure in failures:
            print(f"vgg: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def numbers(text: str | None, option: str) -> tuple[int, ...]:
    """Comma-separated integers. Raises Error for anything else."""
    try:
        return tuple(int(one) for one in text.split(",")) if text else ()
    except ValueError:
        raise Error(f"{option} takes comma-separated integers, such as 256,384,512; got {text!r}") from None


@contextmanager
def progress() -> Iterator[Progress]:
    """A `Progress` that draws a bar for each task on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    tasks: dict[str, Any] = {}
    with ExitStack() as stack:

        def show(task: str, done: int, total: int | None, unit: str = "", /) -> None:
            if not tasks:  # rich is loaded for the first task
                tasks[""] = stack.enter_context(_bars())
            if task not in tasks:
                tasks[task] = tasks[""].add_task(printable(task), unit=unit)
            tasks[""].update(tasks[task], completed=done, total=total)

        yield show


def _bars() -> Any:
    from rich import progress as rich
    from rich.console import Console

    counts, sizes, speed = rich.MofNCompleteColumn(), rich.DownloadColumn(), rich.TransferSpeedColumn()

    class Amount(rich.ProgressColumn):
        def render(self, task: Any) -> Any:
            return sizes.render(task) + "  " + speed.render(task) if task.fields["unit"] == "bytes" else counts.render(task)

    columns = (
        rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.TaskProgressColumn(), Amount(),
        rich.TimeRemainingColumn(),
    )  # fmt: skip
    # Results that are printed to the same terminal are redirected, so that the bars stay below them.
    return rich.Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())


def locate(model: str | Path | None) -> Path:
    """The file of a model, with a progress bar if it is downloaded; see `vgg.zoo.locate`."""
    from .. import zoo

    with progress() as show:
        return zoo.locate(model, show)


@contextmanager
def resumable(*, fresh: bool) -> Iterator[Progress]:
    """`progress()` for work that the same command resumes, without `--fresh`; this is printed if it is interrupted."""
    try:
        with progress() as show:
            yield show
    except KeyboardInterrupt:
        print(f"vgg: interrupted; the same command {'without --fresh ' * fresh}resumes", file=sys.stderr)
        raise


def tracked(results: Iterable[Outcome], total: int, failures: list[str], task: str) -> Iterator[Outcome]:
    """The results as they come, with a progress bar if there are many; their errors are appended to `failures`."""
    with progress() if total > MANY else nullcontext(silent) as show:
        for done, result in enumerate(results, 1):
            if result.error:
                failures.append(result.error)
            show(task, done, total)
            yield result


def run_in_parts(
    task: "Task",
    models: Sequence[tuple[str, "Network | QuantizedGraph"]],
    places: Sequence[str],
    output: str | None,
    runner: str | None,
    *,
    fresh: bool,
    unsupported: dict[str, Any] | None = None,
    **options: Any,
) -> "Finished":
    """A verb's bulk work, with a progress bar. `unsupported` holds options that can't be combined with --output."""
    from ..runs import run

    if output is None:
        raise Error(f"{'--runner' if runner else '--fresh'} requires --output, the folder or URL to write to")
    for option in (name for name, value in (unsupported or {}).items() if value):
        raise Error(f"{option} can't be combined with --output")
    with resumable(fresh=fresh) as show:
        return run(task, models, places, output, runner=runner or "local", fresh=fresh, progress=show, **options)


def exit_after(run: "Finished") -> None:
    """Print a summary of bulk work on standard error, and exit with 1 if images failed."""
    images, parts = counted(run.images, "image"), counted(run.plan.parts, "part")
    print(f"{printable(run.folder.place)}: {images} in {parts}, {run.failed:,} failed", file=sys.stderr)
    hidden = run.failed - len(run.errors)
    with reporting([*run.errors, *([f"and {hidden:,} more; see the column `error`"] if hidden > 0 else [])]):
        pass
