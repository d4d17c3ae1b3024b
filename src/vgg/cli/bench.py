"""vgg bench"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engines import PRECISIONS
from ..errors import Error, Notice, counted
from ..zoo import EMBEDDED
from . import common
from .drawing import check_folder

if TYPE_CHECKING:
    from ..benchmark import Comparison

PLOTS = (".png", ".svg")
OURS, OTHERS, LIMIT, QUIET = "#4c9fc4", "#c3cdd3", "#b3261e", "#4f5b63"  # colours of the plot
COLUMNS = {
    "engine": "engine", "ms": "median", "ms_min": "min", "ms_q1": "q1", "ms_q3": "q3", "ms_max": "max",
    "vs_onnxruntime": "vs onnxruntime", "of_limit": "of limit",
}  # fmt: skip


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="M", help=f"Model file or name; may be repeated.  [default: {EMBEDDED}]"),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", metavar="NAME", help="Inference engine; may be repeated.  [default: all installed]"),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            "--batch-size", "-b", min=1, metavar="N", help="Number of images per batch; may be repeated.  [default: 1]"
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads", min=1, metavar="N", help="Number of engine threads; may be repeated.  [default: number of cores]"
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="P", help=f"Precision of products: {', '.join(PRECISIONS)}; may be repeated."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, metavar="N", help="Number of measurements of each engine.")] = 10,
    layers: Annotated[
        bool, typer.Option("--layers", help="Print each layer's time and share of the limit, native engine.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Output file (.png, .svg) for a plot; requires vgg[plot].")
    ] = None,
    system: Annotated[
        bool, typer.Option("--system", help="Print what is installed, what is missing and how to get it; measure nothing.")
    ] = False,
    format: common.FormatOption = common.Format.table,
) -> None:
    """Measure the speed of engines, side by side, and in relation to the limit of this machine.

    Example: `vgg bench -m vgg16.onnx -b 1 -b 8 --plot bench.svg`

    Example: `vgg bench --system`

    With --system, the report of a problem is complete: versions, processor and instruction set, engines, GPU, cache folder and
    extras.
    """
    if system:
        from dataclasses import asdict

        from ..system import facts

        common.print_records([asdict(fact) for fact in facts()], format)
        return
    import warnings

    from .. import engines
    from ..benchmark import compare
    from ..engines import processor
    from ..formats import load, network_of

    usual = [name for name in engines.installed() if "bf16" not in (precision or ()) or name in engines.IN_BF16]
    names = tuple(dict.fromkeys(engine or usual))
    if layers and engine and "native" not in names:
        raise Error("--layers requires the native engine; add `--engine native`")
    if plot:
        check_plot(plot)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # assumptions about preprocessing and labels don't affect the speed
        network, *others = [load(common.locate(one)) for one in model or (None,)]
    batch_sizes, counts = (tuple(dict.fromkeys(given or ())) for given in (batch_size, threads))
    title, *titles = titles_of(model or [EMBEDDED])
    beside = dict(zip(titles, others, strict=True))
    if len({title, *titles}) <= len(others) or len({network_of(one).architecture.input_size for one in (network, *others)}) > 1:
        raise Error("models side by side require different names and the same input size")
    with common.progress() as show:
        options: dict[str, Any] = {"threads": counts, "rounds": rounds, "beside": beside, "progress": show}
        options["precisions"] = tuple(dict.fromkeys(precision or ("auto",)))
        found = list(compare(network, names, batch_sizes=batch_sizes or (1,), **options))
    heading = {"model": title, "processor": processor()}
    if format is common.Format.table:
        _print_tables(found, " on ".join(heading.values()), layers)
    else:
        _print_records(found, heading, layers, format)
    if plot:
        _plot(found, " on ".join(heading.values()), plot)
    if "native" not in engines.installed():
        print("vgg: the native engine, which also measures the limit, is not installed", file=sys.stderr)


def titles_of(models: Sequence[str]) -> list[str]:
    """Models in output: files by their names without folders, unless these are equal. Published names have slashes, too."""
    short = [Path(one).name if Path(one).exists() else one for one in models]
    return short if len({*short}) == len(short) else list(models)


def _print_tables(found: "Sequence[Comparison]", title: str, layers: bool) -> None:
    for index, one in enumerate(found):
        rows = [one.record(timing) for timing in one.timings]
        first, work = rows[0], one.total
        if index:
            print()
        print(f"{title}: {_case(one)}, {first['rounds']} rounds, milliseconds per image")
        if one.limit:
            print(
                f"limit {first['ms_limit']:.2f}: a batch is {2e-9 * work.multiply_adds * one.batch:,.2f} GFLOP at "
                f"{first['gflops']:,} GFLOP/s and {work.weight_bytes / 1e6:,.1f} MB at {first['gb_per_s']:,} GB/s"
            )
        kept = {name: heading for name, heading in COLUMNS.items() if first[name] is not None}
        common.print_records([{heading: row[name] for name, heading in kept.items()} for row in rows], common.Format.table)
        for parts in filter(None, map(one.layers, one.timings)) if layers else ():
            print()
            common.print_records(
                [{"layer": name, "ms": ms, "of limit": share} for name, (ms, share) in parts.items()], common.Format.table
            )


def _print_records(found: "Sequence[Comparison]", heading: dict[str, str], layers: bool, format: common.Format) -> None:
    rows = []
    for one in found:
        for timing in one.timings:
            times = one.layers(timing) if layers else {}
            parts: dict[str, Any] = {name: ms for name, (ms, _) in times.items()}
            if layers and format is common.Format.json:
                parts = {"layers": {name: {"ms": ms, "of_limit": share} for name, (ms, share) in times.items()}}
            rows.append({**heading, **one.record(timing), **parts})
    common.print_records(rows, format, list(dict.fromkeys(name for row in rows for name in row)))


def _case(one: "Comparison") -> str:
    return f"batch {one.batch}, {counted(one.threads, 'thread')}"


def check_plot(path: Path) -> None:
    """Raise Error, before anything is measured, if a plot can't be drawn or written to a path."""
    from ..extras import require

    if path.suffix not in PLOTS:
        raise Error(f"{path}: unsupported format of a plot; use {' or '.join(PLOTS)}")
    check_folder(path)
    require("--plot", "plot", "matplotlib")


