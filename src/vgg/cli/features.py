"""vgg features"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..zoo import EMBEDDED
from .common import (
    DeviceOption,
    EngineOption,
    FlipOption,
    OutputOption,
    PresetOption,
    ProtocolOption,
    ScaleOption,
    SizesOption,
    ThreadsOption,
    ViewsOption,
    WorkersOption,
    counted,
    end,
    find_pictures,
    in_parts,
    numbers,
)  # fmt: skip


def features(
    images: Annotated[list[str], typer.Argument(help="Pictures, folders of them, globs, or - for standard input.")],
    to: Annotated[
        Path | None, typer.Option("--to", "-o", metavar="OUT", help="The file to write, .npz or .parquet.", show_default=False)
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", "-l", metavar="L", help="Such as fc7 or conv5_3; may be repeated.  [default: last but one]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="M", help=f"A model file or name; see `vgg models`.  [default: {EMBEDDED}]"),
    ] = None,
    protocol: ProtocolOption = "center",
    sizes: SizesOption = None,
    flip: FlipOption = False,
    stack: Annotated[bool, typer.Option("--stack", help="The scales side by side instead of their mean.")] = False,
    normalize: Annotated[bool, typer.Option("--normalize", help="Each vector to length 1 (L2).")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Keep a convolution's map instead of its mean.")] = False,
    output: OutputOption = None,
    scale: ScaleOption = None,
    preset: PresetOption = None,
    engine: EngineOption = "auto",
    batch_size: ViewsOption = 16,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Turn pictures into vectors, for other classifiers, search and comparison.

    Example: `vgg features photos/ -o photos.npz --layer fc7 -m vgg16.onnx`

    A layer's values are averaged over all places, views and scales. As the paper does it:
    `-p dense --sizes 256,384,512 --flip --normalize`. When some pictures can't be read, the others are still written, and
    the exit code is 1.
    """
    from .. import classifier as library
    from ..features import Descriptor, extract, write
    from ..views import Views

    look = Views(protocol, numbers(sizes, "--sizes"), flip)
    descriptor = Descriptor(tuple(layer or ()), look, stack, normalize, maps)
    if output or scale:
        from ..runs import Describe

        network, name = library.read(model)
        models = [(name, library.described(network, preset))]
        options = {"engine": engine, "threads": threads, "device": device, "batch_size": batch_size, "workers": workers}
        end(in_parts(Describe(descriptor), models, images, output, scale, without={"--to": to}, **options))
        return
    if to is None:
        raise typer.BadParameter("where to? --to OUT writes one file, --output DIR many, in parts")
    pictures, failures = find_pictures(images)
    found = library.load(model, engine, threads=threads, device=device, preprocessing=preset)
    results = extract(found, pictures, descriptor, batch_size=batch_size, workers=workers)
    try:
        if pictures:
            shapes = write(counted(results, len(pictures), failures, "Describing"), to)
            typer.echo(f"{to}: {', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())}", err=True)
    finally:
        for failure in failures:
            print(f"vgg: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)
