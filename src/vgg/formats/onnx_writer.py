"""ONNX files, written as one stream: the graph, then the parameters block by block, then the metadata."""

import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..errors import ModelError, Notice
from ..files import replacing
from ..network import Network, ParametersHash
from ..parameters import Quantized, as_bytes, blocks, is_finite
from . import metadata, onnx_builder
from .onnx_builder import Initializer, OnnxOptions
from .onnx_file import PRODUCER
from .onnx_messages import Graph, tensor_head
from .protobuf import field, prefix

ALIGNMENT = 64  # bytes; large tensors start at a multiple of it in the file, so that vector loads are aligned
LARGE = 4096  # bytes
MAX_BYTES = 2**31 - 1  # protobuf's limit for a message


def write(network: Network, path: Path, options: OnnxOptions) -> None:
    """Write a network as an ONNX file; the same network and options give the same bytes. See `vgg.formats.write`."""
    if options.dense and "bn5.scale" in network.parameters:
        network = network.fold_batch_norm()  # of the elements of a map, which differ from position to position
    try:
        graph, initializers = onnx_builder.build(network, options)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    expanded = [one.name for one in initializers if isinstance(one.value, Quantized)]
    if expanded:
        warnings.warn(
            Notice(
                f"{path}: expanded {len(expanded)} quantized weights to float{options.bits}; opset {onnx_builder.PER_AXIS} "
                f"keeps 8-bit weights with scales along an axis, opset {onnx_builder.BLOCKED} 4-bit weights and groups"
            ), stacklevel=2,
        )  # fmt: skip
    head, heads = _layout(path, graph, initializers)
    total = ParametersHash()
    with replacing(path) as file:
        file.write(head)
        for one, start in zip(initializers, heads, strict=True):
            file.write(start)
            stored = one.value.values if isinstance(one.value, Quantized) else one.value
            total.begin(one.name, np.broadcast_to(np.zeros((), one.dtype), stored.shape))
            for block in _blocks(path, one):
                total.update(block)
                file.write(as_bytes(block).data)
        text = {**metadata.describe(network, expanded), **_image(network), metadata.SHA256: total.hexdigest()}
        file.write(entries(text))


def _blocks(path: Path, one: Initializer) -> Iterator[Array]:
    """The blocks of a tensor. Raises ModelError if a number of the network is too large for the file's floats."""
    with np.errstate(over="ignore"):
        for block in blocks(one.value, one.dtype):
            if block.dtype.itemsize < 4 and not np.isfinite(block.astype(np.float32)).all() and is_finite(one.value):
                raise ModelError(f"{path}: {one.name} has numbers that are too large for {block.dtype.name}; write 32 bits")
            yield block


def entries(text: Mapping[str, str]) -> bytes:
    """The fields of the metadata, which are the last ones of a file."""
    return b"".join(field(14, field(1, key.encode()) + field(2, value.encode())) for key, value in sorted(text.items()))


def _layout(path: Path, graph: Graph, initializers: list[Initializer]) -> tuple[bytes, list[bytes]]:
    """The bytes before the first initializer, and the bytes before each initializer's numbers."""
    body = graph.body()
    place, heads = len(body), []
    for one in initializers:
        heads.append(_aligned(one, place))
        place += len(heads[-1]) + one.nbytes
    if place > MAX_BYTES:
        raise ModelError(f"{path}: {graph.name} needs {place / 2**30:.1f} GiB; an ONNX file holds at most 2")
    origin = {"producer": PRODUCER, "version": version("vgg")}
    start, before = graph.head(**origin), prefix(7, place)
    # doc_string, which precedes the graph, pads the graph's start to a boundary.
    room = -(len(start) + len(before) + 2) % ALIGNMENT
    doc = "VGG".ljust(room if room >= 3 else room + ALIGNMENT)
    return graph.head(**origin, doc=doc) + before + body, heads


def _aligned(one: Initializer, place: int) -> bytes:
    """The head of the tensor at `place`; a blank doc_string pads a large tensor's numbers to a boundary."""
    start = tensor_head(one.title, one.data_type, one.dims)
    for room in range(-1, ALIGNMENT + 2):
        inner = start + (field(12, b" " * room) if room >= 0 else b"") + prefix(9, one.nbytes)
        head = prefix(5, len(inner) + one.nbytes) + inner
        if one.nbytes < LARGE or (place + len(head)) % ALIGNMENT == 0:
            return head
    raise AssertionError("some padding always fits")


def _image(network: Network) -> dict[str, str]:
    """The metadata that the ONNX standard defines for image models (onnx/docs/MetadataProps.md)."""
    return {
        "Image.BitmapPixelFormat": "Rgb8" if network.preprocessing.channels == "RGB" else "Bgr8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255" if network.preprocessing.scale == 1 else "Normalized_0_1",
    }
