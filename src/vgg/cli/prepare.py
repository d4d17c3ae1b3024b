"""vgg prepare"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import Format, FormatOption, print_records, progress

app = typer.Typer(no_args_is_help=True)

WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", "-j", min=1, metavar="N", help="Threads.  [default: as many as there are cores]"),
]


@app.callback()
def prepare() -> None:
    """Make ImageNet's archives ready for training and evaluation, and check what was made.

    Example: `vgg prepare imagenet --val ILSVRC2012_img_val.tar -o imagenet`
    """


@app.command()
def imagenet(
    to: Annotated[Path, typer.Option("--to", "-o", metavar="DIR", help="The folder to fill, with train and val in it.")],
    train: Annotated[Path | None, typer.Option("--train", metavar="TAR", help="ILSVRC2012_img_train.tar.")] = None,
    val: Annotated[Path | None, typer.Option("--val", metavar="TAR", help="ILSVRC2012_img_val.tar.")] = None,
    short_side: Annotated[
        int | None,
        typer.Option("--short-side", min=1, metavar="N", help="Make larger pictures this small; they are encoded anew."),
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Write WebDataset shards, in shuffled order, instead of class folders.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Take the archives as they are, without their published SHA1.")
    ] = False,
    workers: WorkersOption = None,
) -> None:
    """Unpack ImageNet (ILSVRC-2012) from its published archives: DIR/train/n01440764/… and DIR/val/n01440764/….

    Example: `vgg prepare imagenet --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar -o imagenet`

    The same command again goes on where it was cut.
    """
    from ..errors import Error
    from ..sources.imagenet import prepare as library

    archives = {split: path for split, path in (("train", train), ("val", val)) if path}
    if not archives:
        raise Error("nothing to prepare; give --train, --val, or both")
    with progress() as show:
        problems = library(
            to, archives, short_side=short_side, as_shards=shards, verify=not no_verify, workers=workers, progress=show
        )
    for problem in problems:
        print(f"vgg: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `vgg prepare imagenet` has filled.")],
    format: FormatOption = Format.table,
    workers: WorkersOption = None,
) -> None:
    """Say what is missing or broken in a prepared ImageNet; every picture is decoded.

    Example: `vgg prepare check imagenet --format csv`

    The exit code is 1 when anything is.
    """
    from dataclasses import asdict

    from ..sources.check import check as library

    with progress() as show:
        counts, problems = library(folder, workers=workers, progress=show)
    print_records([asdict(problem) for problem in problems], format, ("path", "problem"))
    told = ", ".join(f"{split} {count:,} pictures" for split, count in counts.items())
    found = f"{len(problems):,} problems" if problems else "nothing is missing or broken"
    print(f"vgg: {told}; {found}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
