"""Write the tables of measurements in README.md and docs/ from benchmarks/results.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. Its lines and columns each select rows of the files; a cell is
the row that both select, as text. Lines without any row are left out.
"""

import csv
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PART = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)

sys.path.insert(0, str(ROOT / "benchmarks"))
from recipes import BASE, CHANGES, summary  # noqa: E402

Row = dict[str, str]
Selection = dict[str, str | int]  # values of columns of a file


@dataclass(frozen=True)
class Line:
    """A line or a column of a table."""

    title: str  # a line's may contain versions, such as `{torch}`, and columns of its first row; bold, the line is printed bold
    where: Selection = field(default_factory=dict)
    text: str = ""  # of a cell, as a format of the row's columns; a line's comes before a column's


@dataclass(frozen=True)
class Table:
    """A table, as data."""

    files: str  # pattern of names in benchmarks/results
    corner: str
    lines: Sequence[Line] | str  # a text instead is the title of a line for each row
    columns: Sequence[Line]
    where: Selection = field(default_factory=dict)
    prepare: Callable[[list[Row]], list[Row]] = list


def markdown(table: Table, folder: Path = RESULTS) -> str:
    """A table from the files in a folder. Raises ValueError if several rows fit a cell."""
    rows = []
    for path in sorted(folder.glob(table.files)):
        with open(path, encoding="utf-8", newline="") as file:
            rows += list(csv.DictReader(file))
    rows = _selected(table.prepare(rows), table.where)
    lines = [Line(table.lines, row) for row in rows] if isinstance(table.lines, str) else table.lines  # type: ignore[arg-type]
    found = []
    for line in lines:
        chosen = _selected(rows, line.where)
        cells = [_cell(chosen, line, column) for column in table.columns]
        if any(cells):
            found.append([line.title.format_map(_values(chosen[0])), *cells])
    head = [[table.corner, *(column.title for column in table.columns)], ["---"] * (1 + len(table.columns))]
    return "".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |\n") for cells in head + found)


def _cell(rows: list[Row], line: Line, column: Line) -> str:
    """The text of a cell; empty without a row, or if a number of the row is missing."""
    found = _selected(rows, column.where)
    if len(found) > 1:
        raise ValueError(f"{line.title}, {column.title}: {len(found)} rows: {found[:2]}")
    bold = "**" if line.title.startswith("**") else ""
    try:
        return (line.text or column.text).format_map({"bold": bold, **_values(found[0])}) if found else ""
    except ValueError:  # an empty text is no number
        return ""


def _selected(rows: list[Row], where: Selection) -> list[Row]:
    return [row for row in rows if all(row.get(name, "") == str(value) for name, value in where.items())]


def _values(row: Row) -> dict[str, str]:
    """The columns of a row, and the versions of packages, which are shortened: `2.13.0+cpu` is 2.13."""
    versions = dict(one.split(" ") for one in row.get("versions", "").split(", ") if one)
    short = {name: re.sub(r"(\.0)?(\+.*)?$", "", version) for name, version in versions.items()}
    return {**short, **{name: Text(text) for name, text in row.items()}}


class Text(str):
    """A cell of a file, which is a number if its format is that of a number."""

    def __format__(self, form: str) -> str:
        return format(float(self), form) if form else str(self)


# Engines by processor

FLOAT, INT8, BF16 = ({"precision": name} for name in ("float32", "int8", "bf16"))
ZEN4: Selection = {"machine": "AMD EPYC", "instructions": "avx512bf16"}
ZEN3: Selection = {"machine": "AMD EPYC (Zen 3)"}
XEON: Selection = {"machine": "Intel Xeon (Sapphire Rapids)"}
NAMES = {
    "mnn": "MNN {MNN}", "ncnn": "ncnn {ncnn}", "openvino": "OpenVINO {openvino}", "torch": "torch {torch}",
    "onnxruntime": "ONNX Runtime {onnxruntime}",
}  # fmt: skip


def engine(name: str, precision: Selection, detail: str = "") -> Line:
    return Line(NAMES[name] + detail, {"engine": name, **precision})


def native(precision: Selection, title: str = "**native**") -> Line:
    return Line(title, {"engine": "native", **precision})


