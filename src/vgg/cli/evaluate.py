"""vgg evaluate"""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..zoo import EMBEDDED
from . import common

if TYPE_CHECKING:
    from ..evaluation import Evaluation


def evaluate(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of class folders, list file, table, WebDataset shards, or CIFAR.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="M", help=f"Model file or name; may be repeated.  [default: {EMBEDDED}]"),
    ] = None,
    protocol: common.ProtocolOption = "center",
    sizes: common.SizesOption = None,
    flip: common.FlipOption = False,
    fuse: Annotated[bool, typer.Option("--fuse", help="Score the mean of the models' probabilities as well.")] = False,
    no_resize: Annotated[bool, typer.Option("--no-resize", help="Crop the images without resizing them.")] = False,
    real: Annotated[
        Path | None, typer.Option("--real", metavar="FILE", help="ReaL labels (real.json), for the ReaL accuracy.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", metavar="DIR", help="ImageNet's boxes (XML files), for the localisation error.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Output file (.csv) for every prediction.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Output file (.html) for a report.")] = None,
    output: common.PartsOption = None,
    runner: common.RunnerOption = None,
    fresh: common.FreshOption = False,
    format: common.FormatOption = common.Format.table,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, metavar="T", help="Predictions have a score above it; for F1.")
    ] = 0.5,
    labels: common.LabelsOption = None,
    preset: common.PresetOption = None,
    head: common.HeadOption = None,
    output_activation: common.OutputActivationOption = None,
    input_size: common.InputSizeOption = None,
    engine: common.EngineOption = "auto",
    batch_size: common.BatchOption = 16,
    workers: common.WorkersOption = None,
    threads: common.ThreadsOption = None,
    device: common.DeviceOption = "cpu",
    precision: common.PrecisionOption = "auto",
) -> None:
    """Evaluate models on labelled images.

    Example: `vgg evaluate imagenet/val -m vgg16.onnx -m vgg19.onnx --fuse --report report.html`

    Several models are evaluated on the same decoded images and compared with the first one. The exit code is 1 if images can't
    be read; the others are scored. An interrupted evaluation is resumed by the same command. Images have one class each; with a
    network whose output is `sigmoid`, any number, from a list or table.
    """
    from dataclasses import replace

    from .. import sources
    from ..classifier import described, load, read
    from ..errors import Error
    from ..evaluation import evaluate, read_real, records
    from ..evaluation.run import check_models
    from ..formats import network_of
    from ..views import Views

    for path in filter(None, (predictions, report)):
        if not path.parent.is_dir():
            raise Error(f"{path}: can't be written: folder {path.parent} not found")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise Error(f"{path}: can't be written: {'is a folder' if path.is_dir() else 'permission denied'}")
    if no_resize and sizes:
        raise Error("--no-resize can't be combined with --sizes, to which images are resized")
    views = Views(protocol, common.numbers(sizes, "--sizes"), flip)
    if fuse and len(model or ()) < 2:
        raise Error("--fuse requires several models; repeat --model")
    files: list[str | None] = list(model) if model else [None]
    reading = common.reading(head, output_activation, input_size, preset, labels)
    if output or runner:
        from ..runs import Score
        from ..runs import records as summed

        networks = [(name, network) for network, name in (read(common.locate(one), **reading) for one in files)]
        if no_resize:
            networks = [(name, described(one, replace(network_of(one).preprocessing, resize="none"))) for name, one in networks]
        task, unsupported = (
            Score(views, fuse),
            {"--real": real, "--boxes": boxes, "--predictions": predictions, "--report": report},
        )
        run = common.run_in_parts(
            task, networks, [data], output, runner, unsupported=unsupported, engine=engine, threads=threads, device=device,
            precision=precision, batch_size=batch_size, workers=workers, fresh=fresh,
        )  # fmt: skip
        _print(summed(run, task, networks, threshold), format)
        common.exit_after(run)
        return
    models = [load(common.locate(one), engine, threads=threads, device=device, precision=precision, **reading) for one in files]
    check_models(models, views)
    for one in models if no_resize else ():
        one.network = described(one.network, replace(one.network.preprocessing, resize="none"))
    network = models[0].network
    several = network.architecture.output == "sigmoid"
    dataset = sources.open(data, network.architecture.classes, network.labels, several=several)
    relabelled = read_real(real, dataset, network.architecture.classes) if real else None
    options: dict[str, Any] = {"fuse": fuse, "boxes": boxes, "batch_size": batch_size, "workers": workers, "fresh": fresh}
    with common.resumable(fresh=fresh) as show:
        evaluation = evaluate(models, dataset, views, progress=show, **options)
    found = records(evaluation, relabelled, threshold)
    with common.reporting(list(evaluation.errors.values())):
        if predictions:
            _write_predictions(evaluation, predictions)
        if report:
            from ..evaluation.report import write

            write(evaluation, found, report, threshold)
        _print(found, format)


def _print(found: Sequence[dict[str, Any]], format: common.Format) -> None:
    """Print records; as a table, only the main figures, with intervals."""
    if format is not common.Format.table:
        common.print_records(found, format)
        return

    def within(one: dict[str, Any], name: str) -> str | None:
        value, low = one.get(name), one.get(f"{name}_low")
        if value is None or low is None:
            return value
        return f"{value:.2f} ({low:.1f}–{one[f'{name}_high']:.1f})"

    rows = [
        {
            "model": one["model"],
            "images": one["images"],
            "failed": one["failed"],
            "top-1 %": within(one, "top1"),
            "top-5 %": within(one, "top5"),
            "balanced %": one.get("balanced_accuracy"),
            "ROC AUC %": within(one, "roc_auc"),
            "sensitivity %": within(one, "sensitivity"),
            "specificity %": within(one, "specificity"),
            "F1 %": one.get("f1"),
            "mAP %": one.get("map"),
            "F1 micro %": one.get("f1_micro"),
            "F1 macro %": one.get("f1_macro"),
            "loc-1 %": within(one, "loc1"),
            "loc-5 %": within(one, "loc5"),
            "loc known %": within(one, "loc_known"),
            "published": one["published_top1"] and f"{one['published_top1']:.2f} {one['published_top5']:.2f}",
            "ReaL %": one.get("real"),
            "loss": one["cross_entropy"],
            "calibration %": one.get("calibration_error"),
            "agreement %": one.get("agreement"),
            "McNemar's p": one.get("mcnemar") and f"{one['mcnemar']:.2g}",
            "images/s": one.get("images_per_second"),
        }
        for one in found
    ]
    kept = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    common.print_records([{name: row[name] for name in kept} for row in rows], common.Format.table)


def _write_predictions(evaluation: "Evaluation", path: Path) -> None:
    from ..evaluation import predictions
    from ..files import write_csv

    rows = predictions(evaluation)
    first = next(rows)
    write_csv(path, first, (row.values() for row in chain([first], rows)))
