"""vgg inspect"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import json_output
from ..errors import printable
from . import common

if TYPE_CHECKING:
    from ..architectures import Architecture
    from ..formats import QuantizedGraph
    from ..network import Network

SCORES = {
    "softmax": "{} classes, one for an image", "sigmoid": "{} classes, any number for an image",
    "binary": "2 classes with one logit",
}  # fmt: skip


def inspect(
    file: Annotated[Path, typer.Argument(help="Model file of any supported format, or published name.")],
    format: Annotated[Literal["table", "json"], typer.Option("--format", help="Format of the printed result.")] = "table",
) -> None:
    """Describe a model file: format, architecture, head, quantized activations, preprocessing, labels, origin.

    Example: `vgg inspect vgg19.onnx`

    Preprocessing and labels are shown with their source: the file, its published hash, or a guess by its format. What is
    assumed of the head, because the file doesn't say it, is shown as well.
    """
    import warnings

    from ..errors import ModelError, Notice
    from ..formats import TITLES, detect, load, metadata, network_of, safetensors, torch_writer
    from ..formats.layouts import reading
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
    elif kind in ("safetensors", "torch"):
        with reading(file, TITLES[kind]):
            written = safetensors.described(file) if kind == "safetensors" else torch_writer.described(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # the table shows what is a guess
        try:
            model = load(file)
            facts |= _network(network_of(model), written.get(metadata.SHA256))
            facts["activations"] = _activations(model)
        except ModelError as error:
            if kind != "onnx" or metadata.ARCHITECTURE in written:
                raise
            facts["refused"] = str(error).removeprefix(f"{file}: ")
    if format == "json":
        print(json_output.dumps(facts, indent=2, ensure_ascii=False))
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
        "head": _head(architecture),
        "backbone": _backbone(architecture),
        "assumed": origin.assumed or None,
        "parameters": architecture.parameter_count,
        "parameter_bytes": sizes,
        "defects": [f"parameter {name} has {fault}" for name, fault in network.faults()],
        "multiply_adds": architecture.multiply_adds(),
        "preprocessing": asdict(network.preprocessing),
        "preprocessing_source": origin.preprocessing if claimed is None else "metadata",
        "labels": len(network.labels) if network.labels else 0,
        "labels_source": origin.labels if claimed is None else "metadata",
        "provenance": asdict(origin),
        "parameters_sha256": sha256,
        "parameters_intact": None if claimed is None else claimed == sha256,
    }


def _activations(model: "Network | QuantizedGraph") -> dict[str, Any] | None:
    """The facts about the quantization of activations; None of a model with floats."""
    from ..formats import QuantizedGraph

    if not isinstance(model, QuantizedGraph):
        return None
    forms = {name: [asdict(one) for one in several] for name, several in model.activations.items()}
    return {"form": "QDQ" if model.qdq else "QOperator", "layer_outputs": forms, "obstacle": model.obstacle or None}


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
    size = facts["head"] and facts["head"]["input_size"]
    inputs = f"input of {size} pixels" if size else "input of any size"
    published = f", published as {origin['published']}" if origin["published"] else ""
    rows += [
        ("architecture", f"{architecture['name']}{width}, {inputs}"),
        *([("channels", _runs(architecture["channels"]))] if architecture["channels"] else []),
        *_head_rows(facts),
        ("cost", f"{facts['parameters']:,} parameters, {facts['multiply_adds'] / 1e9:.2f} G multiply-adds per image"),
        ("numbers", ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in facts["parameter_bytes"].items())),
        *([("activations", _integers(facts["activations"]))] if facts["activations"] else []),
        *(("DEFECT", text) for text in facts["defects"]),
        ("preprocessing", f"{facts['preprocessing']['name']} ({_source(facts, 'preprocessing')})"),
        *([("labels", _labels(facts))] if facts["head"] else []),
        ("origin", f"{origin['source'] or 'unknown'}{published}"),
        *([("", origin["part"])] if origin["part"] else []),
        ("licence", origin["licence"] or "unknown"),
        ("parameters", f"sha256 {facts['parameters_sha256']}"),
    ]
    if facts["parameters_intact"] is not None:
        rows.append(("", "unchanged since written" if facts["parameters_intact"] else "CHANGED since written"))
    return rows


def _head(architecture: "Architecture") -> dict[str, Any] | None:
    """The facts about a head, by layer; None without one."""
    head = architecture.classifier
    if head is None:
        return None
    items = head.text.removesuffix(f" {head.output}" if head.output != "softmax" else "").split(", ")
    linear = [layer for layer in architecture.layers if layer.operation == "linear"]
    pooling = items.pop(0) if len(items) > len(linear) else head.pooling
    shape = linear[0].parameters["weight"][1:]
    return {
        "text": head.text,
        "pooling": pooling,
        "inputs": list(shape),
        "layers": [
            {"layer": layer.name, "units": layer.parameters["weight"][0], "steps": item.split()[1:]}
            for layer, item in zip(linear, items, strict=True)
        ],
        "output": head.output,
        "input_size": architecture.input_size if architecture.fixed_map else None,
    }


def _backbone(architecture: "Architecture") -> dict[str, Any] | None:
    """The last layer output of a network without a head, its channels, and its stride in pixels of the input."""
    if architecture.classifier:
        return None
    last, side = architecture.values[-1], 2**10
    _, channels, height, _ = architecture.shape(last, 1, side, side)
    return {"last": last, "channels": channels, "stride": side // height}


def _head_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    head, classes = facts["head"], facts["architecture"]["classes"]
    if head is None:
        backbone = facts["backbone"]
        text = f"none; the last output is {backbone['last']}, {backbone['channels']} channels, stride {backbone['stride']}"
        rows = [("head", text)]
    else:
        shape = "x".join(map(str, head["inputs"]))
        rows = [("head", f"{head['pooling']}, {shape} inputs")]
        rows += [("", " ".join([f"{one['layer']}, {one['units']} units", *one["steps"]])) for one in head["layers"]]
        rows.append(("scores", f"{head['output']}, {SCORES[head['output']].format(classes)}"))
    assumed = f"{facts['assumed']}; set with --head and --output-activation"
    return [*rows, *([("assumed", assumed)] if facts["assumed"] else [])]


def _integers(activations: dict[str, Any]) -> str:
    """Whether the native engine computes quantized activations with integers, in words."""
    if activations["obstacle"]:
        return f"{activations['form']}; not in integers on the native engine, since {activations['obstacle']}"
    return f"{activations['form']}, {len(activations['layer_outputs'])} values in 8 bits; integers on the native engine"


def _runs(channels: Sequence[int]) -> str:
    """Numbers of channels with repetitions as factors: `2x61, 128`."""
    counts = [(number, len(list(group))) for number, group in groupby(channels)]
    return ", ".join(f"{count}x{number}" if count > 1 else str(number) for number, count in counts)


def _labels(facts: dict[str, Any]) -> str:
    if facts["labels"]:
        return f"{facts['labels']} ({_source(facts, 'labels')})"
    return f"none{', shown as negative and positive' * (facts['head']['output'] == 'binary')}; set with --labels"


def _source(facts: dict[str, Any], key: str) -> str:
    """The source of the preprocessing or the labels, in words."""
    words = {"guess": "guessed by the format", "given": "set by the user", "known hash": "known by the published hash"}
    source, origin = str(facts[f"{key}_source"]), facts["provenance"][key]
    if source == "metadata" and facts["parameters_intact"] is None:
        return "from the file"
    if source == "metadata":
        return f"from the file's metadata; when written: {words.get(origin, origin)}"
    return words.get(source, source)
