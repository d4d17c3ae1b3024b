"""Inference engines: each computes the named values of a network for a batch."""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ..errors import Error, ModelError, Notice
from ..extras import is_installed
from ..formats import QuantizedGraph, in_floats, load
from ..network import Network
from ..zoo import locate
from .comparison import Area, Kind
from .engine import (
    Engine,
    GraphEngine,
    Model,
    WholeGraphEngine,
    check_dense,
    instruction_set,
    native_library,
    processor,
    takes_pixels,
)
from .guard import check_batch

__all__ = [
    "DEVICES", "ENGINES", "IN_BF16", "PRECISIONS", "Area", "Engine", "GraphEngine", "Kind", "Model", "WholeGraphEngine",
    "check_batch", "check_dense", "identity", "installed", "native_library", "open", "processor", "takes_pixels",
]  # fmt: skip


class _Classes(NamedTuple):
    """The classes of an engine."""

    network: str
    graph: str = ""  # for graphs with quantized activations
    runs: Callable[[QuantizedGraph], bool] = lambda graph: False  # whether the engine computes a graph with integers


# In the order in which `auto` prefers them.
_CLASSES = {
    "native": _Classes("NativeEngine", "NativeGraphEngine", lambda graph: bool(graph.activations)),
    "onnxruntime": _Classes("OnnxRuntimeEngine", "OnnxGraphEngine", lambda graph: True),
    "openvino": _Classes("OpenVinoEngine", "OpenVinoGraphEngine", lambda graph: graph.qdq),
    "torch": _Classes("TorchEngine"),
}
ENGINES = tuple(_CLASSES)
DEVICES = ("cpu", "cuda")
PRECISIONS = ("auto", "float32", "bf16")
IN_BF16 = ("native", "openvino", "torch")  # engines that have this precision


def open(
    model: Network | QuantizedGraph | str | Path,
    engine: str = "auto",
    *,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "auto",
) -> Engine:
    """Open a network on an engine.

    Args:
        model: a network, or a file or name that `vgg.load` takes. A file with quantized activations, or its QuantizedGraph,
            is computed with integers by the native engine, if it has `activations`; by ONNX Runtime, which runs it as it is;
            and by OpenVINO in the QDQ format. Otherwise its weights are taken and computed in floats, with a `Notice`.
        engine: a name from ENGINES, or `auto`: torch on a GPU; else the first one of ENGINES that is installed, has the
            precision and, for a QuantizedGraph, computes it with integers, but with AMX OpenVINO before the others. If the
            native engine is missing, a `Notice` says so, once in a process. docs/performance.md has the measurements behind
            this choice.
        threads: the largest number of threads; the number of cores by default.
        device: `cpu`, or `cuda` for a GPU, which only torch supports.
        precision: of products, whose sums are float32: `float32`; `bf16`, bfloat16, with the engines IN_BF16, for networks
            without quantized activations; `auto`: float32 on the CPU, and on a GPU bfloat16, or float16 if it is older than
            Ampere.

    Raises:
        Error: the engine, device or precision is unknown or not available, or `threads` is below 1.
        ModelError: the file can't be read or contains no VGG network, or the engine can't run its graph.
    """
    if engine not in ("auto", *ENGINES):
        raise Error(f"unknown engine {engine!r}; choose from auto, {', '.join(ENGINES)}")
    if device not in DEVICES:
        raise Error(f"unknown device {device!r}; choose from {', '.join(DEVICES)}")
    if precision not in PRECISIONS:
        raise Error(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise Error(f"threads must be 1 or more, not {threads}")
    if isinstance(model, str | Path):
        model = load(locate(model))
    graph, network = (model, model.network) if isinstance(model, QuantizedGraph) else (None, model)
    if precision == "bf16" and graph:
        raise ModelError(f"{graph.path}: a file with quantized activations can't be computed in bf16; leave out the precision")
    if engine == "auto":
        engine = "torch" if device == "cuda" else (graph and _for_integers(graph)) or _automatic(precision)
    if device == "cuda" and engine != "torch":
        raise Error(f"{engine} runs on the CPU only; use torch on a GPU")
    if missing := problem(engine):
        raise Error(missing)
    if precision == "bf16" and engine not in IN_BF16:
        raise Error(f"{engine} has no precision bf16; use {', '.join(IN_BF16[:-1])} or {IN_BF16[-1]}")
    module = import_module(f".{engine}", __name__)
    classes = _CLASSES[engine]
    if graph and classes.runs(graph):
        opened: Engine = getattr(module, classes.graph)(graph, threads)
    else:
        if graph:
            remedy = "" if is_installed("onnxruntime") else "; to compute with integers, `pip install 'vgg[onnxruntime]'`"
            reason = graph.obstacle if engine == "native" else ""
            warnings.warn(Notice(f"{in_floats(graph.path, reason)}{remedy}"), stacklevel=2)
        options = {"precision": precision} if engine in IN_BF16 else {}
        options |= {"device": device} if engine == "torch" else {}
        opened = getattr(module, classes.network)(network, threads, **options)
    return opened


def identity(engine: Engine) -> dict[str, str]:
    """The values that determine an engine's results besides the network, as part of the key of resumable work.

    Returns:
        `name`; `precision`; `version`, of the native engine the digest of its library; `instructions`: the instruction set that
        the native engine uses, the newest one that the processor has for the other engines, or the name of the GPU.
    """
    common = {"name": engine.name, "precision": getattr(engine, "precision", "float32")}
    if engine.name == "native":
        from . import native_interface

        return {**common, "version": native_interface.build(), "instructions": native_interface.chosen_instructions()}
    package = import_module(engine.name)
    on_gpu = getattr(engine, "device", "cpu") == "cuda"
    instructions = package.cuda.get_device_name() if on_gpu else instruction_set()
    return {**common, "version": str(package.__version__), "instructions": instructions}


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


def _for_integers(graph: QuantizedGraph) -> str:
    """The first of the usable engines that computes a graph with integers, "" if there is none."""
    usable = [name for name, one in _CLASSES.items() if one.runs(graph) and not problem(name)]
    if "openvino" in usable and instruction_set() == "amx_int8":  # it uses AMX, which takes a third of the time
        return "openvino"
    return next(iter(usable), "")


def _automatic(precision: str) -> str:
    """The first of the usable engines that have a precision. Raises Error if there is none."""
    engines = IN_BF16 if precision == "bf16" else ENGINES
    usable, missing = next((name for name in engines if not problem(name)), ""), problem("native")
    if not usable:
        raise Error(f"{missing}, or `pip install 'vgg[{engines[1]}]'`")
    if missing:
        _announce(usable, missing)
    return usable


@cache
def _announce(engine: str, missing: str) -> None:
    """Give notice, once in a process, that another engine takes the place of the native one."""
    warnings.warn(Notice(f"using {engine}, which is slower: {missing}"), stacklevel=2)
