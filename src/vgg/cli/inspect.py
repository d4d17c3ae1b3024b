"""vgg inspect"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import printable
from . import common

if TYPE_CHECKING:
    from ..network import Network


def inspect(
    file: Annotated[Path, typer.Argument(help="Model file of any supported format, or published name.")],
    format: Annotated[Literal["table", "json"], typer.Option("--format", help="Format of the printed result.")] = "table",
) -> None:
    """Describe a model file: format, architecture, preprocessing, labels, origin.

    Example: `vgg inspect vgg19.onnx`

    Preprocessing and labels are shown with their source: the file's metadata, its published hash, or a guess by its format.
    """
    import warnings

    from ..errors import ModelError, Notice
    from ..formats import detect, metadata, read
    from ..formats.onnx_file import scan

    file = common.locate(file)
    kind = detect(file)
    facts: dict[str, Any] = {"file": str(file), "bytes": file.stat().st_size, "format": kind}
    written: dict[str, str] = {}
    if kind == "onnx":
        onnx = scan(file)
        written = onnx.metadata
        facts |= {"opset": onnx.opset, "ir_version": onnx.ir_version}
        facts["producer"] = f"{onnx.producer} {onnx.producer_version}".strip()
        for key, ports in (("inputs", onnx.inputs), ("outputs", onnx.outputs)):
            facts[key] = [{"name": port.name, "shape": port.shape} for port in ports]
        facts["tensors"] = len(onnx.tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the table shows what is a guess
        try:
            facts |= _network(read(file), written.get(metadata.SHA256))
        except ModelError as error:
            if kind != "onnx" or metadata.ARCHITECTURE in written:
                raise
            facts["refused"] = str(error).removeprefix(f"{file}: ")
    if format == "json":
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        for name, text in _table(facts):
            print(f"{name:<14} {printable(text)}")


def _network(network: "Network", claimed: str | None) -> dict[str, Any]:
    """The facts about a network; `claimed` is the hash of its parameters in the file's metadata."""
    architecture, origin = network.architecture, network.provenance
    sizes: dict[str, int] = {}
    for array in network.tensors().values():
        sizes[array.dtype.name] = sizes.get(array.dtype.name, 0) + array.nbytes
    sha256 = network.sha256()
    return {
        "architecture": asdict(architecture),
        "parameters": architecture.parameter_count,
        "parameter_bytes": sizes,
        "multiply_adds": architecture.multiply_adds(),
        "preprocessing": asdict(network.preprocessing),
        "preprocessing_source": origin.preprocessing if claimed is None else "metadata",
        "labels": len(network.labels) if network.labels else 0,
        "labels_source": origin.labels if claimed is None else "metadata",
        "provenance": asdict(origin),
        "parameters_sha256": sha256,
        "parameters_intact": None if claimed is None else claimed == sha256,
    }


def _table(facts: dict[str, Any]) -> list[tuple[str, str]]:
    from ..formats import TITLES

    rows = [("file", f"{facts['file']} ({facts['bytes'] / 1e6:,.1f} MB)")]
    text = TITLES[facts["format"]]
    if "opset" in facts:
        text += f", opset {facts['opset']}, IR {facts['ir_version']}, written by {facts['producer'] or 'an unknown program'}"
    rows.append(("format", text))
    for title, key in (("input", "inputs"), ("output", "outputs")):
        rows += [(title, f"{port['name']} [{', '.join(map(str, port['shape']))}]") for port in facts.get(key, ())]
    if "architecture" not in facts:
        return [*rows, ("tensors", f"{facts['tensors']}; {facts['refused']}")]
    architecture, origin = facts["architecture"], facts["provenance"]
    width = f", width {architecture['width']:g}" if architecture["width"] != 1 else ""
    published = f", published as {origin['published']}" if origin["published"] else ""
    rows += [
        ("architecture", f"{architecture['name']}, {architecture['classes']} classes, head {architecture['head']}{width}"),
        ("cost", f"{facts['parameters']:,} parameters, {facts['multiply_adds'] / 1e9:.2f} G multiply-adds per image"),
        ("numbers", ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in facts["parameter_bytes"].items())),
        ("preprocessing", f"{facts['preprocessing']['name']} ({_source(facts, 'preprocessing')})"),
        ("labels", f"{facts['labels'] or 'none'} ({_source(facts, 'labels')})"),
        ("origin", f"{origin['source'] or 'unknown'}{published}"),
        ("licence", origin["licence"] or "unknown"),
        ("parameters", f"sha256 {facts['parameters_sha256']}"),
    ]
    if facts["parameters_intact"] is not None:
        rows.append(("", "unchanged since written" if facts["parameters_intact"] else "CHANGED since written"))
    return rows


def _source(facts: dict[str, Any], key: str) -> str:
    """The source of the preprocessing or the labels, in words."""
    words = {"guess": "guessed by the format", "given": "set by the user", "known hash": "known by the published hash"}
    source, origin = str(facts[f"{key}_source"]), facts["provenance"][key]
    if source == "metadata":
        return f"from the file's metadata; when written: {words.get(origin, origin)}"
    return words.get(source, source)
