"""vgg evaluate"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..zoo import EMBEDDED
from .common import (
    DeviceOption,
    EngineOption,
    FlipOption,
    Format,
    FormatOption,
    LabelsOption,
    OutputOption,
    PresetOption,
    ProtocolOption,
    ScaleOption,
    SizesOption,
    ThreadsOption,
    ViewsOption,
    WorkersOption,
    end,
    in_parts,
    numbers,
    print_records,
)  # fmt: skip

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..evaluation import Run
    from ..formats import QuantizedGraph
    from ..network import Network
    from ..sources import Dataset
    from ..views import Views


def evaluate(
    data: Annotated[str, typer.Argument(metavar="DIR", help="A folder of class folders, a list file, or WebDataset shards.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="M", help=f"A model file; may be repeated.  [default: {EMBEDDED}, in the package]"
        ),
    ] = None,
    protocol: ProtocolOption = "center",
    sizes: SizesOption = None,
    flip: FlipOption = False,
    fuse: Annotated[bool, typer.Option("--fuse", help="Also score the mean of the models' probabilities.")] = False,
    no_resize: Annotated[bool, typer.Option("--no-resize", help="Crop the pictures as they are.")] = False,
    real: Annotated[
        Path | None, typer.Option("--real", metavar="FILE", help="ReaL labels, a JSON file, for ReaL accuracy as well.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option("--boxes", metavar="DIR", help="ImageNet's boxes, XML files, for the localisation error as well."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="OUT", help="Also write every prediction, as CSV.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="OUT", help="Also write a report, as one HTML page.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same evaluation was cut.")] = False,
    output: OutputOption = None,
    scale: ScaleOption = None,
    format: FormatOption = Format.table,
    labels: LabelsOption = None,
    preset: PresetOption = None,
    engine: EngineOption = "auto",
    batch_size: ViewsOption = 16,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Say how good models are on labelled pictures.

    Example: `vgg evaluate imagenet/val -m vgg16.onnx -m vgg19.onnx --fuse --report report.html`

    Several models see the same decoded pictures and are compared. When some pictures can't be read, the others are still
    scored, and the exit code is 1.
    """
    from dataclasses import replace

    from .. import sources
    from ..classifier import described, load, read
    from ..errors import Error
    from ..evaluation import read_real, records
    from ..formats import network_of
    from ..views import Views

    for path in filter(None, (predictions, report)):
        if not path.parent.is_dir():
            raise Error(f"{path}: can't be written: there is no folder {path.parent}")
    look = Views(protocol, numbers(sizes, "--sizes"), flip)
    if fuse and len(model or ()) < 2:
        raise Error("--fuse takes the mean of several models; give --model more than once")
    files: list[str | None] = list(model) if model else [None]
    if output or scale:
        networks = [(name, described(network, preset, labels)) for network, name in map(read, files)]
        if no_resize:
            networks = [(name, described(one, replace(network_of(one).preprocessing, resize="none"))) for name, one in networks]
        options = {"engine": engine, "threads": threads, "device": device, "batch_size": batch_size, "workers": workers}
        without = {"--real": real, "--boxes": boxes, "--predictions": predictions, "--report": report, "--resume": resume}
        _in_parts(networks, data, look, fuse, format, output, scale, without=without, **options)
        return
    models = [load(one, engine, threads=threads, device=device, labels=labels, preprocessing=preset) for one in files]
    for one in models if no_resize else ():
        one.network = described(one.network, replace(one.network.preprocessing, resize="none"))
    network = models[0].network
    dataset = sources.open(data, network.architecture.classes, network.labels)
    relabelled = read_real(real, dataset, network.architecture.classes) if real else None
    run = _run(models, dataset, look, fuse=fuse, boxes=boxes, batch_size=batch_size, workers=workers, resume=resume)
    found = records(run, relabelled)
    _print(found, format)
    if predictions:
        _predictions(run, predictions)
    if report:
        from ..evaluation.report import write

        write(run, found, report)
    for error in run.errors.values():
        print(f"vgg: {error}", file=sys.stderr)
    if run.errors:
        raise typer.Exit(1)


def _in_parts(
    models: "Sequence[tuple[str, Network | QuantizedGraph]]",
    data: str,
    protocol: "Views",
    fuse: bool,
    format: Format,
    output: str | None,
    scale: str | None,
    **options: Any,
) -> None:
    from ..runs import Score, records

    task = Score(protocol, fuse)
    run = in_parts(task, models, [data], output, scale, **options)
    found = records(run, task, models)
    _print(found, format)
    end(run)


def _run(models: "Sequence[Classifier]", dataset: "Dataset", protocol: "Views", **options: Any) -> "Run":
    """The evaluation, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from ..evaluation import evaluate

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Evaluating", total=len(dataset))
        try:
            return evaluate(models, dataset, protocol, progress=lambda done: bar.update(task, completed=done), **options)
        except KeyboardInterrupt:
            print("vgg: cut short; the same command with --resume goes on from here", file=sys.stderr)
            raise


def _print(found: Sequence[dict[str, Any]], format: Format) -> None:
    if format is Format.table:
        _table(found)
    else:
        print_records(found, format)


def _table(found: Sequence[dict[str, Any]]) -> None:
    """The records on a terminal: what matters, with intervals, the published figures, and comparisons in words."""

    def within(one: dict[str, Any], name: str) -> str | None:
        if one.get(name) is None:
            return None
        return f"{one[name]:.2f} ({one[f'{name}_low']:.1f}–{one[f'{name}_high']:.1f})"

    rows = [
        {
            "model": one["model"],
            "images": one["images"],
            "failed": one["failed"],
            "top-1 %": within(one, "top1"),
            "top-5 %": within(one, "top5"),
            "loc-1 %": within(one, "loc1"),
            "loc-5 %": within(one, "loc5"),
            "loc known %": within(one, "loc_known"),
            "published": one["published_top1"] and f"{one['published_top1']:.2f} {one['published_top5']:.2f}",
            "ReaL %": one["real"],
            "loss": one["cross_entropy"],
            "calibration %": one["calibration_error"],
            "agreement %": one["agreement"],
            "McNemar's p": one["mcnemar"] and f"{one['mcnemar']:.2g}",
            "images/s": one.get("images_per_second"),
        }
        for one in found
    ]
    kept = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    print_records([{name: row[name] for name in kept} for row in rows], Format.table)


def _predictions(run: "Run", path: Path) -> None:
    from ..evaluation import predictions
    from ..files import replacing

    rows = predictions(run)
    first = next(rows)
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        writer = csv.DictWriter(text, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)
        text.detach()
