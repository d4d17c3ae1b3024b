"""ONNX models whose tensors are in other files, as one file. The onnx package loads no data behind a link."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..extras import require
from .onnx_file import Tensor, scan

if TYPE_CHECKING:
    import onnx


def whole(path: Path) -> "onnx.ModelProto":
    """The model in a file, with its external data inside it.

    Raises:
        Error: the onnx package is missing.
        ModelError: the external data is missing or outside the folder.
    """
    require(f"{path}: external data", "onnx", "onnx")
    import onnx

    content, model = scan(path), onnx.load(path, load_external_data=False)
    attributes = [one.t for node in model.graph.node for one in node.attribute if one.HasField("t")]
    for tensor in (*model.graph.initializer, *attributes):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external = {entry.key: entry.value for entry in tensor.external_data}
            buffer, begin, end = content.bytes_of(Tensor(tensor.name, 0, (), 0, 0, 0, external))
            tensor.raw_data = buffer[begin:end]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def write(path: Path, to: Path) -> Path:
    """Write the model in a file as one file; its path."""
    to.write_bytes(whole(path).SerializeToString())
    return to
