"""torch as an engine, on the CPU or on a GPU."""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType

import numpy as np
import torch

from ..arrays import Array
from ..errors import Error, Notice, counted, one_line
from ..module import Module, Normalisation, tensor
from ..network import Network
from .comparison import Comparing
from .guard import Guard
from .torch_pipeline import Pipeline, Values

COMPILE_AFTER = 20.0  # seconds that a GPU has computed the same values: about as long as compiling takes
EXAMPLE = 8  # images in the batch that is compiled; a CPU has other code for 16 and more


class TorchEngine(Comparing):
    """A network in torch; see `vgg.engines.Engine`.

    A batch may also be uint8 [batch, 3, height, width], RGB pixels of 0..255, which the device normalises.

    Values are returned in float32. A GPU runs torch's own modules at first, and calls `compile` when it has computed the same
    values for COMPILE_AFTER seconds: compiling seldom takes longer than the work before it. See `Pipeline` for the copies and
    CUDA graphs. A CPU computes VGG with torch's own modules at least as fast as compiled.

    Args:
        network: the network to run.
        threads: number of threads that torch uses, for the whole process; by default unchanged.
        device: `cpu`, or `cuda` for a GPU, which a forked process can't use.
        precision: `float32`; `bf16`, bfloat16; or `auto`: float32 on the CPU, on a GPU bfloat16, or float16 if it is older than
            Ampere.

    Raises:
        Error: `device` is `cuda` and torch finds no GPU.
        MemoryError: there is not enough memory.
    """

    name = "torch"

    def __init__(self, network: Network, threads: int | None = None, device: str = "cpu", precision: str = "auto") -> None:
        check_device(device)
        self._guard = Guard(network, dense=True, pixels=True)
        if threads is not None:
            torch.set_num_threads(threads)
        self.device, dtype = device, _dtype(device, precision)
        self.precision = {torch.bfloat16: "bf16", torch.float16: "float16"}.get(dtype, "float32")
        with _memory("the network", device):
            self._computation = Computation(network, device, dtype)
        self._pipeline = Pipeline(self._computation, dtype, device)
        self._seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)  # of computing each set of values

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        self._guard.check(batch, outputs)
        count, _, height, width = batch.shape
        with _memory(f"{counted(count, 'image')} of {width}x{height}", self.device):
            return self._run(batch, outputs)

    def _run(self, batch: Array, outputs: Sequence[str]) -> dict[str, Array]:
        if self.device == "cpu" or not len(batch) or not outputs:
            with torch.inference_mode():
                values = self._computation(_tensor(batch).to(self.device), outputs) if outputs else {}
            return {name: values[name].cpu().numpy() for name in outputs}
        started, key = time.perf_counter(), _key(outputs)
        found = self._pipeline.run(_tensor(batch), key)
        if self._computation.compiles(batch.shape) and key not in self._computation.compiled:
            self._seconds[key] += time.perf_counter() - started
            if self._seconds[key] > COMPILE_AFTER:
                self.compile(outputs)
        return {name: found[name] for name in outputs}

    def compile(self, outputs: Sequence[str] = ("logits",)) -> None:
        """Compile the computation of these values, for batches of two images or more of the network's input size.

        It takes 5 to 60 s, less if torch's cache on disk has the result. A single image and other sizes still run torch's own
        modules. If torch can't compile here, for example without a C++ compiler or triton, a `Notice` says so, and everything
        runs as before.
        """
        with self._pipeline.changing():
            self._computation.compile(_key(outputs))


class Computation:
    """The values of a network for a batch on a device: torch's own modules, or what `compile` made of them.

    Attributes:
        dtype: that the device computes in.
        compiled: the functions that compute sets of values, by their names in order.
    """

    def __init__(self, network: Network, device: str, dtype: torch.dtype) -> None:
        self._device, self.dtype = device, dtype
        module = Module.of(network).to(device, self.dtype)
        self._module: Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._normalisation = Normalisation(network.preprocessing).to(device)
        self._side = network.architecture.input_size
        self.compiled: dict[tuple[str, ...], Callable[[torch.Tensor], Values]] = {}

    def __call__(self, batch: torch.Tensor, outputs: Sequence[str]) -> Values:
        """The named values, contiguous float32, of normalised images, or of pixels if they are uint8."""
        if batch.dtype == torch.uint8:
            batch = self._normalisation(batch)
        batch = batch.to(self.dtype, memory_format=torch.channels_last)
        work = self.compiled.get(_key(outputs)) if self.compiles(batch.shape) else None
        return work(batch) if work else self._values(batch, outputs)

    def compiles(self, shape: Sequence[int]) -> bool:
        """Whether batches of this shape run what is compiled. torch would compile once more for a single image."""
        return shape[0] > 1 and tuple(shape[2:]) == (self._side, self._side)

    def compile(self, outputs: tuple[str, ...]) -> None:
        """See `TorchEngine.compile`."""
        if outputs in self.compiled:
            return
        self.compiled[outputs] = own = self._own(outputs)
        try:
            with torch.inference_mode():
                example = torch.zeros((EXAMPLE, 3, self._side, self._side), dtype=self.dtype, device=self._device)
                example = example.to(memory_format=torch.channels_last)
                torch._dynamo.mark_dynamic(example, 0)
                compiled = torch.compile(own)
                compiled(example)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # of many parts of torch, of triton and of compilers
            problem = one_line(error)
            notice = f"using torch's own modules, which are slower, since it can't compile ({problem}); install triton and g++"
            warnings.warn(Notice(notice), stacklevel=4)
        else:
            self.compiled[outputs] = compiled

    def _own(self, outputs: tuple[str, ...]) -> Callable[[torch.Tensor], Values]:
        def own(batch: torch.Tensor) -> Values:
            return self._values(batch, outputs)

        # torch keeps at most 8 results of compiling a code object, so each function gets one of its own.
        return FunctionType(own.__code__.replace(), own.__globals__, closure=own.__closure__)

    def _values(self, batch: torch.Tensor, outputs: Sequence[str]) -> Values:
        return {name: value.float().contiguous() for name, value in self._module(batch, outputs).items()}


def check_device(device: str) -> None:
    """Raise Error if the device is `cuda` and torch finds no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Error(f"torch {torch.__version__} finds no GPU; use the device cpu")


@contextmanager
def _memory(task: str, device: str) -> Iterator[None]:
    """Raise MemoryError if a device has not enough memory for a task; torch raises an exception for each kind of device."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(f"not enough memory for {task}{' on the GPU' * (device == 'cuda')}") from None
        raise


def _dtype(device: str, precision: str) -> torch.dtype:
    """The dtype that a device computes in."""
    if precision == "bf16":
        return torch.bfloat16
    if device == "cpu" or precision == "float32":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def _key(outputs: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(outputs)))


def _tensor(batch: Array) -> torch.Tensor:
    """A batch as a tensor, not copied if it is contiguous; pixels in the order of an image file, which `np.stack` keeps."""
    if batch.dtype == np.uint8:
        return tensor(batch.transpose(0, 2, 3, 1), np.uint8).permute(0, 3, 1, 2)
    return tensor(batch)
