"""vgg quantize"""

from collections.abc import Iterator, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import EngineOption, Format, PresetOption, ThreadsOption, print_records, progress

if TYPE_CHECKING:
    from ..network import Network
    from ..quantization import Configuration, Judge, Pictures, Quantizer, Trial


class Kind(StrEnum):
    weights = "weights"
    qdq = "qdq"
    qoperator = "qoperator"


class Bits(Enum):
    four = "4"
    eight = "8"


class Calibration(StrEnum):
    minmax = "minmax"
    percentile = "percentile"


class Activations(StrEnum):
    u8 = "u8"
    s8 = "s8"


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file or name, in floats.")],
    to: Annotated[Path | None, typer.Option("-o", "--to", metavar="OUT", help="The file to write: .onnx.")] = None,
    kind: Annotated[
        Kind, typer.Option("--format", help="Weights as integers; or activations too, as QDQ or as integer operators.")
    ] = Kind.weights,
    bits: Annotated[Bits, typer.Option("--bits", help="Of the linear layers' weights; the convolutions' have 8.")] = Bits.eight,
    rank: Annotated[
        str | None,
        typer.Option(
            "--rank",
            metavar="R",
            help="Of fc6 and fc7: a number, the energy kept (90%), or a size (45MB); needs vgg[quantize].",
        ),
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option("--calibrate", metavar="DIR", help="Pictures, unlabelled: for qdq, qoperator and --rank.")
    ] = None,
    calibration: Annotated[
        Calibration, typer.Option("--calibration", help="What of a value is kept: all of it, or 99.99%.")
    ] = Calibration.minmax,
    activations: Annotated[Activations, typer.Option("--activations", help="Unsigned or signed.")] = Activations.u8,
    evaluate: Annotated[
        str | None,
        typer.Option("--evaluate", metavar="DIR", help="Labelled pictures, as for vgg evaluate: say what it costs."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", min=0, metavar="T", help="Go on to larger files until top-1 loses no more points than this."
        ),
    ] = None,
    agreement: Annotated[
        float,
        typer.Option("--agreement", min=0, max=100, metavar="A", help="Also until so many percent get float32's best class."),
    ] = 0,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Say of each layer what quantizing it alone costs.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Also draw the layers, as .png or .svg; needs vgg[quantize].")
    ] = None,
    no_resize: Annotated[bool, typer.Option("--no-resize", help="Crop the labelled pictures as they are.")] = False,
    preset: PresetOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    report: Annotated[Format, typer.Option("--report", help="How to print the result.")] = Format.table,
) -> None:
    """Make a model smaller, and say what that costs.

    Example: `vgg quantize vgg16.onnx -o vgg16-int8.onnx --evaluate imagenet/val --tolerance 0.1`

    Without --evaluate, the file is written and nothing is measured. With --tolerance, larger files are tried until one is near
    enough to float32; what has been measured is remembered, so that the same command goes on where it was cut.
    """
    from dataclasses import replace

    from .. import quantization, sources
    from ..classifier import described
    from ..errors import Error
    from ..formats import read
    from ..zoo import locate
    from .bench import check_plot

    if to is None and not per_layer:
        raise typer.BadParameter("say where to write, or ask for --per-layer", param_hint="-o")
    if to is not None and (to.suffix != ".onnx" or not to.parent.is_dir()):
        raise Error(f"{to}: a quantized network is written to .onnx, in a folder that is there")
    if evaluate is None and (tolerance is not None or agreement):
        raise Error("--tolerance and --agreement need labelled pictures; give --evaluate")
    if plot:
        check_plot(plot)
    first = quantization.Configuration(
        kind.value, int(bits.value), rank=rank or "", calibration=calibration.value, activations=activations.value
    )
    network = described(read(locate(model)), preset)
    pictures = quantization.Pictures(calibrate) if calibrate else None
    judge = None
    with progress() as show:
        if evaluate:
            recipe = replace(network.preprocessing, resize="none") if no_resize else None
            labelled = sources.open(evaluate, network.architecture.classes, network.labels)
            judge = quantization.Judge(network, labelled, pictures, recipe, engine, threads, show)
        quantizer = quantization.Quantizer(network, pictures, show)
        if per_layer:
            _layers(network, first, judge, pictures, plot, report)
        if to is not None:
            limits = tolerance, agreement
            _write(quantizer, first, judge, to, limits, report)


