"""Engines: what computes a network. Each takes a Network and gives the named values for a batch."""

import platform
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from ..architectures import STRIDE, Architecture
from ..arrays import Array
from ..errors import Error, ModelError
from ..network import Network
from ..zoo import locate

# Each engine's home and class, and what must be importable for it.
_HOMES = {
    "native": ("native", "NativeEngine", None),
    "onnxruntime": ("onnxruntime", "OnnxRuntimeEngine", "onnxruntime"),
    "openvino": ("openvino", "OpenVinoEngine", "openvino"),
    "torch": ("torch", "TorchEngine", "torch"),
}
# The classes that run a graph with quantized activations as it is.
_GRAPHS = {"onnxruntime": "OnnxGraphEngine", "openvino": "OpenVinoGraphEngine"}
ENGINES = tuple(_HOMES)
DENSE = ("native", "torch")  # they take pictures larger than the paper's head was built for
DEVICES = ("cpu", "cuda")


class Engine(Protocol):
    """A network ready to run. Safe to use from several threads at once."""

    name: str

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> Mapping[str, Array]:
        """The named values for a batch.

        Args:
            batch: float32 [batch, 3, height, width], preprocessed.
            outputs: names as in `Architecture.values`: `conv1_1` … `pool5`, `fc6`, `fc7` (after the ReLU), `logits`.

        Returns:
            float32 arrays by name; `logits` is [batch, classes].

        Raises:
            ModelError: an output is unknown, or the batch has another shape than the network takes.
        """
        ...

    def logits(self, batch: Array) -> Array:
        """float32 [batch, classes] for float32 [batch, 3, height, width]."""
        ...


class Model(Protocol):
    """A network on an engine, such as a `vgg.Classifier`."""

    network: Network
    engine: Engine
    name: str


def open(model: Network | str | Path, engine: str = "auto", *, threads: int | None = None, device: str = "cpu") -> Engine:
    """A network on an engine.

    Args:
        model: what to run; a Network, or a file or name that `vgg.load` takes.
        engine: a name from ENGINES, or `auto`: on a GPU torch, else the native engine, or ONNX Runtime where the native one
            was not built. docs/performance.md has the measurements behind this. An ONNX file that quantizes activations
            runs as it is on ONNX Runtime, in the QDQ format on OpenVINO too; otherwise an engine takes its weights and
            computes in float.
        threads: how many to use at most; as many as there are cores when not given.
        device: `cpu`, or `cuda` for a GPU, which only torch uses.

    Raises:
        Error: there is no such engine or device, it is not installed, or the number of threads is below 1.
    """
    if engine not in ("auto", *ENGINES):
        raise Error(f"no engine is called {engine!r}; there are auto, {', '.join(ENGINES)}")
    if device not in DEVICES:
        raise Error(f"no device is called {device!r}; there are {', '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise Error(f"threads must be 1 or more, not {threads}")
    network = model if isinstance(model, Network) else Network.read(locate(model))
    if engine == "auto":
        as_it_is = network.graph is not None or native_library() is None
        engine = "torch" if device == "cuda" else "onnxruntime" if as_it_is else "native"
    if device == "cuda" and engine != "torch":
        raise Error(f"{engine} runs on the CPU only; on a GPU there is torch")
    if engine not in installed():
        raise Error(_missing(engine))
    home, name, _ = _HOMES[engine]
    if network.graph and engine in _GRAPHS:
        from ..formats.onnx_reader import is_qdq

        name = _GRAPHS[engine] if engine == "onnxruntime" or is_qdq(network.graph) else name
    made = getattr(import_module(f".{home}", __name__), name)
    opened: Engine = made(network, threads, device) if engine == "torch" else made(network, threads)
    return opened


def identity(engine: Engine) -> dict[str, str]:
    """What decides an engine's results beside the network: its name, its version, and the instruction set it computes with."""
    from importlib.metadata import version

    from . import native

    instructions = native.chosen_instructions() if native_library() else platform.machine()
    if engine.name == "native":
        return {"name": "native", "version": native.build(), "instructions": instructions}
    return {"name": engine.name, "version": version(engine.name), "instructions": instructions}


def installed() -> tuple[str, ...]:
    """The engines that this installation has."""
    return tuple(
        engine
        for engine, (_, _, package) in _HOMES.items()
        if (find_spec(package) is not None if package else native_library() is not None)
    )


def _missing(engine: str) -> str:
    if engine == "native":
        return "this installation of vgg has no native engine, for want of a C++ compiler; there is onnxruntime"
    return f"{engine} is not installed; `pip install 'vgg[{engine}]'` brings it"


def native_library() -> Path | None:
    """The compiled engine's file; None where this installation has none."""
    return next((path for place in __path__ if (path := Path(place) / "libvgg.so").exists()), None)


def check_dense(engine: Engine, architecture: Architecture) -> None:
    """Raises Error unless an engine takes whole pictures, larger than a network's crop."""
    if architecture.head == "fc" and engine.name not in DENSE:
        raise Error(f"{engine.name} takes no whole pictures; the engines {' and '.join(DENSE)} do")


def check_batch(architecture: Architecture, batch: Array, *, dense: bool = False) -> None:
    """Raises ModelError unless a batch has the shape and dtype that a network takes.

    `dense`: whether the engine takes pictures larger than the paper's head was built for.
    """
    side = architecture.input_size if architecture.head == "fc" else STRIDE
    fits = batch.ndim == 4 and batch.shape[1] == 3 and batch.dtype == np.float32 and min(batch.shape[2:]) >= side
    fixed = architecture.head == "fc" and not dense
    if not fits or (fixed and batch.shape[2:] != (side, side)):
        size = f"{side}, {side}]" if fixed else f"height, width] of {side} pixels or more"
        raise ModelError(f"{architecture.name} takes float32 [batch, 3, {size}, not {batch.dtype} {list(batch.shape)}")