LIMIT = Line("the machine's limit", {"engine": "native", **FLOAT}, "{ms_limit:.0f}")
WITH_PRECISIONS = [
    native(FLOAT),
    *(engine(name, FLOAT) for name in ("ncnn", "mnn", "onnxruntime", "openvino", "torch")),
    LIMIT,
    native(INT8, "**native, int8**"),
    *(engine(name, INT8, ", int8") for name in ("openvino", "onnxruntime")),
    native(BF16, "**native, bfloat16**"),
    *(engine(name, BF16, ", bfloat16") for name in ("openvino", "torch")),
]
IN_ZEN3 = [
    native(FLOAT), engine("mnn", FLOAT), engine("openvino", INT8, ", int8"),
    *(engine(name, FLOAT) for name in ("ncnn", "openvino", "torch", "onnxruntime")), LIMIT,
]  # fmt: skip
IN_XEON = [
    native(FLOAT),
    Line("native, int8 weights", {"model": "{model}-int8", "engine": "native"}),
    Line("native, int4 weights", {"model": "{model}-int4", "engine": "native"}),
    *(engine(name, FLOAT) for name in ("ncnn", "mnn", "onnxruntime", "openvino", "torch")),
    engine("openvino", INT8, ", int8, with AMX"),
    LIMIT,
]


def by_engine(model: str, machine: Selection, lines: Sequence[Line], text: str) -> Table:
    """A network on a processor: a line for each engine, a column for each batch size and number of threads."""
    lines = [
        replace(line, where={**line.where, "model": str(line.where.get("model", model)).format(model=model)}) for line in lines
    ]
    columns = [
        Line(
            f"{batch} image{'s' * (batch > 1)}, {threads} thread{'s' * (threads > 1)}",
            {"batch": batch, "threads": threads},
            text,
        )
        for batch in (1, 8)
        for threads in (1, 2)
    ]
    return Table("peers-*.csv", f"{model.upper().replace('VGG', 'VGG-')}, ms per image", lines, columns, machine)


VS_ONNXRUNTIME = "{bold}{ms:.0f}{bold} ({vs_onnxruntime:.2f})"
VS_NATIVE = "{bold}{ms:.0f}{bold} ({vs_native:.2f})"
IN_BFLOAT16 = [
    native(BF16, "**native, bfloat16**"),
    native(FLOAT, "native, float32"),
    *(engine(name, BF16, ", bfloat16") for name in ("openvino", "torch")),
    *(engine(name, FLOAT, ", float32") for name in ("openvino", "torch")),
]
TITLES = {"float32": "float32", "int8": "int8", "bf16": "bfloat16"}
BY_PROCESSOR = [
    Line(title, {**machine, **precision})
    for machine, processor, precisions in (
        (ZEN4, "AMD EPYC, Zen 4, with AVX-512", (FLOAT, INT8, BF16)),
        (ZEN3, "AMD EPYC, Zen 3, with AVX2", (FLOAT, INT8)),
        (XEON, "Intel Xeon, Sapphire Rapids, with AVX-512 and AMX", (FLOAT, INT8)),
    )
    for precision in precisions
    for title in [f"{processor if precision is FLOAT else 'the same'}: {TITLES[str(precision['precision'])]}"]
]
PROGRAMS = {
    "native": "vgg",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "openvino": "OpenVINO",
    "torch": "torch",
    "onnxruntime": "ONNX Runtime",
}
IN_GPU = {
    "earlier engine, from floats": "inference, `--engine torch --device cuda`, from floats, before this engine was compiled",
    "earlier engine, in place": "the same, without copies to and from the GPU",
    "engine, from floats": "inference, `--engine torch --device cuda`, from floats",
    "engine, from pixels": "the same, from pixels",
    "engine, in place": "the same, without copies to and from the GPU",
    "engine, compiled, from floats": "the same, compiled, from floats",
    "engine, compiled, from pixels": "the same, from pixels",
    "engine, compiled, in place": "the same, without copies to and from the GPU",
    "torch's module, in place": "torch's own modules, without copies",
    "torch's module, compiled, in place": "the same, compiled by `torch.compile`",
    "training: torch's module, in place": "training, torch's own modules, images already on the GPU",
    "training: torch's module, compiled, in place": "the same, compiled",
    "training: vgg train": "`vgg train`, JPEG files of 500x375",
    "training: vgg train, ten steps with the start": "`vgg train`, ten steps of JPEG files of 500x375, the start included",
}
SETS = {"CIFAR-10": "cifar-10-batches-bin", "CIFAR-100": "cifar-100-binary"}


