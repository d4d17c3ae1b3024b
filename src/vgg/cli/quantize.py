"""vgg quantize"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import common
from .bench import OURS, QUIET, bars, check_plot

if TYPE_CHECKING:
    from ..network import Network
    from ..quantization import LayerTrial, Trial


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model file or name, with float parameters.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file (.onnx).")] = None,
    method: Annotated[
        Literal["weights", "qdq", "qoperator"],
        typer.Option("--method", help="Method of quantization: weights alone; or activations too, as QDQ or QOperator."),
    ] = "weights",
    bits: Annotated[
        Literal["4", "8"], typer.Option("--bits", help="Bits of the linear layers' weights; those of convolutions have 8.")
    ] = "8",
    rank: Annotated[
        str,
        typer.Option(
            "--rank", metavar="R", help="Rank of the linear layers but the last: a number, energy (90%) or file size (45MB)."
        ),
    ] = "",
    calibrate: Annotated[
        str | None, typer.Option("--calibrate", metavar="DIR", help="Unlabelled images, for qdq, qoperator and --rank.")
    ] = None,
    calibration: Annotated[
        Literal["minmax", "percentile"],
        typer.Option("--calibration", help="Range of activations: all values, or 99.99% of them."),
    ] = "minmax",
    activations: Annotated[Literal["u8", "s8"], typer.Option("--activations", help="Unsigned or signed activations.")] = "u8",
    evaluate: Annotated[
        str | None,
        typer.Option("--evaluate", metavar="DIR", help="Labelled images, as for `vgg evaluate`, to measure the loss."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, metavar="T", help="Largest accepted loss of top-1 accuracy in percentage points."),
    ] = None,
    agreement: Annotated[
        float,
        typer.Option(
            "--agreement",
            min=0,
            max=100,
            metavar="A",
            help="Smallest accepted share of images with the same best class, in percent.",
        ),
    ] = 0,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Print the noise and the loss of each layer quantized alone.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Output file (.png, .svg) for a plot of the layers; requires vgg[plot]."),
    ] = None,
    no_resize: Annotated[
        bool, typer.Option("--no-resize", help="Crop the images without resizing them; labelled ones only.")
    ] = False,
    fresh: common.FreshOption = False,
    preset: common.PresetOption = None,
    labels: common.LabelsOption = None,
    head: common.HeadOption = None,
    output_activation: common.OutputActivationOption = None,
    input_size: common.InputSizeOption = None,
    engine: common.EngineOption = "auto",
    threads: common.ThreadsOption = None,
    format: common.FormatOption = common.Format.table,
) -> None:
    """Quantize a model, and measure the loss of accuracy.

    Example: `vgg quantize vgg16.onnx -o vgg16-int8.onnx --evaluate imagenet/val --tolerance 0.1`

    Without --evaluate, the file is written and nothing is measured. With --tolerance or --agreement, larger files are tried
    until one meets them. Evaluations and calibrations are kept: an interrupted command is resumed by the same command.
    """
    from dataclasses import replace

    from .. import quantization, sources
    from ..errors import Error

    if output is None and not per_layer:
        raise typer.BadParameter("required without --per-layer", param_hint="--output")
    if output is not None and (output.suffix != ".onnx" or not output.parent.is_dir()):
        raise Error(f"{output}: the output must be an .onnx file in an existing folder")
    if evaluate is None and (tolerance is not None or agreement):
        raise Error("--tolerance and --agreement require labelled images; set --evaluate")
    if plot and not per_layer:
        raise Error("--plot draws the layers; set --per-layer")
    if no_resize and evaluate is None:
        raise Error("--no-resize is for labelled images; set --evaluate")
    if plot:
        check_plot(plot)
    scheme = quantization.Scheme(method, int(bits), rank=rank, calibration=calibration, activations=activations)
    scheme.check_packages()
    reading = common.reading(head, output_activation, input_size, preset, labels)
    network = common.read_network(model, reading)
    images = sources.unlabelled(calibrate) if calibrate else None
    with common.resumable(fresh=fresh) if evaluate or calibrate else common.progress() as show:
        evaluator = None
        if evaluate:
            network.check_values(["logits"])
            recipe = replace(network.preprocessing, resize="none") if no_resize else None
            several = network.architecture.output == "sigmoid"
            labelled = sources.open(evaluate, network.architecture.classes, network.labels, several=several)
            evaluator = quantization.Evaluator(network, labelled, recipe, engine, threads, fresh, show)
        quantizer = quantization.Quantizer(network, images, fresh=fresh, progress=show)
        if per_layer:
            layers = list(quantization.per_layer(network, scheme, evaluator, images))
            common.print_records(list(_layer_rows(layers)), format)
            if plot:
                _plot(layers, str(scheme), plot)
        if output is None:
            return
        if evaluator is None:
            quantizer.write(quantizer.quantize(scheme), output, str(scheme))
        else:
            schemes = quantization.fallbacks(scheme, network.architecture) if tolerance is not None or agreement else [scheme]
            trials: list[Trial] = []
            try:
                trials.extend(quantization.tune(quantizer, evaluator, schemes, output, tolerance, agreement))
            finally:
                if trials:
                    common.print_records(list(_rows(network, trials)), format)
    typer.echo(f"{output}: {network.architecture.name}, {output.stat().st_size / 1e6:,.1f} MB", err=True)
    if evaluate:
        typer.echo(f"{output}: {quantization.speed(network, output, engine, threads)}", err=True)


def _rows(network: "Network", trials: "Sequence[Trial]") -> Iterator[dict[str, Any]]:
    """A row for float32 and for each scheme."""
    floats, baseline = 4 * network.architecture.parameter_count, trials[0].baseline
    named = [("float32", floats, baseline), *((str(one.scheme), one.size, one.record) for one in trials)]
    for name, size, record in named:
        row = {"scheme": name, "MB": round(size / 1e6, 2), "of float32": round(size / floats, 4)}
        for figure in ("top1", "top5", "map"):
            if record.get(figure) is not None:
                row |= {figure: record[figure], f"{figure} lost": round(baseline[figure] - record[figure], 3)}
        yield row | {"agreement": record["agreement"], "images": record["images"]}


def _layer_rows(layers: "Sequence[LayerTrial]") -> Iterator[dict[str, Any]]:
    from ..evaluation import main_figure

    for one in layers:
        row: dict[str, Any] = {"layer": one.layer, "parameters": one.parameters, "weight dB": round(one.weight, 2)}
        if one.output is not None:
            row["output dB"] = round(one.output, 2)
        if one.record and one.loss is not None:
            row |= {f"{main_figure(one.record)} lost": round(one.loss, 3), "agreement": one.record["agreement"]}
        yield row


def _plot(layers: "Sequence[LayerTrial]", title: str, path: Path) -> None:
    """Draw each layer's signal-to-noise ratios and, if measured, its agreement with float32."""
    from matplotlib.figure import Figure

    from ..files import replacing

    columns = [("weight: signal to noise, dB", [one.weight for one in layers])]
    if outputs := [one.output for one in layers if one.output is not None]:
        columns.append(("output: signal to noise, dB", outputs))
    if agreements := [one.record["agreement"] for one in layers if one.record]:
        columns.append(("same best class as float32, %", agreements))
    figure = Figure((1 + 4 * len(columns), 1.2 + 0.3 * len(layers)), layout="constrained")
    figure.suptitle(f"{title}: each layer quantized alone", x=0.01, ha="left", fontsize=12, fontweight="bold")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)
    for panel, (label, values) in zip(panels.flat, columns, strict=True):
        bars(panel, [one.layer for one in layers], values, values, color=OURS)
        panel.set_xlabel(label, fontsize=9, color=QUIET)
        share = values is agreements
        panel.set_xlim(min(values) * 0.98 if share else 0, max(values) * (1.005 if share else 1.15))
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=160)
