"""vgg inspect"""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..formats.onnx_file import OnnxFile, Port
    from ..network import Network


class Format(StrEnum):
    table = "table"
    json = "json"


def inspect(
    file: Annotated[Path, typer.Argument(help="A model file of any kind that is read; or vgg16-gap.")],
    format: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.table,
) -> None:
    """Say what is in a model file, and how that is known.

    Example: `vgg inspect vgg19.onnx`
    """
    import warnings

    from .. import formats
    from ..errors import ModelError, Notice
    from ..zoo import locate

    file = locate(file)
    kind = formats.detect(file)
    facts: dict[str, Any] = {"file": str(file), "bytes": file.stat().st_size, "format": kind}
    onnx = None
    if kind == "onnx":
        from ..formats import metadata
        from ..formats.onnx_file import scan

        onnx = scan(file)
        facts |= _onnx(onnx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the answer itself says what was guessed
        try:
            facts |= _network(formats.read(file), onnx.metadata.get(metadata.SHA256) if onnx else None)
        except ModelError as error:
            if onnx is None or metadata.ARCHITECTURE in onnx.metadata:
                raise
            facts["refused"] = str(error).removeprefix(f"{file}: ")
    if format is Format.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        for name, text in _table(facts):
            print(f"{name:<14} {text}")


def _onnx(onnx: "OnnxFile") -> dict[str, Any]:
    def ports(found: list["Port"]) -> list[dict[str, Any]]:
        return [{"name": port.name, "shape": port.shape} for port in found]

    return {
        "opset": onnx.opset,
        "ir_version": onnx.ir_version,
        "producer": f"{onnx.producer} {onnx.producer_version}".strip(),
        "inputs": ports(onnx.inputs),
        "outputs": ports(onnx.outputs),
        "tensors": len(onnx.tensors),
    }


def _network(network: "Network", claimed: str | None) -> dict[str, Any]:
    """What a network is; `claimed` is the hash of its parameters that the file gives."""
    architecture, origin = network.architecture, network.provenance
    stored = network.tensors().values()
    sizes: dict[str, int] = {}
    for array in stored:
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
    rows = [("file", f"{facts['file']} ({facts['bytes'] / 1e6:,.1f} MB)")]
    names = {"onnx": "ONNX", "torch": "torch", "safetensors": "safetensors", "keras": "Keras", "mxnet": "MXNet"}
    names |= {"caffe": "Caffe", "caffe2": "Caffe2"}
    text = names[facts["format"]]
    if "opset" in facts:
        text += f", opset {facts['opset']}, IR {facts['ir_version']}, written by {facts['producer'] or 'an unnamed program'}"
    rows.append(("format", text))
    for title, key in (("input", "inputs"), ("output", "outputs")):
        rows += [(title, f"{port['name']} [{', '.join(map(str, port['shape']))}]") for port in facts.get(key, ())]
    if "architecture" not in facts:
        rows.append(("tensors", f"{facts['tensors']}; {facts['refused']}"))
        return rows
    made, recipe, origin = facts["architecture"], facts["preprocessing"], facts["provenance"]
    rows += [
        ("architecture", f"{made['name']}, {made['classes']} classes, head {made['head']}"
                         + (f", width {made['width']:g}" if made["width"] != 1 else "")),
        ("cost", f"{facts['parameters']:,} parameters, {facts['multiply_adds'] / 1e9:.2f} G multiply-adds an image"),
        ("numbers", ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in facts["parameter_bytes"].items())),
        ("preprocessing", f"{recipe['name']} ({_known(facts['preprocessing_source'], origin['preprocessing'])})"),
        ("labels", f"{facts['labels'] or 'none'} ({_known(facts['labels_source'], origin['labels'])})"),
        ("origin", f"{origin['source'] or 'unknown'}"
                   + (f", which is {origin['published']}" if origin["published"] else "")),
        ("licence", origin["licence"] or "not said"),
        ("parameters", f"sha256 {facts['parameters_sha256']}"),
    ]  # fmt: skip
    if facts["parameters_intact"] is not None:
        rows.append(("", "as when the file was written" if facts["parameters_intact"] else "NOT as when the file was written"))
    return rows


def _known(source: str, origin: str) -> str:
    """How a fact is known, in words."""
    words = {"guess": "a guess by the format", "given": "given by the user", "known hash": "known by the published hash"}
    if source == "metadata":
        return f"known from the file's metadata; when that was written: {words.get(origin, origin)}"
    return words.get(source, source)
