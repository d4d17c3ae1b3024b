"""vgg explain"""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..methods import DEFAULT, METHODS
from . import common, drawing
from .streams import standard_input


def explain(
    image: Annotated[str, typer.Argument(help="Image, or - for standard input.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Output image (.png, .jpg, .webp).")],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", metavar="C", help="Class index, WordNet id or name; repeatable.  [default: the predicted one]"
        ),
    ] = None,
    model: common.ModelOption = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="M",
            autocompletion=common.completion(*METHODS),
            help=f"Method of explanation: {', '.join(METHODS)}.",
        ),
    ] = DEFAULT,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            "-l",
            metavar="L",
            help="Layer, such as conv5_3; of methods with `cam` in their names.  [default: last convolution]",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="N", help="Side of the occluded square in pixels.  [default: 1/7 of the crop's]"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="Number of gradients that are averaged.  [default: 50]"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="N", help="Short side of the image in pixels for a class map.  [default: 512]"),
    ] = None,
    box: Annotated[bool, typer.Option("--box", help="Draw and print a box around the evidence for each class.")] = False,
    format: common.FormatOption = common.Format.table,
    labels: common.LabelsOption = None,
    preset: common.PresetOption = None,
    head: common.HeadOption = None,
    output_activation: common.OutputActivationOption = None,
    input_size: common.InputSizeOption = None,
    engine: common.EngineOption = "auto",
    threads: common.ThreadsOption = None,
    device: common.DeviceOption = "cpu",
) -> None:
    """Show the evidence for a class in an image, as a heat map; without a head, the network's activation.

    Example: `vgg explain cat.jpg -o heat.png --class tabby --class "Egyptian cat" --box`

    The output is the image with the heat map on it; several classes are side by side. --layer, --window, --samples and --size
    belong to one or a few methods; a larger --size gives a class map more positions.
    """
    from ..classifier import load
    from ..errors import Error
    from ..explanation import explain as library
    from ..sources import find

    drawing.check_suffix(output)
    found = [("standard input", standard_input())] if image == "-" else find(image)
    if len(found) > 1:
        raise Error(f"{image}: has {len(found)} images; choose one")
    [(name, data)] = found
    reading = common.reading(head, output_activation, input_size, preset, labels)
    classifier = load(common.locate(model), engine, threads=threads, device=device, **reading)
    options: dict[str, Any] = {"layer": layer, "window": window, "samples": samples, "size": size}
    with common.progress() as show:
        explanation = library(classifier, data, tuple(classes or ()), method=method, name=name, progress=show, **options)
    drawing.write_image(explanation.overlay(box), output)
    records: list[dict[str, Any]] = [
        {"label": one.label, "score": round(one.score, 6), "index": one.index, "wnid": one.wnid} for one in explanation.classes
    ] or [{"layer": classifier.network.architecture.values[-1]}]
    for index, record in enumerate(records):
        if box:
            record.update(zip(("left", "top", "right", "bottom"), explanation.box(index), strict=True))
    common.print_records(records, format)
