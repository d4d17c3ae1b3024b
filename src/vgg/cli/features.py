"""vgg features"""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import common


def features(
    images: common.ImagesArgument,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT", help="Output file (.npz, .parquet), or a folder or URL for bulk work."),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", "-l", metavar="L", help="Layer, such as conv5_3; repeatable.  [default: last but one]"),
    ] = None,
    model: common.ModelOption = None,
    protocol: common.ProtocolOption = "center",
    sizes: common.SizesOption = None,
    flip: common.FlipOption = False,
    stack: Annotated[bool, typer.Option("--stack", help="Concatenate the sizes' vectors instead of averaging.")] = False,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale each vector to length 1 (L2).")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Keep feature maps instead of averaging over positions.")] = False,
    runner: common.RunnerOption = None,
    fresh: common.FreshOption = False,
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
    """Extract feature vectors, for other classifiers, search and comparison.

    Example: `vgg features photos/ -o photos.npz --layer fc7 -m vgg16.onnx`

    A layer's output is averaged over positions, views and sizes. The paper's setting is
    `-p dense --sizes 256,384,512 --flip --normalize`. An output without the suffix .npz or .parquet is a folder, written in
    parts. Unreadable images are listed on standard error; the others are still written, and the exit code is 1.
    """
    from .. import classifier as library
    from ..errors import Error
    from ..features import SUFFIXES, Descriptor, extract, write
    from ..views import Views

    views = Views(protocol, common.numbers(sizes, "--sizes"), flip)
    descriptor = Descriptor(tuple(layer or ()), views, stack, normalize, maps)
    path, reading = Path(output), common.reading(head, output_activation, input_size, preset)
    if path.suffix not in SUFFIXES and (not path.suffix or path.is_dir() or "://" in output):
        from ..runs import Describe

        network, name = library.read(common.locate(model), **reading)
        models = [(name, network)]
        options: dict[str, Any] = {"engine": engine, "threads": threads, "device": device, "precision": precision}
        options |= {"batch_size": batch_size, "workers": workers, "fresh": fresh}
        common.exit_after(common.run_in_parts(Describe(descriptor), models, images, output, runner, **options))
        return
    if runner or fresh:
        raise Error(f"--runner and --fresh require a folder or URL as --output, not the file {output}")
    found, failures = common.find_images(images)
    classifier = library.load(common.locate(model), engine, threads=threads, device=device, precision=precision, **reading)
    results = extract(classifier, found, descriptor, batch_size=batch_size, workers=workers)
    with common.reporting(failures):
        if found:
            shapes = write(common.tracked(results, len(found), failures, "Extracting"), path)
            typer.echo(f"{path}: {', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())}", err=True)
