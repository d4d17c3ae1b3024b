"""torch: the layers as calls of its functions, on the CPU or on a GPU."""

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Layer
from ..arrays import Array
from ..errors import Error
from ..network import Network
from ..parameters import Parameter, contiguous
from .engine import check_batch

GRAPHS = 64  # CUDA graphs that are kept
WARM_UPS = 3  # runs before a graph is captured

Values = dict[str, torch.Tensor]


class TorchEngine:
    """A network in torch; see `vgg.engines.Engine`.

    The CPU computes in float32. A GPU computes in bfloat16, or in float16 where it is older than Ampere, and gives float32;
    the first run with a shape of batch and a set of outputs captures a CUDA graph, which the following runs replay.

    Args:
        network: what to run.
        threads: torch's number of threads, which it has one of for the whole process; left as it is when not given.
        device: `cpu`, or `cuda` for a GPU.

    Raises:
        Error: a GPU is asked for and torch finds none.
    """

    name = "torch"
    _gpu = threading.Lock()  # one for all engines: torch captures one graph at a time

    def __init__(self, network: Network, threads: int | None = None, device: str = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise Error(f"torch {torch.__version__} finds no GPU that it can use; the device cpu needs none")
        if threads is not None:
            torch.set_num_threads(threads)
        network = network.fold_batch_norm()
        self._architecture = network.architecture
        self.device, self._dtype = device, _dtype(device)
        self._parameters: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in self._architecture.layers:
            if layer.parameters:
                weight, bias = (
                    tensor(network.parameters[f"{layer.name}.{role}"]).to(device, self._dtype) for role in ("weight", "bias")
                )
                if layer.operation == "convolution":
                    weight = weight.contiguous(memory_format=torch.channels_last)
                self._parameters[layer.value] = weight[..., None, None] if weight.ndim == 2 else weight, bias
        self._graphs: dict[tuple[tuple[int, ...], tuple[str, ...]], _Graph] = {}
        self._pool = None if device == "cpu" else torch.cuda.graph_pool_handle()

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        self._architecture.check_values(outputs)
        check_batch(self._architecture, batch, dense=True)
        count, _, height, width = batch.shape
        with torch.inference_mode():
            run = self._compute if self.device == "cpu" or not count else self._replay
            found = run(tensor(batch), outputs)
        shapes = {name: self._architecture.shape(name, count, height, width) for name in outputs}
        return {name: found[name].cpu().numpy().reshape(shape) for name, shape in shapes.items()}

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]

    def _compute(self, batch: torch.Tensor, outputs: Sequence[str]) -> Values:
        """The named values, float32 [batch, channels, height, width]; nothing is computed that they don't need."""
        found: Values = {}
        value = batch.to(self.device, self._dtype, memory_format=torch.channels_last)
        for layer in self._architecture.layers:
            value = apply(layer, value, *self._parameters.get(layer.value, ()))
            if layer.value in outputs:
                found[layer.value] = value.float().contiguous()
            if len(found) == len(set(outputs)):
                break
        return found

    def _replay(self, batch: torch.Tensor, outputs: Sequence[str]) -> Values:
        """The same on the GPU by a CUDA graph, copied to the CPU."""
        names = tuple(sorted(set(outputs)))
        key = (tuple(batch.shape), names)
        with self._gpu:
            if key not in self._graphs:
                if len(self._graphs) == GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[key] = _Graph(lambda given: self._compute(given, names), batch, self._pool)
            return self._graphs[key].run(batch)


class _Graph:
    """A CUDA graph for batches of one shape: one launch for the whole network instead of one or more a layer.

    Its input and its outputs stay where they are; each run writes over them. Graphs that never run at once share a pool of
    memory for what lies between.
    """

    def __init__(self, compute: Callable[[torch.Tensor], Values], batch: torch.Tensor, pool: Any) -> None:
        self._given = batch.to("cuda")
        for _ in range(WARM_UPS):  # in which the libraries find their kernels and memory, as they must not in a capture
            compute(self._given)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool, capture_error_mode="thread_local"):
            self._found = compute(self._given)

    def run(self, batch: torch.Tensor) -> Values:
        self._given.copy_(batch)
        self._graph.replay()
        return {name: value.cpu() for name, value in self._found.items()}


def apply(layer: Layer, value: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """A layer's value [batch, channels, height, width], from that before it and from its weight and bias."""
    match layer.operation:
        case "convolution":
            weight, bias = parameters
            return functional.conv2d(value, weight, bias, padding=weight.shape[-1] // 2)
        case "relu":
            return value.relu_()  # in place, since nobody can ask for what it was before
        case "lrn":  # in float32, since float16 can't hold the squares
            return functional.local_response_norm(value.float(), LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K).to(value.dtype)
        case "max_pool":
            return functional.max_pool2d(value, 2)
        case "average_pool":
            return value.mean((2, 3), keepdim=True)
        case "linear":
            weight, bias = parameters
            if value.shape[2:] == weight.shape[2:]:
                return functional.linear(value.flatten(1), weight.flatten(1), bias)[..., None, None]
            return functional.conv2d(value, weight, bias)  # of a larger picture: the layer at each place where it fits
    return value


def _dtype(device: str) -> torch.dtype:
    """What a device multiplies in."""
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def tensor(value: Parameter) -> torch.Tensor:
    """An array as a float32 tensor, in place where it is contiguous float32.

    torch has no notion of a read-only array, such as one that is mapped from a file; so it isn't told. What comes from here
    is never written to.
    """
    array = contiguous(value, np.float32)
    writable = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(array=array, __array_interface__=writable)))