def _plot(found: "Sequence[Comparison]", title: str, path: Path) -> None:
    """Draw a panel per comparison: a row for each number of threads, a column for each batch size."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from ..files import replacing

    engines = [timing.engine for timing in found[0].timings]
    columns = len({one.batch for one in found})
    rows = len(found) // columns
    size = max(7.0, 4.8 * columns), 1.2 + rows * (0.9 + 0.42 * len(engines))
    figure = Figure(size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.06))
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(
        f"milliseconds per image: median of {len(found[0].timings[0].seconds)} rounds, with quartiles as whiskers",
        x=0.01, ha="left", fontsize=9, color=QUIET,
    )  # fmt: skip
    panels = figure.subplots(rows, columns, squeeze=False, sharex="row", sharey=True)
    for panel, one in zip(panels.flat, found, strict=True):
        low, middle, high = ([one.milliseconds(t.quantile(q)) for t in one.timings] for q in (0.25, 0.5, 0.75))
        spread = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        colours = [OURS if name.partition(",")[0] == "native" else OTHERS for name in engines]
        bars(
            panel, engines, middle, high, color=colours, xerr=spread, error_kw={"ecolor": QUIET, "capsize": 3, "elinewidth": 1}
        )
        if one.limit:
            limit = one.milliseconds(one.limit)
            panel.axvline(limit, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
            panel.annotate(
                f"limit {limit:,.1f}", (limit, 1), (3, -1), xycoords=("data", "axes fraction"), textcoords="offset points",
                va="bottom", ha="center", fontsize=8, color=LIMIT,
            )  # fmt: skip
        panel.set_title(_case(one), loc="left", fontsize=10, color=QUIET, pad=14)
        panel.margins(x=0.12)
    with rc_context({"svg.fonttype": "none"}), replacing(path) as file:  # text stays text
        figure.savefig(file, format=path.suffix[1:], dpi=160)


def bars(panel: Any, names: Sequence[str], values: Sequence[float], ends: Sequence[float], **options: Any) -> None:
    """Draw a horizontal bar for each name, the first on top, with its value behind its end."""
    places = range(len(names))[::-1]
    panel.barh(places, values, 0.62, **options)
    for place, end, value in zip(places, ends, values, strict=True):
        panel.annotate(
            f"{value:,.1f}", (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    panel.set_yticks(places, names)
    panel.set_ylim(-0.6, len(names) - 0.4)
    panel.tick_params(length=0, labelsize=9)
    panel.tick_params("x", colors=QUIET)
    panel.set_axisbelow(True)
    panel.grid(axis="x", color="#e6eaed")
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.spines["left"].set_color(QUIET)
