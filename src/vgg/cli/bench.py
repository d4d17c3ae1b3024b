"""vgg bench"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..zoo import EMBEDDED
from .common import Format, FormatOption, print_records

if TYPE_CHECKING:
    from ..benchmark import Comparison
    from ..formats import QuantizedGraph
    from ..network import Network

PLOTS = (".png", ".svg")
OURS, OTHERS, LIMIT, QUIET = "#4c9fc4", "#c3cdd3", "#b3261e", "#4f5b63"  # colours of the plot


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="M", help=f"A model file or name; further ones stand beside it.  [default: {EMBEDDED}]"
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", metavar="NAME", help="An engine; may be repeated.  [default: all that are installed]"),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", "-b", min=1, metavar="N", help="Images a batch; may be repeated.  [default: 1]"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads", min=1, metavar="N", help="How many at most; may be repeated.  [default: as many as there are cores]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="How often each engine is measured.")] = 10,
    layers: Annotated[bool, typer.Option("--layers", help="Also say how long each layer of the native engine took.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Also draw the result, as .png or .svg; needs vgg[plot].")
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Time the engines side by side, and against what this machine could do.

    Example: `vgg bench -m vgg16.onnx -b 1 -b 8 --plot bench.svg`
    """
    import warnings

    from .. import engines
    from ..benchmark import processor
    from ..errors import Error, Notice
    from ..formats import load, network_of
    from ..zoo import locate

    names = tuple(dict.fromkeys(engine or engines.installed()))
    if layers and engine and "native" not in names:
        raise Error("--layers: only the native engine says how long its layers took; add `--engine native`")
    if plot:
        check_plot(plot)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # guesses about preprocessing and labels make no difference here
        network, *others = [load(locate(one)) for one in model or (None,)]
    batch_sizes, counts = (tuple(dict.fromkeys(given or ())) for given in (batch_size, threads))
    title, *titles = [Path(one).name for one in model or [EMBEDDED]]
    beside = dict(zip(titles, others, strict=True))
    if len(beside) < len(others) or len({network_of(one).architecture.input_size for one in (network, *others)}) > 1:
        raise Error("models side by side need names of their own and the same size of pictures")
    found = _measured(network, names, batch_sizes or (1,), counts, rounds, beside)
    heading = {"model": title, "processor": processor()}
    if format is Format.table:
        _table(found, heading, layers)
    else:
        _records(found, heading, layers, format)
    if plot:
        _plot(found, " on ".join(heading.values()), plot)
    if not engines.native_library():
        print("vgg: the native engine, which also measures the limit, is not in this installation", file=sys.stderr)


