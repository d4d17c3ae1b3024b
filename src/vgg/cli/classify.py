"""vgg classify"""

import csv
import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..zoo import EMBEDDED
from .common import (
    DeviceOption,
    EngineOption,
    FreshOption,
    ImagesArgument,
    LabelsOption,
    ModelOption,
    PartsOption,
    PresetOption,
    RunnerOption,
    ThreadsOption,
    exit_after,
    find_images,
    reporting,
    run_in_parts,
    tracked,
)  # fmt: skip

if TYPE_CHECKING:
    from ..predictions import Result

BAR = 20  # characters of a bar that means 100%


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def classify(
    images: ImagesArgument,
    model: ModelOption = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, metavar="K", help="Number of predictions per image.")] = 5,
    format: Annotated[Format, typer.Option("--format", help="Format of the printed result.")] = Format.table,
    output: PartsOption = None,
    runner: RunnerOption = None,
    fresh: FreshOption = False,
    labels: LabelsOption = None,
    preset: PresetOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Classify images.

    Example: `vgg classify examples/ cat.jpg --top 3`

    A JSON record is `{"image", "model", "predictions": [{"label", "score", "index", "wnid"}]}`, or `{"image", "error"}` if
    the image can't be read. Unreadable images are listed on standard error at the end; the others are still classified, and
    the exit code is 1.
    """
    from .. import classifier as library

    if output or runner or fresh:
        from ..runs import Classify

        network, name = library.read(model)
        models = [(name, library.described(network, preset, labels))]
        options = {"engine": engine, "threads": threads, "device": device, "fresh": fresh}
        unsupported = {"--format": format is not Format.table}
        exit_after(run_in_parts(Classify(top), models, images, output, runner, unsupported=unsupported, **options))
        return
    found, failures = find_images(images)
    classifier = library.load(model, engine, threads=threads, device=device, labels=labels, preprocessing=preset)
    results = tracked(classifier.results(found, top), len(found), failures, "Classifying") if found else []
    with reporting(failures):
        {"table": _table, "json": _json, "jsonl": _jsonl, "csv": _csv}[format](results, classifier.name)
        if model is None and format is Format.table:
            _dim(f"Model: {EMBEDDED}, included in the package. For a full VGG-16, use `--model torchvision/vgg16`.")


def _dim(text: str) -> None:
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr)


def _table(results: Iterable["Result"], model: str) -> None:
    full, half = ("█", "▌") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", "")
    for result in results:
        if result.error:
            continue
        print(result.image)
        for one in result.predictions:
            halves = round(2 * BAR * one.score)
            bar = full * (halves // 2) + half * (halves % 2)
            print(f"  {one.score:6.1%}  {bar:<{BAR}}  {one.label}", flush=True)


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
        print(before + json.dumps(_record(result, model), ensure_ascii=False, indent=2), end="", flush=True)
        before = ",\n"
    print("\n]" if before == ",\n" else "[]")


def _jsonl(results: Iterable["Result"], model: str) -> None:
    for result in results:
        print(json.dumps(_record(result, model), ensure_ascii=False), flush=True)


def _csv(results: Iterable["Result"], model: str) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "model", "rank", "label", "score", "index", "wnid", "error"])
    for result in results:
        if result.error:
            writer.writerow([result.image, model, *[""] * 5, result.error])
        for rank, one in enumerate(result.predictions, 1):
            writer.writerow([result.image, model, rank, one.label, f"{one.score:.6f}", one.index, one.wnid, ""])
        sys.stdout.flush()
