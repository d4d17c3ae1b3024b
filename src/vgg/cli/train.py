"""vgg train"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..architectures import CONFIGURATIONS
from .common import DeviceOption, LabelsOption, WorkersOption

RECIPES = ("zoo", "paper", "torchvision", "modern", "finetune", "distil")
NEEDED = ("torch", "kornia", "tensorboardX", "matplotlib")


def _architectures(incomplete: str) -> list[str]:
    return [name for name in CONFIGURATIONS if name.startswith(incomplete)]


def _recipes(incomplete: str) -> list[str]:
    return [name for name in RECIPES if name.startswith(incomplete)]


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Pictures: class folders, a list, WebDataset shards, or CIFAR-10; or a folder of such, train and val.",
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", "-o", metavar="DIR", help="The folder for the run: model.onnx, last.pt, log.csv …")
    ],
    val: Annotated[
        str | None,
        typer.Option("--val", metavar="DIR", help="Pictures to judge by.  [default: DIR/val, or else a tenth of the pictures]"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="R",
            autocompletion=_recipes,
            help=f"How: {', '.join(RECIPES)}.  [default: modern; with --from finetune, with --teacher distil]",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help="Instead of the recipe's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", min=1, metavar="N", help="Pictures a step, instead of the recipe's.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", min=0, metavar="X", help="Learning rate, instead of the recipe's.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any other field of the recipe, such as mixup=0; may be repeated."),
    ] = None,
    arch: Annotated[
        str, typer.Option("--arch", "-a", metavar="A", autocompletion=_architectures, help="The architecture of a new network.")
    ] = "vgg16-bn",
    width: Annotated[
        float, typer.Option("--width", metavar="X", help="Of each of its layers, as a share of the paper's.")
    ] = 1.0,
    size: Annotated[
        int | None, typer.Option("--size", min=32, metavar="N", help="Pixels of its input.  [default: 224; 32 for CIFAR-10]")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="H", help="fc or gap.  [default: gap for inputs of 64 pixels or less, else fc]"),
    ] = None,
    init_from: Annotated[
        str | None, typer.Option("--init-from", metavar="M", help="Begin with the parameters of this shallower network.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="M", help="Fine-tune this network, with a new last layer for new classes.")
    ] = None,
    freeze: Annotated[
        str, typer.Option("--freeze", metavar="LAYER", help="Leave its layers up to this one as they are, such as conv4.")
    ] = "",
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="M", help="Learn this network's scores instead of labels; may be repeated."),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option("--match", metavar="LAYER", help="Be like the teacher in this layer, too; may be repeated."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Where to keep what frozen layers and teachers give.  [default: in the run]"
        ),
    ] = None,
    micro_batch: Annotated[
        int, typer.Option("--micro-batch", min=0, metavar="N", help="Pictures a device takes at once; 0: the whole batch.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same run was cut.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of everything random.")] = 0,
    labels: LabelsOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a network, fine-tune one, or distil one from others; the result is an ONNX file. Needs `vgg[train]`.

    Example: `vgg train cifar-10-batches-bin -o run --arch vgg11-bn --width 0.25 --epochs 30`

    For several devices: `torchrun --nproc-per-node 8 -m vgg train imagenet -o run --device cuda`
    """
    from dataclasses import replace
    from importlib.util import find_spec

    from ..errors import Error
    from ..labels import Labels

    if missing := [package for package in NEEDED if find_spec(package) is None]:
        raise Error(f"training needs {', '.join(missing)}; `pip install 'vgg[train]'` brings what is missing")
    from ..formats import read
    from ..network import Network
    from ..training import Options, recipes
    from ..training import train as library
    from ..zoo import locate

    chosen = recipes.named(recipe or ("distil" if teacher else "finetune" if start else "modern"))
    given: dict[str, Any] = {"epochs": epochs, "batch": batch_size, "lr": lr}
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    chosen = replace(chosen, plain_lr=0.0) if lr is not None else chosen

    def network(name: str | None) -> Network | None:
        return read(locate(name)) if name else None

    options = Options(
        data, to, recipes.changed(chosen, setting or []), val, Labels.read(labels) if labels else None, arch, width, size, head,
        network(init_from), network(start), freeze, [read(locate(one)) for one in teacher or ()], tuple(match or ()),
        cache, micro_batch, seed, device, workers, resume,
    )  # fmt: skip
    with _progress() as (progress, told):
        try:
            outcome = library(options, progress, told)
        except KeyboardInterrupt:
            told("cut short; the same command with --resume goes on from the last checkpoint")
            raise
    if int(os.environ.get("RANK", 0)) == 0:
        for error in outcome.errors.values():
            print(f"vgg: left out: {error}", file=sys.stderr)
        print(outcome.path)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """A function that shows how much of what is done, on a terminal only, and one that prints a line on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show, lambda line: console.print(line, markup=False)
