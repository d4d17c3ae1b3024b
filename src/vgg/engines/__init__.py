"""Engines: what computes a network. Each takes a Network and gives the named values for a batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import Error
from ..network import Network

Array = np.ndarray[Any, np.dtype[Any]]

ENGINES = ("onnxruntime",)


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
        engine: `auto` or a name from ENGINES; today ONNX Runtime is all there is.
        threads: how many to use at most; as many as there are cores when not given.

    Raises:
        Error: there is no such engine, or the number of threads is below 1.
    """
    if engine not in ("auto", *ENGINES):
        raise Error(f"no engine is called {engine!r}; there are auto, {', '.join(ENGINES)}")
    if threads is not None and threads < 1:
        raise Error(f"threads must be 1 or more, not {threads}")
    from .onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(network, threads)
