"""vgg classify"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..zoo import EMBEDDED
from .common import (
    DeviceOption,
    EngineOption,
    LabelsOption,
    OutputOption,
    PresetOption,
    ScaleOption,
    ThreadsOption,
    counted,
    end,
    find_pictures,
    in_parts,
)  # fmt: skip

if TYPE_CHECKING:
    from ..predictions import Result

BAR = 20  # characters of a bar that stands for 100%


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def classify(
    images: Annotated[list[str], typer.Argument(help="Pictures, folders of them, globs, or - for standard input.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="M", help=f"A model file or name; see `vgg models`.  [default: {EMBEDDED}]"),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, metavar="K", help="How many predictions a picture.")] = 5,
    format: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.table,
    output: OutputOption = None,
    scale: ScaleOption = None,
    labels: LabelsOption = None,
    preset: PresetOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Say what is in pictures.

    Example: `vgg classify examples/ cat.jpg --top 3`

    Folders are walked. When some pictures can't be read, the others are still answered, and the exit code is 1. With
    `--output`, pictures may be URLs, and WebDataset shards.
    """
    from .. import classifier as library

    if output or scale:
        from ..runs import Classify

        network, name = library.read(model)
        models = [(name, library.described(network, preset, labels))]
        without = {"--format": format is not Format.table}
        options = {"engine": engine, "threads": threads, "device": device}
        end(in_parts(Classify(top), models, images, output, scale, without=without, **options))
        return
    pictures, failures = find_pictures(images)
    found = library.load(model, engine, threads=threads, device=device, labels=labels, preprocessing=preset)
    results = counted(found.results(pictures, top), len(pictures), failures, "Classifying") if pictures else []
    for text in {"table": _table, "json": _json, "jsonl": _jsonl, "csv": _csv}[format](results, found.name):
        sys.stdout.write(text)
        sys.stdout.flush()
    if model is None and format is Format.table:
        _dim(f"{EMBEDDED} answered, the small network in the package; `--model torchvision/vgg16` fetches a full VGG-16.")
    for failure in failures:
        print(f"vgg: {failure}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def _dim(text: str) -> None:
    print(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text, file=sys.stderr)


def _table(results: Iterable["Result"], model: str) -> Iterator[str]:
    full, half = ("█", "▌") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", "")
    for result in results:
        if result.error:
            continue
        yield f"{result.image}\n"
        for one in result.predictions:
            halves = round(2 * BAR * one.score)
            bar = full * (halves // 2) + half * (halves % 2)
            yield f"  {one.score:6.1%}  {bar:<{BAR}}  {one.label}\n"


def _record(result: "Result", model: str) -> dict[str, Any]:
    if result.error:
        return {"image": result.image, "error": result.error}
    predictions = [
        {"label": one.label, "score": round(one.score, 6), "index": one.index, "wnid": one.wnid} for one in result.predictions
    ]
    return {"image": result.image, "model": model, "predictions": predictions}


def _json(results: Iterable["Result"], model: str) -> Iterator[str]:
    before = "[\n"
    for result in results:
        yield before + json.dumps(_record(result, model), ensure_ascii=False, indent=2)
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[]\n"


def _jsonl(results: Iterable["Result"], model: str) -> Iterator[str]:
    for result in results:
        yield json.dumps(_record(result, model), ensure_ascii=False) + "\n"


def _csv(results: Iterable["Result"], model: str) -> Iterator[str]:
    def line(*cells: Any) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()

    yield line("image", "model", "rank", "label", "score", "index", "wnid", "error")
    for result in results:
        if result.error:
            yield line(result.image, model, *[""] * 5, result.error)
        for rank, one in enumerate(result.predictions, 1):
            yield line(result.image, model, rank, one.label, f"{one.score:.6f}", one.index, one.wnid, "")
