"""vgg train"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..architectures import CONFIGURATIONS
from . import common

if TYPE_CHECKING:
    from ..training import CrossValidation, RateTest

RECIPES = ("zoo", "paper", "torchvision", "modern", "cifar", "finetune", "distil")
ROWS = 13  # of the table of learning rates
BY_RECIPE = "[default: the recipe's]"


def train(
    data: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Class folders, a list, shards or CIFAR; or a folder with train, val and test."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Output folder of the run (model.onnx, last.pt, log.csv).")
    ],
    val: Annotated[
        str | None,
        typer.Option(
            "--val", metavar="DIR",
            help="Validation images, which choose the epoch.  [default: DIR/val, or else a tenth of the training images]",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="DIR", help="Test images, read once after training.  [default: DIR/test, if it exists]"),
    ] = None,
    group: Annotated[
        str,
        typer.Option(
            "--group", metavar="REGEX",
            help="Pattern in image names, such as 'person\\d+'; images with the same match stay together in every split.",
        ),
    ] = "",
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, metavar="K", help="Number of folds of a cross-validation; each is a run in a folder."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", metavar="R", autocompletion=common.completion(*RECIPES),
            help=f"Recipe: {', '.join(RECIPES)}.  "
            "[default: modern, up to 64 pixels cifar; with --from finetune, with --teacher distil]",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help=f"Number of epochs.  {BY_RECIPE}")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, metavar="N", help=f"Number of images in a batch.  {BY_RECIPE}")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", min=0, metavar="X", help=f"Learning rate.  {BY_RECIPE}")] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Learning-rate range test instead of training; suggests a rate, writes lr.png.")
    ] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Another field of the recipe, such as mixup=0.2; may be repeated."),
    ] = None,
    arch: Annotated[
        str,
        typer.Option(
            "--arch", "-a", metavar="A", autocompletion=common.completion(*CONFIGURATIONS),
            help="Architecture of a new network."
        ),
    ] = "vgg16-bn",
    width: Annotated[float, typer.Option("--width", metavar="X", help="Width of a new network; the paper's is 1.")] = 1.0,
    size: Annotated[
        int | None,
        typer.Option(
            "--input-size", min=32, metavar="N", help="Input size in pixels; of a new network.  [default: 224; CIFAR: 32]"
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head", metavar="H",
            help="Head, such as 'average, 256 relu dropout 0.5, classes'.  [default: as --from, or gap up to 64 pixels, or fc]",
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option("--init-from", metavar="M", help="Network whose parameters initialise a new network, where they fit."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="M", help="Network to fine-tune; new classes get a new last layer, --head a new head."),
    ] = None,
    freeze: Annotated[str, typer.Option("--freeze", metavar="LAYER", help="Last frozen block or layer, such as conv4.")] = "",
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="M", help="Network whose scores replace the labels; may be repeated."),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option("--match", metavar="LAYER", help="Layer trained to equal the first teacher's; may be repeated."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Folder for values of frozen layers and teachers.  [default: in the run]"),
    ] = None,
    micro_batch: Annotated[
        int, typer.Option("--micro-batch", min=0, metavar="N", help="Largest number of images computed at once; 0: no limit.")
    ] = 0,
    fresh: common.FreshOption = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, metavar="N", help="Random seed.")] = 0,
    labels: common.LabelsOption = None,
    workers: common.WorkersOption = None,
    device: common.DeviceOption = "cpu",
) -> None:  # fmt: skip
    """Train a network, fine-tune one, or distil one from others; the result is an ONNX file. Requires `vgg[train]`.

    The same command resumes an interrupted run.

    Example: `vgg train cifar-10-batches-bin -o run --arch vgg11-bn --width 0.25 --epochs 30`

    For several devices: `torchrun --nproc-per-node 8 -m vgg train imagenet -o run --device cuda`
    """
    from dataclasses import replace

    from ..formats import read
    from ..labels import Labels
    from ..network import Network
    from ..training import Options, cross_validate, find_rate, recipes
    from ..training import train as run
    from ..training.student import input_size

    usual = "cifar" if input_size(data, size) <= recipes.SMALL else "modern"
    chosen = recipes.named(recipe or ("distil" if teacher else "finetune" if start else usual))
    given = {"epochs": epochs, "batch": batch_size, "lr": lr}
    settings = [f"{name}={value}" for name, value in given.items() if value is not None] + (setting or [])

    def network(name: str | None) -> Network | None:
        return read(common.locate(name)) if name else None

    options = Options(
        data, output, recipes.changed(chosen, settings), val=val, test=test, group=group,
        labels=Labels.read(labels) if labels else None, arch=arch, width=width, size=size, head=head,
        init=network(init_from), start=network(start), freeze=freeze,
        teachers=[read(common.locate(name)) for name in teacher or ()], matched=tuple(match or ()), cache=cache,
        micro_batch=micro_batch, seed=seed, device=device, workers=workers, fresh=fresh,
    )  # fmt: skip
    if find_lr:
        with common.progress() as show:
            found = find_rate(replace(options, fold=(1, folds)) if folds else options, show, _log)
        if _first_process():
            _print_rates(found)
        return
    with common.resumable(fresh=fresh) as show:
        crossed = cross_validate(options, folds, show, _log) if folds else None
        outcomes = crossed.folds if crossed else [run(options, show, _log)]
    if _first_process():
        for error in dict.fromkeys(error for outcome in outcomes for error in outcome.errors.values()):
            print(f"vgg: skipped: {error}", file=sys.stderr)
        if crossed:
            _print_folds(crossed)
        else:
            print(outcomes[0].path)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _print_rates(found: "RateTest") -> None:
    """Print the smoothed loss at some learning rates, and the suggestion."""
    rows = list(zip(found.rates, found.smoothed, strict=True))
    rows = [rows[round(place * (len(rows) - 1) / (ROWS - 1))] for place in range(ROWS)]
    common.print_records([{"lr": f"{lr:.1e}", "loss": f"{loss:.4f}"} for lr, loss in dict(rows).items()], common.Format.table)
    print(f"suggestion: --lr {found.suggestion:g}" if found.suggestion else "no suggestion: the loss did not fall")


def _print_folds(found: "CrossValidation") -> None:
    """Print the measures of each fold, their mean with its standard deviation, and those of all images."""
    from ..training.test_set import TITLES

    rows: list[dict[str, Any]] = [{"fold": str(number), **(one.test or {})} for number, one in enumerate(found.folds, 1)]
    spread = {name: f"{value:.2f} ± {found.deviation[name]:.2f}" for name, value in found.mean.items()}
    rows += [{"fold": "mean", "images": None, **spread}, {"fold": "all", **found.pooled}]
    columns = {"fold": "fold", "images": "images", **{name: f"{TITLES[name]} %" for name in found.mean}}
    common.print_records([{title: row[name] for name, title in columns.items()} for row in rows], common.Format.table)
