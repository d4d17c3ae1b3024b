"""Model files of every kind, to and from a Network."""

import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from .. import labels, zoo
from ..errors import ModelError, Notice
from ..files import digest, map_file, reason
from ..network import Network, Provenance, Source
from ..preprocessing import preset
from .onnx_options import OnnxOptions

IMAGENET_CLASSES = 1000
ONNX = b"\x08"  # how ModelProto begins: its first field, ir_version
# Each format's home.
_READERS = {
    "onnx": "onnx_reader", "keras": "keras", "torch": "torch", "safetensors": "safetensors", "mxnet": "mxnet",
    "caffe": "caffe", "caffe2": "caffe2",
}  # fmt: skip
# The recipe that goes with a format's usual files, where nothing better is known; an ONNX file's depends on its producer.
_USUAL = {
    "keras": "caffe", "torch": "torchvision", "safetensors": "torchvision", "mxnet": "zoo", "caffe": "caffe", "caffe2": "caffe",
}  # fmt: skip


def recognise(path: Path) -> str:
    """The format of a file by its content: onnx, torch, safetensors, keras, mxnet, caffe or caffe2.

    Raises ModelError when it is none of them.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"{path}: {reason(error)}") from None
    if not head:
        raise ModelError(f"{path}: is empty")
    if head[:1] == ONNX and head[8:9] != b"{":  # which safetensors has there
        return "onnx"  # before any other reader is loaded
    from . import caffe, caffe2, keras, mxnet, safetensors, torch

    if head.startswith(keras.MAGIC) or (head.startswith(torch.ZIP_MAGIC) and keras.is_archive(path)):
        return "keras"
    if head.startswith((torch.ZIP_MAGIC, torch.LEGACY_MAGIC)):
        return "torch"
    if head.startswith(mxnet.MAGIC):
        return "mxnet"
    if safetensors.matches(head):
        return "safetensors"
    if head[:1] == ONNX:
        return "onnx"
    if head[0] in (0x0A, 0x12):  # a name or the first layer; the files of both Caffes begin so
        mapped = map_file(path)
        for name, format in (("caffe", caffe), ("caffe2", caffe2)):
            if format.matches(mapped):
                return name
    raise ModelError(
        f"{path}: is no model file that vgg reads: those are ONNX, torch (.pth, .pt), safetensors, Keras (.h5, .keras), MXNet "
        "(.params), Caffe (.caffemodel) and Caffe2 (init_net.pb)"
    )


def read(path: str | Path) -> Network:
    """The network in a file, its numbers mapped, not copied, where the format allows.

    Our own files say what they need. For another's, the preprocessing and labels are those of the published file that it
    is, byte for byte; else they are guessed by its format, and a `Notice` says so.

    Raises:
        ModelError: the file can't be read or holds no VGG network; the message says why.
    """
    path = Path(path)
    format = recognise(path)
    reader = import_module(f".{_READERS[format]}", __name__)
    found = reader.read(path)
    graph = path if format == "onnx" and reader.quantizes_activations(path) else None
    if isinstance(found, Network):
        return replace(found, graph=graph)
    architecture, parameters = found
    sha256 = digest(path)
    known = zoo.recognise(path, sha256)
    source: Source = "known hash" if known else "guess"
    recipe = known.preset if known else _USUAL.get(format) or reader.recipe(path)
    classes = labels.imagenet() if architecture.classes == IMAGENET_CLASSES else None
    if not known:
        named = "ImageNet's labels" if classes else f"no labels for its {architecture.classes} classes"
        warnings.warn(
            Notice(f"{path} doesn't say how it was trained; taken for it: preprocessing {recipe!r}, {named}"), stacklevel=2
        )
    origin = Provenance(path.name, format, sha256, known.name if known else "", source, source)
    preprocessing = replace(preset(recipe), crop=architecture.input_size) if architecture.head == "fc" else preset(recipe)
    return Network(architecture, parameters, preprocessing, classes, origin, graph)


def write(network: Network, path: str | Path, options: OnnxOptions) -> None:
    """Write a network to `.onnx` or `.safetensors`; see `Network.write`."""
    path = Path(path)
    if path.suffix == ".onnx":
        from . import onnx_writer

        onnx_writer.write(network, path, options)
    elif path.suffix == ".safetensors" and options == OnnxOptions():
        from . import safetensors

        safetensors.write(network, path)
    elif path.suffix == ".safetensors":
        raise ModelError(f"{path}: only an ONNX file has an opset, further outputs and a form")
    else:
        raise ModelError(f"{path}: a network is written to .onnx or .safetensors")
