"""vgg sample"""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import Notice, counted
from . import common

app = typer.Typer(
    help="""Make or check sample data: inputs with the outputs that a model must produce.

    Example: `vgg sample make vgg16.onnx -o vgg16.tar.gz`""",
    no_args_is_help=True,
)


@app.command()
def make(
    model: Annotated[str, typer.Argument(help="Model file, or published name (see `vgg models`).")],
    images: Annotated[list[str] | None, typer.Argument(help="Images, folders or globs; one set per image.")] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Output file (.tar.gz).")],
    sets: Annotated[int, typer.Option("--sets", min=1, metavar="N", help="Number of sets of random pixels.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Random seed.")] = 0,
) -> None:
    """Write a model with sample data in the layout of the ONNX Model Zoo.

    Example: `vgg sample make vgg16.onnx examples/ -o vgg16.tar.gz`

    ONNX Runtime (`vgg[onnxruntime]`) computes the outputs. Without images, the inputs are random pixels. The same command
    writes the same bytes.
    """
    from rich.console import Console

    from .. import samples

    path = common.locate(model)
    with Console(stderr=True).status("Writing"):
        count = samples.make(path, output, images or None, sets=sets, seed=seed)
    typer.echo(f"{output}: {counted(count, 'set')}, {output.stat().st_size / 1e6:,.1f} MB", err=True)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Tarball, folder, or .npz file in the folder of its model.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="M", help="Model file, or published name; by default the model in the data."),
    ] = None,
    engine: common.EngineOption = "auto",
    threads: common.ThreadsOption = None,
    device: common.DeviceOption = "cpu",
    format: common.FormatOption = common.Format.table,
) -> None:
    """Compare a model's outputs with the expected outputs of sample data.

    Example: `vgg sample check vgg16.tar.gz --engine onnxruntime`

    The allowed difference is 1e-7 + 1e-3 of the value + 2e-5 of the largest value. If it is exceeded, the exit code is 1.
    """
    import warnings
    from dataclasses import asdict

    from rich.console import Console

    from .. import samples

    path = common.locate(model) if model else None
    with warnings.catch_warnings(), Console(stderr=True).status("Checking"):
        warnings.simplefilter("ignore", Notice)  # guesses of preprocessing and labels don't matter here
        results = samples.check(data, path, engine, threads=threads, device=device)
    records = [asdict(result) for result in results]
    if format is common.Format.table:
        names = ("set", "error", "of allowed", "passed")
        rows = [(one.set, f"{one.error:.1e}", f"{one.share:.1%}", "yes" if one.passed else "NO") for one in results]
        records = [dict(zip(names, row, strict=True)) for row in rows]
    common.print_records(records, format)
    if not all(result.passed for result in results):
        raise typer.Exit(1)
