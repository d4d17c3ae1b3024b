"""vgg explain"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..methods import DEFAULT, INSIDE, METHODS
from . import common, drawing
from .streams import standard_input

if TYPE_CHECKING:
    from PIL import Image

    from ..classifier import Classifier
    from ..progress import Progress


def explain(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Output image (.png, .jpg, .webp).")],
    image: Annotated[
        str | None, typer.Argument(help="Image, or - for standard input; none for filters and class-image.", show_default=False)
    ] = None,
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
            autocompletion=common.completion(*METHODS, *INSIDE),
            help=f"Method of explanation: {', '.join(METHODS)}; or an image of the network itself: {', '.join(INSIDE)}.",
        ),
    ] = DEFAULT,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            "-l",
            metavar="L",
            help="Layer, such as conv5_3; for layer-outputs, which requires it, and for methods with `cam` in their names.  "
            "[default: last convolution]",
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
    belong to one or a few methods; a larger --size gives a class map more positions. The method filters draws the first
    convolution, layer-outputs what a layer computes for an image, and class-image an image that maximises a class.
    """
    from ..classifier import load
    from ..errors import Error
    from ..explanation import explain as library

    drawing.check_path(output)
    options: dict[str, Any] = {"layer": layer, "window": window, "samples": samples, "size": size}
    if method in INSIDE:
        _check_inside(method, {"image": image, "class": classes, **options, "box": box or None})
    elif image is None:
        raise Error(f"the method {method} explains an image; give one")
    name, data = _one_image(image) if image else ("", b"")
    reading = common.reading(head, output_activation, input_size, preset, labels)
    classifier = load(common.locate(model), engine, threads=threads, device=device, precision="float32", **reading)
    with common.progress() as show:
        if method in INSIDE:
            drawn, record = _inside(method, classifier, data, layer or "", (classes or [""])[0], show)
            drawing.write_image(drawn, output)
            common.print_records([record], format)
            return
        explanation = library(classifier, data, tuple(classes or ()), method=method, name=name, progress=show, **options)
    drawing.write_image(explanation.overlay(box), output)
    records: list[dict[str, Any]] = [
        {"label": one.label, "score": round(one.score, 6), "index": one.index, "wnid": one.wnid} for one in explanation.classes
    ] or [{"layer": layer or classifier.network.architecture.values[-1]}]
    for index, record in enumerate(records):
        if box:
            record.update(zip(("left", "top", "right", "bottom"), explanation.box(index), strict=True))
    common.print_records(records, format)


def _one_image(image: str) -> tuple[str, Any]:
    """The name and the content of the image that an argument names."""
    from ..errors import Error
    from ..sources import find

    found = [("standard input", standard_input())] if image == "-" else find(image)
    if len(found) > 1:
        raise Error(f"{image}: has {len(found)} images; choose one")
    return found[0]


def _check_inside(method: str, given: dict[str, Any]) -> None:
    """Raise Error if an image of the network lacks an argument, or has one that it doesn't take."""
    from ..errors import Error

    takes = INSIDE[method]
    for name, value in given.items():
        title = "an image" if name == "image" else f"--{name}"
        if name in takes and value is None:
            raise Error(f"the method {method} needs {title}")
        if name not in takes and value is not None:
            raise Error(f"the method {method} takes no {title.removeprefix('an ')}")
    if len(given["class"] or ()) > 1:
        raise Error(f"the method {method} takes one --class, not {len(given['class'])}")


def _inside(
    method: str, classifier: "Classifier", image: Any, layer: str, target: str, show: "Progress"
) -> tuple["Image.Image", dict[str, Any]]:
    """An image of the network, and the record that is printed."""
    from ..explanation import class_image, filters, layer_outputs
    from ..labels import find_class
    from ..predictions import describe

    network = classifier.network
    if method == "filters":
        return filters(network), {"layer": "conv1_1"}
    if method == "layer-outputs":
        return layer_outputs(classifier, image, layer), {"layer": layer}
    drawn = class_image(classifier, target, progress=show)
    index = find_class(target, network.architecture.classes, network.class_names)
    [best] = describe(classifier.scores(drawn)[0], [index], network.class_names)
    return drawn, {"label": best.label, "score": round(best.score, 6), "index": best.index, "wnid": best.wnid}
