"""The model repository of Triton and OpenVINO Model Server: NAME/1/model.onnx, NAME/config.pbtxt, NAME/labels.txt.

Layout and fields from Triton's docs/user_guide/model_repository.md and model_configuration.md.
"""

import shutil
import tempfile
from pathlib import Path

from ..errors import Error
from ..files import reason
from ..network import Network
from . import onnx_writer
from .onnx_builder import OnnxOptions
from .onnx_file import OnnxFile, scan

MAX_BATCH = 64  # images that Triton may batch, if the batch is not fixed


def write(network: Network, folder: Path, options: OnnxOptions) -> None:
    """Write a network as version 1 of a model, named by its new folder.

    Raises:
        Error: the folder exists or can't be written.
        ModelError: see `vgg.formats.write`.
    """
    if folder.exists():
        raise Error(f"{folder}: exists already; a model repository requires a new folder")
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            (made / "1").mkdir()
            onnx_writer.write(network, made / "1" / "model.onnx", options)
            model = scan(made / "1" / "model.onnx")
            (made / "config.pbtxt").write_text(_configuration(folder.name, model, network))
            if network.labels:
                names = [name.replace("\n", " ") for name in network.labels.names]
                (made / "labels.txt").write_text("".join(f"{name}\n" for name in names))
            made.chmod(0o755)  # mkdtemp's mode excludes other users, such as the server
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise Error(f"{folder}: can't be written: {reason(error)}") from None


def _configuration(name: str, model: OnnxFile, network: Network) -> str:
    """Triton's configuration, from the ports of the written file. A fixed batch is a dimension like any other."""
    free = not isinstance(model.inputs[0].shape[0], int)
    types = {1: "TYPE_FP32", 2: "TYPE_UINT8"}
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {MAX_BATCH if free else 0}"]
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        lines.append(f"{kind} [")
        for port in ports:
            dims = ", ".join(str(side) if isinstance(side, int) else "-1" for side in port.shape[1 if free else 0 :])
            last = port is model.outputs[0] if len(model.outputs) == 1 else port.shape[-1] == network.architecture.classes
            labels = ', label_filename: "labels.txt"' if kind == "output" and network.labels and last else ""
            end = "," if port is not ports[-1] else ""
            lines.append(f'  {{ name: "{port.name}", data_type: {types[port.data_type]}, dims: [ {dims} ]{labels} }}{end}')
        lines.append("]")
    if free:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"