def _write(
    quantizer: "Quantizer",
    first: "Configuration",
    judge: "Judge | None",
    to: Path,
    limits: tuple[float | None, float],
    report: Format,
) -> None:
    """Write the file, and where there are labelled pictures, say what it costs."""
    from .. import quantization

    if judge is None:
        quantizer.write(quantizer.make(first), to, str(first))
    else:
        rungs = [first] if limits == (None, 0) else quantization.ladder(first)
        trials: list[Trial] = []
        try:
            trials.extend(quantization.tune(quantizer, judge, rungs, to, *limits))
        finally:
            if trials:
                print_records(list(_rows(quantizer.network, trials)), report)
    typer.echo(f"{to}: {quantizer.network.architecture.name}, {to.stat().st_size / 1e6:,.1f} MB", err=True)
    if judge is not None:
        typer.echo(f"{to}: {quantization.speed(quantizer.network, to, judge.engine, judge.threads)}", err=True)


def _rows(network: "Network", trials: "Sequence[Trial]") -> Iterator[dict[str, Any]]:
    """A row for float32 and for each configuration that was tried."""
    floats = 4 * network.architecture.parameter_count
    baseline = trials[0].baseline
    named = [("float32", floats, baseline), *((str(one.configuration), one.size, one.record) for one in trials)]
    for name, size, record in named:
        yield {
            "configuration": name,
            "MB": round(size / 1e6, 2),
            "of float32": round(size / floats, 4),
            "top1": record["top1"],
            "top1 lost": round(baseline["top1"] - record["top1"], 3),
            "top5": record["top5"],
            "top5 lost": round(baseline["top5"] - record["top5"], 3),
            "agreement": record["agreement"],
            "images": record["images"],
        }


def _layers(
    network: "Network",
    configuration: "Configuration",
    judge: "Judge | None",
    pictures: "Pictures | None",
    plot: Path | None,
    report: Format,
) -> None:
    """Say of each layer what quantizing it alone costs."""
    from ..quantization import per_layer

    rows: list[dict[str, Any]] = []
    for one in per_layer(network, configuration, judge, pictures):
        row: dict[str, Any] = {"layer": one.layer, "numbers": one.numbers, "weight dB": round(one.weight, 2)}
        if one.answer is not None:
            row["answer dB"] = round(one.answer, 2)
        if one.record and one.loss is not None:
            row |= {"top1 lost": round(one.loss, 3), "agreement": one.record["agreement"]}
        rows.append(row)
    print_records(rows, report)
    if plot:
        _plot(rows, str(configuration), plot)


def _plot(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw each layer's ratios of signal to noise, and beside them what is lost when it alone is quantized."""
    from matplotlib.figure import Figure

    from ..files import replacing
    from .bench import OURS, QUIET

    known = {
        "weight dB": "the weight's signal to noise, dB",
        "answer dB": "the answers' signal to noise, dB",
        "agreement": "same best class as float32, %",
    }
    columns = [(key, label) for key, label in known.items() if key in rows[0]]
    figure = Figure((1 + 4 * len(columns), 1.2 + 0.3 * len(rows)), layout="constrained")
    figure.suptitle(f"{title}: each layer alone", x=0.01, ha="left", fontsize=12, fontweight="bold")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)
    places = range(len(rows))[::-1]
    for panel, (key, label) in zip(panels.flat, columns, strict=True):
        values = [row[key] for row in rows]
        panel.barh(places, values, 0.62, color=OURS)
        for place, value in zip(places, values, strict=True):
            panel.annotate(f"{value:.1f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_xlabel(label, fontsize=9, color=QUIET)
        panel.set_yticks(places, [row["layer"] for row in rows], fontsize=9)
        panel.set_xlim(min(values) * 0.98 if key == "agreement" else 0, max(values) * (1.005 if key == "agreement" else 1.15))
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params("x", colors=QUIET, labelsize=8)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=160)
