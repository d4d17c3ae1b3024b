"""vgg prepare"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import common

app = typer.Typer(no_args_is_help=True)


@app.callback()
def prepare() -> None:
    """Prepare ImageNet's archives for training and evaluation, and check the result.

    Example: `vgg prepare imagenet --val ILSVRC2012_img_val.tar -o imagenet`
    """


@app.command()
def imagenet(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Output folder, for train and val.")],
    train: Annotated[
        Path | None, typer.Option("--train", metavar="TAR", help="Training archive, ILSVRC2012_img_train.tar.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option("--val", metavar="TAR", help="Validation archive, ILSVRC2012_img_val.tar.")
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option("--short-side", min=1, metavar="N", help="Short side in pixels that larger images are resized to."),
    ] = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Write shuffled WebDataset shards instead of class folders.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Accept archives without the published SHA1.")] = False,
    fresh: common.FreshOption = False,
    workers: common.WorkersOption = None,
) -> None:
    """Unpack ImageNet (ILSVRC-2012) from its published archives: DIR/train/n01440764/… and DIR/val/n01440764/….

    Example: `vgg prepare imagenet --train ILSVRC2012_img_train.tar --val ILSVRC2012_img_val.tar -o imagenet`

    The same command resumes an interrupted run.
    """
    from ..errors import Error
    from ..sources.imagenet import prepare as library

    archives = {split: path for split, path in (("train", train), ("val", val)) if path}
    if not archives:
        raise Error("nothing to prepare; set --train, --val, or both")
    problems: list[str] = []
    with common.reporting(problems), common.resumable(fresh=fresh) as show:
        problems += library(
            output, archives, short_side=short_side, as_shards=shards, verify=not no_verify, fresh=fresh, workers=workers,
            progress=show,
        )  # fmt: skip


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder filled by `vgg prepare imagenet`.")],
    format: common.FormatOption = common.Format.table,
    workers: common.WorkersOption = None,
) -> None:
    """List missing and damaged images of a prepared ImageNet. All images are decoded.

    Example: `vgg prepare check imagenet --format csv`

    The exit code is 1 if any are found.
    """
    from dataclasses import asdict

    from ..sources.check import check as library

    with common.progress() as show:
        counts, problems = library(folder, workers=workers, progress=show)
    common.print_records([asdict(problem) for problem in problems], format, ("path", "problem"))
    splits = ", ".join(f"{split} {count:,} images" for split, count in counts.items())
    print(f"vgg: {splits}; {len(problems):,} problems" if problems else f"vgg: {splits}; no problems", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
