"""torch as an engine, on the CPU or on a GPU."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..arrays import Array
from ..errors import Error
from ..module import Module, tensor
from ..network import Network
from .comparison import Comparing
from .guard import Guard

GRAPHS = 64  # CUDA graphs kept by an engine
WARM_UPS = 3  # runs before a graph is captured

Values = dict[str, torch.Tensor]


class TorchEngine(Comparing):
    """A network in torch; see `vgg.engines.Engine`.

    Values are returned in float32. On a GPU, the first run with a shape of batch and a set of outputs captures a CUDA graph,
    which later runs replay.

    Args:
        network: the network to run.
        threads: number of threads that torch uses, for the whole process; by default unchanged.
        device: `cpu`, or `cuda` for a GPU.
        precision: `float32`; `bf16`, bfloat16; or `auto`: float32 on the CPU, on a GPU bfloat16, or float16 if it is older than
            Ampere.

    Raises:
        Error: `device` is `cuda` and torch finds no GPU.
    """

    name = "torch"
    _gpu = threading.Lock()  # one for all engines: torch captures one graph at a time

    def __init__(self, network: Network, threads: int | None = None, device: str = "cpu", precision: str = "auto") -> None:
        check_device(device)
        self._guard = Guard(network, dense=True)
        if threads is not None:
            torch.set_num_threads(threads)
        self.device, self._dtype = device, _dtype(device, precision)
        self.precision = {torch.bfloat16: "bf16", torch.float16: "float16"}.get(self._dtype, "float32")
        module = Module.of(network).to(device, self._dtype)
        self._module: Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._graphs: dict[tuple[tuple[int, ...], tuple[str, ...]], _Graph] = {}
        self._pool = None if device == "cpu" else torch.cuda.graph_pool_handle()

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        self._guard.check(batch, outputs)
        with torch.inference_mode():
            run = self._compute if self.device == "cpu" or not len(batch) else self._replay
            values = run(tensor(batch), outputs)
        return {name: values[name].cpu().numpy() for name in outputs}

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]

    def _compute(self, batch: torch.Tensor, outputs: Sequence[str]) -> Values:
        """The named values, contiguous float32."""
        batch = batch.to(self.device, self._dtype, memory_format=torch.channels_last)
        return {name: value.float().contiguous() for name, value in self._module(batch, outputs).items()} if outputs else {}

    def _replay(self, batch: torch.Tensor, outputs: Sequence[str]) -> Values:
        """The same on the GPU by a CUDA graph, copied to the CPU."""
        names = tuple(sorted(set(outputs)))
        key = (tuple(batch.shape), names)
        with self._gpu:
            if key not in self._graphs:
                if len(self._graphs) == GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                self._graphs[key] = _Graph(lambda batch: self._compute(batch, names), batch, self._pool)
            return self._graphs[key].run(batch)


class _Graph:
    """A CUDA graph for batches of one shape: one launch for the whole network instead of one or more for each layer.

    The input and the outputs stay at their addresses; each run overwrites them. Graphs never run at the same time, so they
    share a pool of memory for the values in between.
    """

    def __init__(self, compute: Callable[[torch.Tensor], Values], batch: torch.Tensor, pool: Any) -> None:
        self._input = batch.to("cuda")
        for _ in range(WARM_UPS):  # libraries choose kernels and allocate memory, which a capture doesn't allow
            compute(self._input)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool, capture_error_mode="thread_local"):
            self._outputs = compute(self._input)

    def run(self, batch: torch.Tensor) -> Values:
        self._input.copy_(batch)
        self._graph.replay()
        return {name: value.cpu() for name, value in self._outputs.items()}


def check_device(device: str) -> None:
    """Raise Error if the device is `cuda` and torch finds no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Error(f"torch {torch.__version__} finds no GPU; use the device cpu")


def _dtype(device: str, precision: str) -> torch.dtype:
    """The dtype that a device computes in."""
    if precision == "bf16":
        return torch.bfloat16
    if device == "cpu" or precision == "float32":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
