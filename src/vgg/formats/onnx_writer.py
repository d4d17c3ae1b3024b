"""ONNX files, written in one stream: the graph by the onnx package, the numbers block by block behind it."""

import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from ..errors import ModelError, Notice
from ..files import replacing
from ..network import Network, ParametersHash
from ..parameters import Quantized, as_bytes, blocks
from . import metadata, onnx_graph, onnx_preprocessing
from .onnx_graph import Initializer
from .onnx_options import OnnxOptions
from .onnx_wire import field, prefix

OLDEST, DEFAULT, NEWEST = 3, 17, onnx.defs.onnx_opset_version()
ALIGNMENT = 64  # bytes; big tensors begin on such a boundary of the file, where every vector load is aligned
BIG = 4096
LARGEST = 2**31 - 1  # protobuf's limit on a message


def write(network: Network, path: Path, options: OnnxOptions) -> None:
    """Write a network as an ONNX file, deterministic to the byte; see `Network.write`."""
    oldest = onnx_preprocessing.OPSET if options.preprocessing else OLDEST
    opset = max(DEFAULT, oldest) if options.opset is None else options.opset
    if not oldest <= opset <= NEWEST:
        what = " with preprocessing" if options.preprocessing else ""
        able = f"{oldest} to {NEWEST} can, with onnx {onnx.__version__}"
        raise ModelError(f"{path}: opset {opset} can't be written{what}: {able}")
    try:
        made, initializers = onnx_graph.build(network, opset, ("logits", *options.outputs), options)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    expanded = [one.name for one in initializers if isinstance(one.value, Quantized)]
    if expanded:
        warnings.warn(
            Notice(
                f"{path}: {len(expanded)} quantized weights were expanded to float{options.bits}; opset {onnx_graph.PER_AXIS} "
                f"keeps those of 8 bits with scales along an axis, opset {onnx_graph.BLOCKED} those of 4 bits and in groups"
            ), stacklevel=2,
        )  # fmt: skip
    head, heads = _layout(made, initializers, opset)
    total = ParametersHash()
    with replacing(path) as file:
        file.write(head)
        for one, start in zip(initializers, heads, strict=True):
            file.write(start)
            stored = one.value.values if isinstance(one.value, Quantized) else one.value
            total.begin(one.name, np.broadcast_to(np.zeros((), one.dtype), stored.shape))
            for block in blocks(one.value, one.dtype):
                total.update(block)
                file.write(as_bytes(block).data)
        text = {**metadata.describe(network, expanded), **_image(network), metadata.SHA256: total.hexdigest()}
        for key, value in sorted(text.items()):
            file.write(field(14, field(1, key.encode()) + field(2, value.encode())))


def _layout(made: onnx.GraphProto, initializers: list[Initializer], opset: int) -> tuple[bytes, list[bytes]]:
    """The bytes before the first initializer, and those before each one's numbers."""
    body = made.SerializeToString(deterministic=True)
    place, heads = len(body), []
    for one in initializers:
        heads.append(_aligned(one, place))
        place += len(heads[-1]) + one.nbytes
    ir = 3 if opset < 7 else max(4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    model = onnx.ModelProto(ir_version=ir, producer_name="vgg", producer_version=_version())
    model.opset_import.append(helper.make_opsetid("", opset))
    if place > LARGEST:
        raise ModelError(f"{made.name} needs {place / 2**30:.1f} GiB; an ONNX file holds at most 2")
    before = prefix(7, place)
    start = model.SerializeToString(deterministic=True)
    # The text before the graph is as long as it must be for the graph to begin on a boundary.
    room = -(len(start) + len(before) + 2) % ALIGNMENT
    model.doc_string = "VGG".ljust(room if room >= 3 else room + ALIGNMENT)
    return model.SerializeToString(deterministic=True) + before + body, heads


def _aligned(one: Initializer, place: int) -> bytes:
    """A tensor's head, which stands at `place`: when the tensor is big, a blank doc_string brings its numbers to a boundary."""
    dims = b"".join(field(1, dim) for dim in one.dims)
    start = dims + field(2, one.data_type) + field(8, one.title.encode())
    for room in range(-1, ALIGNMENT + 2):
        inner = start + (field(12, b" " * room) if room >= 0 else b"") + prefix(9, one.nbytes)
        head = prefix(5, len(inner) + one.nbytes) + inner
        if one.nbytes < BIG or (place + len(head)) % ALIGNMENT == 0:
            return head
    raise AssertionError("some padding always fits")


def _image(network: Network) -> dict[str, str]:
    """The keys that the ONNX standard gives image models (onnx/docs/MetadataProps.md)."""
    return {
        "Image.BitmapPixelFormat": "Rgb8" if network.preprocessing.channels == "RGB" else "Bgr8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255" if network.preprocessing.scale == 1 else "Normalized_0_1",
    }


def _version() -> str:
    from importlib.metadata import version

    return version("vgg")
