"""Inference engines: each computes the named values of a network for a batch."""

import warnings
from functools import cache
from importlib import import_module
from pathlib import Path

from ..errors import Error, Notice
from ..extras import is_installed
from ..formats import QuantizedGraph, in_floats, load
from ..network import Network
from ..zoo import locate
from .comparison import Area, Kind
from .engine import Engine, GraphEngine, Model, check_dense, instruction_set, native_library, processor, takes_pixels
from .guard import check_batch

__all__ = [
    "DEVICES", "ENGINES", "Area", "Engine", "GraphEngine", "Kind", "Model", "check_batch", "check_dense", "identity",
    "installed", "native_library", "open", "processor", "takes_pixels",
]  # fmt: skip

# The class of each engine, and that for graphs with quantized activations.
_CLASSES = {
    "native": ("NativeEngine", ""),
    "onnxruntime": ("OnnxRuntimeEngine", "OnnxGraphEngine"),
    "openvino": ("OpenVinoEngine", "OpenVinoGraphEngine"),
    "torch": ("TorchEngine", ""),
}
ENGINES = tuple(_CLASSES)
DEVICES = ("cpu", "cuda")


def open(
    model: Network | QuantizedGraph | str | Path, engine: str = "auto", *, threads: int | None = None, device: str = "cpu"
) -> Engine:
    """Open a network on an engine.

    Args:
        model: a network, or a file or name that `vgg.load` takes. A file with quantized activations, or its QuantizedGraph,
            runs as it is on ONNX Runtime, and in the QDQ format on OpenVINO. Other engines take its weights and compute in
            float.
        engine: a name from ENGINES, or `auto`: torch on a GPU; ONNX Runtime, if it is installed, for a QuantizedGraph; else
            the native engine. Without that, the first one of ENGINES that is installed, with a `Notice`, once in a process.
            docs/performance.md has the measurements behind this choice.
        threads: the largest number of threads; the number of cores by default.
        device: `cpu`, or `cuda` for a GPU, which only torch supports.

    Raises:
        Error: the engine or device is unknown or not installed, or `threads` is below 1.
        ModelError: the file can't be read or contains no VGG network, or the engine can't run its graph.
    """
    if engine not in ("auto", *ENGINES):
        raise Error(f"unknown engine {engine!r}; choose from auto, {', '.join(ENGINES)}")
    if device not in DEVICES:
        raise Error(f"unknown device {device!r}; choose from {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise Error(f"threads must be 1 or more, not {threads}")
    if isinstance(model, str | Path):
        model = load(locate(model))
    graph, network = (model, model.network) if isinstance(model, QuantizedGraph) else (None, model)
    if engine == "auto":
        engine = "torch" if device == "cuda" else "onnxruntime" if graph and is_installed("onnxruntime") else _automatic()
    if device == "cuda" and engine != "torch":
        raise Error(f"{engine} runs on the CPU only; use torch on a GPU")
    if missing := problem(engine):
        raise Error(missing)
    module = import_module(f".{engine}", __name__)
    name, graph_name = _CLASSES[engine]
    if graph and (engine == "onnxruntime" or (engine == "openvino" and graph.qdq)):
        opened: Engine = getattr(module, graph_name)(graph, threads)
    else:
        if graph:
            remedy = "" if is_installed("onnxruntime") else "; to compute with integers, `pip install 'vgg[onnxruntime]'`"
            warnings.warn(Notice(f"{in_floats(graph.path)}{remedy}"), stacklevel=2)
        opened = getattr(module, name)(network, threads, *([device] if engine == "torch" else []))
    return opened


def identity(engine: Engine) -> dict[str, str]:
    """The values that determine an engine's results besides the network, as part of the key of resumable work.

    Returns:
        `name`; `version`, of the native engine the digest of its library; `instructions`: the instruction set that the
        native engine uses, the newest one that the processor has for the other engines, or the name of the GPU.
    """
    if engine.name == "native":
        from . import native_interface

        return {"name": "native", "version": native_interface.build(), "instructions": native_interface.chosen_instructions()}
    package = import_module(engine.name)
    on_gpu = getattr(engine, "device", "cpu") == "cuda"
    instructions = package.cuda.get_device_name() if on_gpu else instruction_set()
    return {"name": engine.name, "version": str(package.__version__), "instructions": instructions}


def installed() -> tuple[str, ...]:
    """The engines of this installation; the native one only if its library can be loaded."""
    return tuple(name for name in ENGINES if not problem(name))


def problem(engine: str) -> str:
    """Why an engine can't be used, with the remedy; empty if it is installed."""
    if engine != "native":
        return "" if is_installed(engine) else f"{engine} is not installed; run `pip install 'vgg[{engine}]'`"
    from . import native_interface

    try:
        native_interface.library()
    except Error as error:
        return str(error)
    return ""


def _automatic() -> str:
    """The first of the usable engines. Raises Error if there is none."""
    usable, missing = next((name for name in ENGINES if not problem(name)), ""), problem("native")
    if not usable:
        raise Error(f"{missing}, or `pip install 'vgg[onnxruntime]'`")
    if missing:
        _announce(usable, missing)
    return usable


@cache
def _announce(engine: str, missing: str) -> None:
    """Give notice, once in a process, that another engine takes the place of the native one."""
    warnings.warn(Notice(f"using {engine}, which is slower: {missing}"), stacklevel=2)
