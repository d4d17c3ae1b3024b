"""vgg compare"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from ..zoo import EMBEDDED
from . import common, drawing

if TYPE_CHECKING:
    from ..perceptual import PerceptualDistance
    from ..perceptual.pairs import NamedPair

SETS: Final = "precision-recall"  # the metric of two sets of images, not of pairs


def compare(
    first: Annotated[str, typer.Argument(help="Image, or a folder or another source of images; generated ones.")],
    second: Annotated[list[str], typer.Argument(help="Images, or a folder or another source of them; real ones.")],
    metric: Annotated[
        Literal["lpips", "lpips-0.0", "dists", "features", "precision-recall"] | None,
        typer.Option("--metric", help="Metric.  [default: lpips with torchvision's VGG-16, else features]"),
    ] = None,
    model: common.ModelOption = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Fitted weights of LPIPS or DISTS, instead of those in vgg."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", "-l", metavar="L", help="Layer, such as conv5_3; repeatable.  [default: last of each block]"),
    ] = None,
    map: Annotated[
        Path | None, typer.Option("--map", metavar="OUT", help="Output image (.png, .jpg, .webp) of where a pair differs.")
    ] = None,
    format: common.FormatOption = common.Format.table,
    preset: common.PresetOption = None,
    engine: common.EngineOption = "auto",
    threads: common.ThreadsOption = None,
    device: common.DeviceOption = "cpu",
) -> None:
    """Compare images: the perceptual distance of pairs, or precision and recall of sets.

    Example: `vgg compare original.png restored/ --metric lpips -m torchvision/vgg16`

    One image is compared with each of the others; two folders are compared by the names of their images, with any suffixes.
    Images are not resized, and those of a pair must have the same size. Images without a partner and unreadable ones are
    listed on standard error; the others are compared, and the exit code is 1.
    """
    from ..classifier import read
    from ..errors import Error
    from ..formats import network_of
    from ..perceptual import PerceptualDistance

    if metric == SETS:
        if map or weights or len(layer or ()) > 1:
            raise Error(f"{SETS} compares sets of images by one layer, so it takes no --map, no --weights and one --layer")
        _compare_sets(first, second, model, (layer or [""])[0], preset, format, (engine, threads, device))
        return
    if map:
        drawing.check_path(map)
    pairs, failures = _pairs(first, second)
    if map and len(pairs) > 1:
        raise Error(f"--map draws one pair of images, not {len(pairs)}")
    network, name = None, weights.name if weights else ""
    if model is None and weights and preset:
        raise Error("--preset is for --model; the network in a file of weights has its own preprocessing")
    if model is not None or not weights:
        loaded, name = read(common.locate(model), **common.reading(None, None, None, preset))
        network = network_of(loaded)
    distance = PerceptualDistance(network, weights, engine, metric=metric, layers=layer or (), threads=threads, device=device)
    with common.reporting(failures):
        results = common.tracked(distance.results(pairs), len(pairs), failures, "Comparing") if pairs else []
        records = [
            {"first": one.first, "second": one.second, "metric": distance.parts.metric, "model": name, "distance": one.distance}
            for one in results
            if not one.error
        ]
        _print(records, format)
        if map and records:
            _draw(distance, pairs[0], map)
        if records and model is None and not weights and format is common.Format.table:
            text = f"Model: {EMBEDDED}, included in the package. For LPIPS and DISTS, use `--model torchvision/vgg16`."
            typer.echo(text, err=True)


def _pairs(first: str, second: Sequence[str]) -> "tuple[list[NamedPair], list[str]]":
    """The pairs that the arguments name, and what is wrong with the others."""
    from ..errors import Error
    from ..perceptual import by_name, matched
    from ..sources import is_folder, unlabelled

    if len(second) == 1 and all(is_folder(place) for place in (first, second[0])):
        pairs, alone = by_name(unlabelled(first), unlabelled(second[0]))
        if not pairs:
            raise Error(f"{first} and {second[0]}: no image of one has the name of an image of the other")
        return pairs, [f"{path}: no image of the same name to compare with" for path in alone]
    ones, failures = common.find_images([first])
    others, more = common.find_images(second)
    return matched(ones, others) if ones and others else [], failures + more


def _print(records: Sequence[dict[str, Any]], format: common.Format) -> None:
    keys = ["first", "second", "metric", "model", "distance"]
    if format is common.Format.table:
        common.print_records([one | {"distance": f"{one['distance']:.4f}"} for one in records], format, keys)
        if len(records) > 1:
            mean = math.fsum(one["distance"] for one in records) / len(records)
            typer.echo(f"mean of {len(records):,} pairs: {mean:.4f}", err=True)
    else:
        common.print_records([one | {"distance": float(f"{one['distance']:.6g}")} for one in records], format, keys)


def _draw(distance: "PerceptualDistance", pair: "NamedPair", path: Path) -> None:
    """The second image of a pair, with its differences from the first."""
    from ..images import open_image
    from ..overlay import LARGEST, paint

    heat = distance.map([pair[0]], [pair[1]])
    image = open_image(pair[1][1], pair[1][0]).copy()
    image.thumbnail((LARGEST, LARGEST))
    drawing.write_image(paint(image, heat, (0, 0, 1, 1)), path)
    typer.echo(f"{path}: differences of {heat.min():.4f} to {heat.max():.4f}", err=True)


def _compare_sets(
    first: str, second: Sequence[str], model: str | None, layer: str, preset: str | None, format: common.Format, where: Any
) -> None:
    from ..classifier import load
    from ..perceptual import feature_layer, precision_recall, set_features
    from ..perceptual.precision_recall import check_count

    engine, threads, device = where
    options = {"threads": threads, "device": device, "precision": "float32", **common.reading(None, None, None, preset)}
    classifier = load(common.locate(model), engine, **options)
    layer = layer or feature_layer(classifier.network.architecture)
    sets, errors = zip(*(common.find_images(places) for places in ([first], second)), strict=True)
    failures = [*errors[0], *errors[1]]
    with common.reporting(failures):
        if all(sets):
            for name, images in zip(("generated", "real"), sets, strict=True):
                check_count(name, len(images))
            with common.progress() as show:
                generated, real = (set_features(classifier, one, layer, failures=failures, progress=show) for one in sets)
            found = precision_recall(generated, real)
            record = {"generated": len(generated), "real": len(real), "model": classifier.name, "layer": layer}
            shares = {"precision": found.precision, "recall": found.recall, "f_score": found.f_score}
            if format is common.Format.table:
                common.print_records([record | {key: f"{value:.4f}" for key, value in shares.items()}], format)
            else:
                common.print_records([record | shares], format)
