"""vgg classify"""

import csv
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import json_output
from ..errors import printable
from ..zoo import EMBEDDED
from . import common

if TYPE_CHECKING:
    from ..predictions import Result

BAR = 20  # characters of a bar that means 100%


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def classify(
    images: common.ImagesArgument,
    model: common.ModelOption = None,
    top: common.TopOption = None,
    threshold: common.ThresholdOption = None,
    format: Annotated[Format, typer.Option("--format", help="Format of the printed result.")] = Format.table,
    output: common.PartsOption = None,
    runner: common.RunnerOption = None,
    fresh: common.FreshOption = False,
    labels: common.LabelsOption = None,
    preset: common.PresetOption = None,
    head: common.HeadOption = None,
    output_activation: common.OutputActivationOption = None,
    input_size: common.InputSizeOption = None,
    engine: common.EngineOption = "auto",
    threads: common.ThreadsOption = None,
    device: common.DeviceOption = "cpu",
    precision: common.PrecisionOption = "auto",
) -> None:
    """Classify images.

    Example: `vgg classify examples/ cat.jpg --top 3`

    A JSON record is `{"image", "model", "predictions": [{"label", "score", "index", "wnid"}]}`, or `{"image", "error"}` if
    the image can't be read. Unreadable images are listed on standard error at the end; the others are still classified, and
    the exit code is 1.
    """
    from .. import classifier as library
    from ..predictions import THRESHOLD

    reading = common.reading(head, output_activation, input_size, preset, labels)
    if output or runner or fresh:
        from ..runs import Classify

        network, name = library.read(common.locate(model), **reading)
        models = [(name, network)]
        options: dict[str, Any] = {"engine": engine, "threads": threads, "device": device, "precision": precision}
        options |= {"fresh": fresh, "unsupported": {"--format": format is not Format.table}}
        run = common.run_in_parts(Classify(top, threshold), models, images, output, runner, **options)
        common.exit_after(run)
        return
    found, failures = common.find_images(images)
    classifier = library.load(common.locate(model), engine, threads=threads, device=device, precision=precision, **reading)
    classifier.network.check_values(["logits"])  # before anything is printed
    results = common.tracked(classifier.results(found, top, threshold), len(found), failures, "Classifying") if found else []
    if classifier.network.class_names is None:
        _dim("The classes have no names; name them with --labels FILE.")
    with common.reporting(failures):
        if format is Format.table:
            _table(results, THRESHOLD if threshold is None else threshold)
        else:
            {"json": _json, "jsonl": _jsonl, "csv": _csv}[format](results, classifier.name)
        if model is None and format is Format.table:
            _dim(f"Model: {EMBEDDED}, included in the package. For a full VGG-16, use `--model torchvision/vgg16`.")


def _dim(text: str) -> None:
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr)


def _table(results: Iterable["Result"], threshold: float) -> None:
    full, half = ("█", "▌") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", "")
    for result in results:
        if result.error:
            continue
        print(printable(result.image))
        if not result.predictions:
            print(f"  no class above {threshold:g}", flush=True)
        for one in result.predictions:
            halves = round(2 * BAR * one.score)
            bar = full * (halves // 2) + half * (halves % 2)
            print(f"  {one.score:6.1%}  {bar:<{BAR}}  {printable(one.label)}", flush=True)


def _record(result: "Result", model: str) -> dict[str, Any]:
    if result.error:
        return {"image": result.image, "error": result.error}
    predictions = [
        {"label": one.label, "score": round(one.score, 6), "index": one.index, "wnid": one.wnid} for one in result.predictions
    ]
    return {"image": result.image, "model": model, "predictions": predictions}


def _json(results: Iterable["Result"], model: str) -> None:
    before = "[\n"
    for result in results:
        print(before + json_output.dumps(_record(result, model), ensure_ascii=False, indent=2), end="", flush=True)
        before = ",\n"
    print("\n]" if before == ",\n" else "[]")


def _jsonl(results: Iterable["Result"], model: str) -> None:
    for result in results:
        print(json_output.dumps(_record(result, model), ensure_ascii=False), flush=True)


def _csv(results: Iterable["Result"], model: str) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "model", "rank", "label", "score", "index", "wnid", "error"])
    for result in results:
        if result.error or not result.predictions:
            writer.writerow([result.image, model, *[""] * 5, result.error or ""])
        for rank, one in enumerate(result.predictions, 1):
            writer.writerow([result.image, model, rank, one.label, f"{one.score:.6f}", one.index, one.wnid, ""])
        sys.stdout.flush()
