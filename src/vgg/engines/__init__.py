"""Engines: what computes a network. Each takes a Network and gives the named values for a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..architectures import STRIDE, Architecture
from ..errors import Error, ModelError
from ..network import Network

Array = np.ndarray[Any, np.dtype[Any]]

ENGINES = ("native", "onnxruntime")


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


def open(network: Network, engine: str = "auto", *, threads: int | None = None) -> Engine:
    """A network on an engine.

    Args:
        network: what to run.
        engine: a name from ENGINES, or `auto`: the native engine, or ONNX Runtime where it was not built.
        threads: how many to use at most; as many as there are cores when not given.

    Raises:
        Error: there is no such engine, or the number of threads is below 1.
    """
    if engine not in ("auto", *ENGINES):
        raise Error(f"no engine is called {engine!r}; there are auto, {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise Error(f"threads must be 1 or more, not {threads}")
    if engine == "native" or (engine == "auto" and native_library()):
        from .native import NativeEngine

        return NativeEngine(network, threads)
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(network, threads)


def native_library() -> Path | None:
    """The compiled engine's file; None where this installation has none."""
    return next((path for place in __path__ if (path := Path(place) / "libvgg.so").exists()), None)


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