def _measured(
    network: "Network | QuantizedGraph",
    names: Sequence[str],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    beside: "dict[str, Network | QuantizedGraph]",
) -> "list[Comparison]":
    """The comparisons, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from ..benchmark import compare

    total = len(names) * (1 + len(beside)) * len(batch_sizes) * (len(threads) or 1) * rounds
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Measuring", total=total)
        return list(
            compare(
                network, names, batch_sizes=batch_sizes, threads=threads, rounds=rounds, beside=beside,
                progress=lambda name: bar.advance(task),
            )
        )  # fmt: skip


def _table(found: "Sequence[Comparison]", title: dict[str, str], layers: bool) -> None:
    shown = ("engine", "ms", "ms_min", "ms_q1", "ms_q3", "ms_max", "vs_onnxruntime", "of_limit")
    for index, one in enumerate(found):
        rows = [one.record(timing) for timing in one.timings]
        first, kept = rows[0], [name for name in shown if rows[0][name] is not None]
        if index:
            print()
        print(f"{' on '.join(title.values())}: {_case(one)}, {first['rounds']} rounds, milliseconds an image")
        if one.limit:
            work = one.total
            print(
                f"limit {first['ms_limit']:.2f}: a batch is {2e-9 * work.multiply_adds * one.batch:,.2f} GFLOP at "
                f"{first['gflops']:,} GFLOP/s and {work.weight_bytes / 1e6:,.1f} MB at {first['gb_per_s']:,} GB/s"
            )
        print_records([{_heading(name): row[name] for name in kept} for row in rows], Format.table)
        for parts in filter(None, map(one.layers, one.timings)) if layers else ():
            print()
            print_records([{"layer": name, "ms": ms, "of limit": share} for name, (ms, share) in parts.items()], Format.table)


def _records(found: "Sequence[Comparison]", title: dict[str, str], layers: bool, format: Format) -> None:
    pairs: list[tuple[dict[str, Any], dict[str, float]]] = []
    for one in found:
        for timing in one.timings:
            parts = {name: ms for name, (ms, _) in one.layers(timing).items()} if layers else {}
            pairs.append(({**title, **one.record(timing)}, parts))
    if format is Format.json:
        records = [{**record, "layers": parts} if layers else record for record, parts in pairs]
        print(json.dumps(records, indent=2, ensure_ascii=False))
    else:
        rows = [{**record, **parts} for record, parts in pairs]
        writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _heading(name: str) -> str:
    return "median" if name == "ms" else name.removeprefix("ms_").replace("_", " ")


def _case(one: "Comparison") -> str:
    return f"batch {one.batch}, {one.threads} thread{'s' * (one.threads > 1)}"


def check_plot(path: Path) -> None:
    """Raises Error where a plot can't be made, before anything is measured."""
    from importlib.util import find_spec

    from ..errors import Error

    if path.suffix not in PLOTS:
        raise Error(f"{path}: a plot is written as {' or '.join(PLOTS)}")
    if not path.parent.is_dir():
        raise Error(f"{path}: can't be written: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise Error("--plot needs matplotlib; `pip install 'vgg[plot]'` brings it")


def _plot(found: "Sequence[Comparison]", title: str, path: Path) -> None:
    """Draw a panel for each comparison: a row for each number of threads, a column for each batch size."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from ..files import replacing

    engines = [timing.engine for timing in found[0].timings]
    columns = len({one.batch for one in found})
    rows = len(found) // columns
    places = range(len(engines))[::-1]  # the first on top
    size = max(7.0, 4.8 * columns), 1.2 + rows * (0.9 + 0.42 * len(engines))
    figure = Figure(size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.06))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(
        f"milliseconds an image: median of {len(found[0].timings[0].seconds)} rounds, whiskers between the quartiles",
        x=0.01, ha="left", fontsize=9, color=QUIET,
    )  # fmt: skip
    panels = figure.subplots(rows, columns, squeeze=False, sharex="row", sharey=True)
    for panel, one in zip(panels.flat, found, strict=True):
        low, middle, high = ([one.milliseconds(t.quantile(q)) for t in one.timings] for q in (0.25, 0.5, 0.75))
        spread = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        colours = [OURS if name.partition(",")[0] == "native" else OTHERS for name in engines]
        panel.barh(places, middle, 0.62, color=colours, xerr=spread, error_kw={"ecolor": QUIET, "capsize": 3, "elinewidth": 1})
        for place, end, value in zip(places, high, middle, strict=True):
            panel.annotate(
                f"{value:,.1f}", (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
        if one.limit:
            limit = one.milliseconds(one.limit)
            panel.axvline(limit, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
            panel.annotate(
                f"limit {limit:,.1f}", (limit, 1), (3, -1), xycoords=("data", "axes fraction"), textcoords="offset points",
                va="bottom", ha="center", fontsize=8, color=LIMIT,
            )  # fmt: skip
        panel.set_title(_case(one), loc="left", fontsize=10, color=QUIET, pad=14)
        panel.set_yticks(places, engines)
        panel.set_ylim(-0.6, len(engines) - 0.4)
        panel.tick_params(length=0, labelsize=9)
        panel.tick_params("x", colors=QUIET)
        panel.margins(x=0.12)
        panel.set_axisbelow(True)
        panel.grid(axis="x", color="#e6eaed")
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.spines["left"].set_color(QUIET)
    with rc_context({"svg.fonttype": "none"}), replacing(path) as file:  # letters stay letters
        figure.savefig(file, format=path.suffix[1:], dpi=160)
