"""vgg sample"""

import math
from pathlib import Path
from typing import Annotated

import typer

from .common import DeviceOption, EngineOption, Format, FormatOption, ThreadsOption, print_records

app = typer.Typer(
    help="""Make or check sample data: inputs, and the outputs that a model must give for them.

    Example: `vgg sample make vgg16.onnx -o vgg16.tar.gz`""",
    no_args_is_help=True,
)


@app.command()
def make(
    model: Annotated[str, typer.Argument(help="A model file or name; see `vgg models`.")],
    images: Annotated[list[str] | None, typer.Argument(help="Pictures, folders of them, globs; each is a set.")] = None,
    *,
    to: Annotated[Path, typer.Option("-o", "--to", metavar="OUT", help="The tarball to write, .tar.gz.")],
    sets: Annotated[int, typer.Option("--sets", min=1, metavar="N", help="How many sets, where no pictures are given.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the random pixels.")] = 0,
) -> None:
    """Write a model with sample data in the layout of the ONNX Model Zoo.

    Example: `vgg sample make vgg16.onnx examples/ -o vgg16.tar.gz`

    ONNX Runtime gives the outputs. Without pictures, the inputs are random pixels. The same call writes the same bytes.
    """
    from rich.console import Console

    from .. import samples
    from ..zoo import locate

    path = locate(model)
    with Console(stderr=True).status("Writing"):
        count = samples.make(path, to, images or None, sets=sets, seed=seed)
    typer.echo(f"{to}: {count} set{'s' * (count > 1)}, {to.stat().st_size / 1e6:,.1f} MB", err=True)


@app.command()
def check(
    place: Annotated[Path, typer.Argument(help="A tarball, a folder, or an .npz file beside its model.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="M", help="A model file or name, instead of the one with the data.")
    ] = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    format: FormatOption = Format.table,
) -> None:
    """Run a model on its sample data, and say how near it comes to the outputs there.

    Example: `vgg sample check vgg16.tar.gz --engine onnxruntime`

    A difference may be 1e-7 + 1e-3 of the value + 2e-5 of the largest value. Where one is larger, the exit code is 1.
    """
    import warnings
    from dataclasses import asdict

    from rich.console import Console

    from .. import samples
    from ..errors import Notice
    from ..zoo import locate

    path = locate(model) if model else None
    with warnings.catch_warnings(), Console(stderr=True).status("Checking"):
        warnings.simplefilter("ignore", Notice)  # guesses about preprocessing and labels make no difference here
        found = samples.check(place, path, engine, threads=threads, device=device)

    if format is Format.table:
        rows = [(one.set, f"{one.error:.1e}", f"{one.share:.1%}", "yes" if one.passed else "NO") for one in found]
        print_records([dict(zip(("set", "error", "of allowed", "passed"), row, strict=True)) for row in rows], format)
    else:
        print_records([{name: _number(value) for name, value in asdict(one).items()} for one in found], format)
    if not all(one.passed for one in found):
        raise typer.Exit(1)


def _number(value: object) -> object:
    """A value that JSON can hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