def of_recipes(corner: str, epochs: int, lines: Sequence[Line]) -> Table:
    """Accuracies of training runs of so many epochs."""
    columns = [
        Line(column or title, {"dataset": place}, text)
        for title, place in SETS.items()
        for column, text in (("", "{test_top1}"), ("difference", "{difference}"), ("mirrored", "{test_top1_mirrored}"))
    ]
    return Table("recipes-*.csv", corner, lines, columns, {"network": "vgg11-bn, width 0.25", "epochs": epochs}, summary)


TABLES = {
    "vgg16 by processor": Table(
        "peers-*.csv", "VGG-16, ms, 1 image, 1 thread", BY_PROCESSOR,
        [Line(title, {"engine": name}, "**{ms:.0f}**" if name == "native" else "{ms:.0f}") for name, title in PROGRAMS.items()],
        {"model": "vgg16", "batch": 1, "threads": 1},
    ),
    **{f"{model} on Zen 4": by_engine(model, ZEN4, WITH_PRECISIONS, VS_ONNXRUNTIME) for model in ("vgg16", "vgg19")},
    **{f"{model} on Zen 3": by_engine(model, ZEN3, IN_ZEN3, VS_ONNXRUNTIME) for model in ("vgg16", "vgg19")},
    **{f"{model} on Xeon": by_engine(model, XEON, IN_XEON, VS_ONNXRUNTIME) for model in ("vgg16", "vgg19")},
    "vgg16 in bfloat16": by_engine("vgg16", ZEN4, IN_BFLOAT16, VS_NATIVE),
    "int8 on Zen 4": Table(
        "peers-*.csv", "",
        [
            native(FLOAT, "float32, native"), native(INT8, "qdq, native"),
            *(Line(f"qdq, {PROGRAMS[name]}", {"engine": name, **INT8}) for name in ("openvino", "onnxruntime")),
        ],
        [Line(model.upper().replace("VGG", "VGG-"), {"model": model}, "{vs_onnxruntime:.2f}") for model in ("vgg16", "vgg19")],
        {"batch": 1, "threads": 1, **ZEN4},
    ),
    "packages": Table(
        "installation-amd-epyc-zen-4.csv", "package", "{package}",
        [
            Line("extra", {}, "{extra}"), Line("MB", {}, "{mb:.1f}"), Line("MB with what it requires", {}, "{mb_whole:.1f}"),
            Line("import, ms", {}, "{import_ms:.0f}"),
        ],
    ),
    "gpu": Table(
        "gpu-nvidia-h200.csv", "", [Line(title, {"measurement": name}) for name, title in IN_GPU.items()],
        [Line("images/s", {}, "{value:,.0f}"), Line("share of this peak", {}, "{share_of_peak:.0%}")],
        {"batch": 256},
    ),
    "cifar on a gpu": Table(
        "gpu-nvidia-h200.csv", "dataset, recipe", "{dataset}, `{recipe}`",
        [
            Line("epochs", {}, "{epochs}"), Line("test top-1", {}, "{test_top1:.2f}%"), Line("seconds", {}, "{seconds:.0f}"),
            Line("images/s", {}, "{images_per_s:,.0f}"), Line("not waiting for images", {}, "{not_waiting:.1%}"),
        ],
        {"measurement": "CIFAR"},
    ),
    "recipes": of_recipes(
        "recipe", 25, [
            Line("`modern`", {"change": "earlier recipe"}), Line("`cifar`", {"change": "base"}),
            Line("`cifar` with `filters=random`", {"change": "random filters"}),
            Line("`cifar` with `filters=random` and `optimizer=muon`", {"change": "Muon, random filters"}),
        ]
    ),
    "changes": of_recipes(
        "`cifar` with", 8, [Line("no change" if title == BASE else title, {"change": title}) for title in CHANGES]
    ),
}  # fmt: skip


def generated(page: str) -> str:
    """The page with its tables made anew."""
    return PART.sub(lambda match: f"{match[1]}{markdown(TABLES[match[2]])}{match[3]}", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(generated(path.read_text("utf-8")), "utf-8")
