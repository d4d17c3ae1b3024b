"""vgg explain"""

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..zoo import EMBEDDED
from .common import (
    DeviceOption,
    EngineOption,
    Format,
    FormatOption,
    LabelsOption,
    PresetOption,
    ThreadsOption,
    print_records,
)  # fmt: skip

METHODS = ("grad-cam", "class-map")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def explain(
    image: Annotated[str, typer.Argument(help="A picture, or - for standard input.")],
    to: Annotated[Path, typer.Option("--to", "-o", metavar="OUT", help="The picture to write: .png, .jpg or .webp.")],
    wanted: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", metavar="C", help="Its number, WordNet id or name; may be repeated.  [default: the best]"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="M", help=f"A model file or name; see `vgg models`.  [default: {EMBEDDED}]"),
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="M", help=f"How: {', '.join(METHODS)}.")] = "grad-cam",
    scale: Annotated[
        int, typer.Option("--scale", metavar="N", help="Short side in pixels for a class map; the larger, the more places.")
    ] = 512,
    box: Annotated[bool, typer.Option("--box", help="Also draw and tell a box around what speaks for the class.")] = False,
    format: FormatOption = Format.table,
    labels: LabelsOption = None,
    preset: PresetOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Show where a network looked in a picture.

    Example: `vgg explain cat.jpg -o heat.png --class tabby --class "Egyptian cat" --box`

    The picture is written with a heat map on it; for several classes side by side.
    """
    from ..classifier import load
    from ..errors import Error
    from ..explanation import explain as look
    from ..files import replacing

    if to.suffix.lower() not in SUFFIXES:
        raise Error(f"{to}: a picture is written as {', '.join(SUFFIXES)}")
    data, name = (sys.stdin.buffer.read(), "standard input") if image == "-" else (image, image)
    found = load(model, engine, threads=threads, device=device, labels=labels, preprocessing=preset)
    explained = look(found, data, tuple(wanted or ()), method=method, scale=scale, name=name)
    drawn = io.BytesIO()
    explained.overlay(box).save(drawn, {".jpg": "JPEG"}.get(to.suffix.lower(), to.suffix[1:].upper()), quality=92)
    with replacing(to) as file:
        file.write(drawn.getvalue())
    records: list[dict[str, Any]] = []
    for index, one in enumerate(explained.classes):
        record = {"label": one.label, "score": round(one.score, 6), "index": one.index, "wnid": one.wnid}
        sides = ("left", "top", "right", "bottom")
        records.append(record | (dict(zip(sides, explained.box(index), strict=True)) if box else {}))
    print_records(records, format)
