"""Model files: read from any supported format, written as ONNX, safetensors or torch's state dictionaries.

This module attaches `read` and `write` to `Network`, which itself does not depend on file formats.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from .. import kinds, labels, zoo
from ..architectures import Architecture
from ..errors import ModelError, Notice
from ..files import digest, map_file, open_file, reason
from ..network import Network, Provenance, Source
from ..preprocessing import Preprocessing, preset
from . import assumptions, timm_config
from .activations import Activations
from .layouts import reading

if TYPE_CHECKING:
    from .onnx_file import OnnxFile

ONNX = b"\x08"  # the first byte of a ModelProto: its field ir_version
TITLES = {
    "onnx": "ONNX", "keras": "Keras", "torch": "torch", "safetensors": "safetensors", "mxnet": "MXNet", "caffe": "Caffe",
    "caffe2": "Caffe2",
}  # fmt: skip
# The usual preset of files of a format, for files of unknown origin; of an ONNX file it depends on the producer.
_USUAL = {
    "keras": "caffe", "torch": "torchvision", "safetensors": "torchvision", "mxnet": "zoo", "caffe": "caffe", "caffe2": "caffe",
}  # fmt: skip
_COMPANIONS = {"onnx": ".onnx_file", "caffe2": ".caffe2"}  # formats of several files: the modules with `companions`


@final
@dataclass(frozen=True)
class QuantizedGraph:
    """An ONNX file whose graph quantizes activations, so that engines can compute with integers.

    `activations` has the quantizations of layer outputs by name, with `data` for the input. A layer output is rounded to each
    of them, in order. Max pooling and flattening keep that of their input, and other layer outputs without one are floats.
    It is empty if the graph can't be expressed in this way; `obstacle` then says why.
    """

    network: Network  # its architecture, weights, preprocessing and labels
    path: Path
    qdq: bool  # QuantizeLinear and DequantizeLinear around float operators, rather than integer operators
    output: str  # the name of the file's output that is the network's
    ending: str  # the operation at its end that makes scores of logits: `softmax`, `log_softmax` or `sigmoid`; "" for none
    activations: Activations = field(default_factory=dict)
    obstacle: str = ""  # why activations is empty

    def sha256(self) -> str:
        """SHA-256 of the file and of the files that it needs."""
        digests = [digest(one) for one in (self.path, *companions(self.path).values())]
        return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()


def network_of(model: Network | QuantizedGraph) -> Network:
    """The network of what `load` returns."""
    return model.network if isinstance(model, QuantizedGraph) else model


def load(path: str | Path, given: Collection[str] = ()) -> Network | QuantizedGraph:
    """The model in a file: a Network, or a QuantizedGraph if the file is ONNX with quantized activations.

    Args:
        path: see `read`.
        given: see `read`.

    Raises:
        ModelError: the file can't be read or contains no VGG network.
    """
    path = Path(path)
    network = _read(path, given)
    if model := _quantizing(path):
        from . import onnx_reader

        if graph := onnx_reader.quantized_activations(model):
            return QuantizedGraph(network, path, graph.qdq, graph.output, graph.ending, graph.activations, graph.obstacle)
        warnings.warn(in_floats(path), stacklevel=2)
    return network


def read(path: str | Path, given: Collection[str] = ()) -> Network:
    """Read the network in a file; its parameters are mapped, not copied, where the format allows.

    Files written by vgg contain preprocessing and labels. For a published file, recognised by its hash, they are known.
    Otherwise they are guessed by the format, and a `Notice` warns of it. From an ONNX file with quantized activations, only
    the weights are read; `load` keeps its graph.

    Args:
        path: a file of ONNX, torch (.pth, .pt), safetensors, Keras (.h5, .keras), MXNet (.params), Caffe (.caffemodel) or
            Caffe2 (init_net.pb or predict_net.pb, with the other one beside it).
        given: what the caller replaces, of `preprocessing`, `labels`, `head`, `output` and `input_size`, so that no notice is
            needed.

    Raises:
        ModelError: the file can't be read or contains no VGG network.
    """
    path = Path(path)
    network = _read(path, given)
    if _quantizing(path):
        warnings.warn(in_floats(path), stacklevel=2)
    return network


def in_floats(path: Path, reason: str = "") -> Notice:
    """The note on a file with quantized activations of which only the weights are used, with the reason if there is one."""
    because = f", since {reason}" if reason else ""
    return Notice(f"{path}: activations are computed in floats{because}; their quantization in the file is not carried over")


def _quantizing(path: Path) -> "OnnxFile | None":
    """An ONNX file that quantizes activations; None for any other file."""
    if detect(path) != "onnx":
        return None
    from . import onnx_file, onnx_reader

    model = onnx_file.scan(path)
    return model if onnx_reader.quantizes(model) else None


def _read(path: Path, given: Collection[str]) -> Network:
    format = detect(path)
    reader = import_module(f".{'onnx_reader' if format == 'onnx' else format}", __name__)
    with reading(path, TITLES[format]):
        content = reader.read(path)
    if isinstance(content, Network):
        return content
    if format in ("safetensors", "torch"):
        content = timm_config.completed(path, content)
    architecture = content.architecture
    hashed = digest(path)
    known = zoo.recognise(path, hashed)
    source: Source = "known hash" if known else "guess"
    name = known.preset if known else content.preset or _USUAL.get(format) or reader.usual_preset(path)
    published = architecture.classes == labels.IMAGENET_CLASSES and architecture.head == "fc"  # by its form
    classes = content.labels or (labels.imagenet() if published else None)
    if content.part:
        warnings.warn(Notice(f"{path}: {content.part}"), stacklevel=2)
    if not known:
        assumptions.warn(path, content, name, classes is not None, given)
    described: Source = "metadata"
    origin = Provenance(
        path.name, format, hashed, known.name if known else "",
        described if content.preprocessing else source, described if content.labels else source,
        licence=known.licence if known else "", assumed=content.assumed, part=content.part,
    )  # fmt: skip
    preprocessing = _cropped(content.preprocessing or preset(name), architecture)
    return Network(architecture, content.parameters, preprocessing, classes, origin)


def companions(path: Path) -> dict[str, Path]:
    """The other files that a model file needs, by their names relative to it: external data, the other half of Caffe2's pair.

    Raises:
        ModelError: the file can't be read, or such a file is missing or outside the file's folder.
    """
    format = detect(path)
    if format not in _COMPANIONS:
        return {}
    with reading(path, TITLES[format]):
        found: dict[str, Path] = import_module(_COMPANIONS[format], __name__).companions(path)
    return found


def _cropped(preprocessing: Preprocessing, architecture: Architecture) -> Preprocessing:
    """A preset for a network whose input may have another size."""
    if not architecture.fixed_map and architecture.input_size == Architecture.input_size:
        return preprocessing
    return preprocessing.for_crop(architecture.input_size)


def write(
    network: Network,
    path: str | Path,
    *,
    opset: int | None = None,
    outputs: Sequence[str] = (),
    softmax: bool = False,
    batch: int | None = None,
    dense: bool = False,
    bits: int = 32,
    names: Literal["paper", "zoo"] = "paper",
    preprocessing: bool = False,
    layout: Literal["file", "triton"] = "file",
    keys: Literal["torchvision", "timm", "paper"] | None = None,
) -> None:
    """Write a network to `.onnx`, `.safetensors`, `.pth` or `.pt`, by the suffix of the path.

    The result appears complete or not at all.

    Args:
        network: the network.
        path: the file; an existing one is replaced. All further options but `keys` are for ONNX files only.
        opset: 3 to 28; 17 by default.
        outputs: named values that the model gives in addition to `logits`, such as `fc7` or `conv5_3`.
        softmax: give `probabilities` instead of `logits`, by a sigmoid if the network's output is that.
        batch: a fixed number of images; any number by default.
        dense: take images of any size from `input_size` on, and give `logits` [batch, classes, rows, columns], a score for
            each position of fc6: the linear layers become convolutions.
        bits: of the floats in the file, 32 or 16. Input and output stay float32.
        names: of the tensors: the paper's, or those in the ONNX Model Zoo's files.
        preprocessing: take `image`, uint8 [batch, height, width, 3], RGB, 0..255, instead of `data`, and resize, crop and
            normalise it in the graph. Needs opset 18, which is then the default.
        layout: `triton` writes a new folder `path`, for a model repository of Triton or OpenVINO Model Server.
        keys: of the tensors in files that are not ONNX: those of torchvision or timm, whose networks load such a file strictly,
            or the paper's. By default torchvision's in `.pth` and `.pt`, and the paper's in `.safetensors`, the only ones
            with quantized weights as they are. Assumptions and changes are a `Notice`.

    Raises:
        Error: the result can't be written.
        ModelError: the opset or an output is unknown, or the options contradict each other or the network.
    """
    from .onnx_builder import OnnxOptions

    path = Path(path)
    if network.architecture.pooling != "max":
        raise ModelError(f"{path}: networks are written with max pooling only, not with {network.architecture.pooling} pooling")
    plain = OnnxOptions(outputs=network.architecture.values[-1:])
    options = OnnxOptions(opset, (*plain.outputs, *outputs), softmax, batch, dense, bits, names, preprocessing)
    if keys and (layout == "triton" or path.suffix == ".onnx"):
        raise ModelError(f"{path}: keys are of state dictionaries; write to .pth or .safetensors, or leave out --keys")
    if layout == "triton":
        from . import triton

        triton.write(network, path, options)
    elif path.suffix == ".onnx":
        from . import onnx_writer

        onnx_writer.write(network, path, options)
    elif path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ModelError(f"{path}: unsupported suffix; networks are written to .onnx, .safetensors, .pth or .pt")
    elif options != plain:
        raise ModelError(f"{path}: only ONNX files have an opset, further outputs and other forms; write to .onnx")
    elif path.suffix == ".safetensors":
        from . import safetensors, state_keys

        keys = keys or "paper"
        safetensors.write(network if keys == "paper" else state_keys.prepared(path, network, keys), path, keys)
    else:
        from . import state_keys, torch_writer

        keys = keys or "torchvision"
        torch_writer.write(state_keys.prepared(path, network, keys), path, keys)


Network.read = staticmethod(read)  # type: ignore[method-assign]
Network.write = write  # type: ignore[assignment, method-assign]


def detect(path: Path) -> str:
    """The format of a file, by its content: onnx, torch, safetensors, keras, mxnet, caffe or caffe2.

    Raises:
        ModelError: the file can't be read or has none of these formats.
    """
    if path.suffix.lower() in kinds.PARTIAL:
        raise ModelError(f"{path}: is named as an incomplete download; complete it, or rename the file if it is complete")
    try:
        with open_file(path) as file:
            head = file.read(kinds.HEAD)
    except OSError as error:
        raise ModelError(f"{path}: {kinds.describe_folder(path) if path.is_dir() else reason(error)}") from None
    if not head:
        raise ModelError(f"{path}: is empty; download or write it again")
    if head[:1] == ONNX and head[8:9] != b"{" and not kinds.is_message(head):  # safetensors has its header there
        return "onnx"  # without loading the other readers
    from . import caffe, caffe2, keras, mxnet, safetensors, torch

    if head.startswith(keras.MAGIC) or (head.startswith(torch.ZIP_MAGIC) and keras.is_archive(path)):
        return "keras"
    pickled = head.startswith(torch.PICKLE_MAGIC) and not kinds.is_of_sklearn(head)
    if pickled or (head.startswith(torch.ZIP_MAGIC) and kinds.is_torch(path)):
        return "torch"
    if head.startswith(mxnet.MAGIC):
        return "mxnet"
    if safetensors.matches(head):
        return "safetensors"
    if head[:1] == ONNX and not kinds.is_message(head):
        return "onnx"
    if head[0] in (0x0A, 0x12):  # a name or the first layer, in files of both Caffes
        mapped = map_file(path)
        for name, format in (("caffe", caffe), ("caffe2", caffe2)):
            if format.matches(mapped):
                return name
    if text := kinds.describe(path, head, "model"):
        raise ModelError(f"{path}: {text}")
    raise ModelError(
        f"{path}: unsupported format; vgg reads ONNX, torch (.pth, .pt), safetensors, Keras (.h5, .keras), MXNet (.params), "
        "Caffe (.caffemodel) and Caffe2 (init_net.pb)"
    )
