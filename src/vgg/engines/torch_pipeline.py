"""Batches on a GPU: copies beside the computation, and CUDA graphs."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..arrays import Array
from ..errors import Error

PIXELS = 64 * 224 * 224  # of the images that are computed together
GRAPHS = 64  # CUDA graphs kept by a pipeline
WARM_UPS = 3  # runs before a graph is captured

Values = dict[str, torch.Tensor]
Compute = Callable[[torch.Tensor, Sequence[str]], Values]


class Pipeline:
    """Runs batches in parts: while the device computes a part, the next one is copied to it by a stream of its own.

    A part has at most PIXELS pixels, and its number of images is filled up to a power of two, so that few sizes occur. The
    first run of a size with a set of outputs captures a CUDA graph, one launch for the whole network, which later runs replay.

    Args:
        compute: the named values, float32, of a batch on the device, float or uint8 [batch, 3, height, width].
        dtype: that batches of float32 are converted to on their way to the device.
        device: `cuda`; or `cpu`, where the same steps follow each other, without graphs.
    """

    _device_lock = threading.Lock()  # one for all pipelines: torch captures one graph at a time

    def __init__(self, compute: Compute, dtype: torch.dtype, device: str) -> None:
        self._compute, self._dtype, self._device = compute, dtype, device
        self._streams: Any = torch.cuda if device == "cuda" else torch.cpu
        self._copies = self._streams.Stream()
        self._pool = torch.cuda.graph_pool_handle() if device == "cuda" else None
        self._programs: dict[tuple[Any, ...], Callable[[torch.Tensor], Values]] = {}
        self._process = os.getpid()

    def run(self, batch: torch.Tensor, outputs: Sequence[str]) -> dict[str, Array]:
        """The named values of a batch in the CPU's memory, float32 or uint8 [batch, 3, height, width], not empty.

        Raises:
            Error: this process was forked from the one that made the pipeline.
        """
        count, _, height, width = batch.shape
        parts = torch.split(batch, 1 << max(1, PIXELS // (height * width)).bit_length() - 1)
        found: dict[str, Array] = {}
        with self._alone(), torch.inference_mode():
            staged, start = self.stage(parts[0]), 0
            for part, following in zip(parts, [*parts[1:], None], strict=True):
                self._streams.current_stream().wait_stream(self._copies)
                values = self.program(staged, outputs)(staged)
                if following is not None:
                    staged = self.stage(following)
                end = start + len(part)
                for name, value in values.items():
                    rows = found.setdefault(name, np.empty((count, *value.shape[1:]), np.float32))
                    torch.from_numpy(rows)[start:end].copy_(value[: len(part)])  # waits for the device
                start = end
        return found

    def stage(self, part: torch.Tensor) -> torch.Tensor:
        """A part on its way to the device, filled up with any values. The device must wait for the stream of copies.

        The host's copy is in pinned memory, which the device reads while this process continues. Two are in use at a time;
        torch keeps their memory for later runs.
        """
        shape = (1 << (len(part) - 1).bit_length(), *part.shape[1:])
        pixels = part.dtype == torch.uint8
        pinned = torch.empty(
            shape,
            dtype=part.dtype if pixels else self._dtype,
            pin_memory=self._device == "cuda",
            memory_format=torch.channels_last if pixels else torch.contiguous_format,
        )
        pinned[: len(part)].copy_(part)
        with self._streams.stream(self._copies):
            return pinned.to(self._device, non_blocking=True)

    def program(self, batch: torch.Tensor, outputs: Sequence[str]) -> Callable[[torch.Tensor], Values]:
        """Computes these outputs for batches like this one, on the device. The next call overwrites the values."""

        def compute(batch: torch.Tensor) -> Values:
            return self._compute(batch, outputs)

        if self._device == "cpu":
            return compute
        key = (batch.shape, batch.dtype, *outputs)
        if key not in self._programs:
            if len(self._programs) == GRAPHS:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = _captured(compute, batch, self._pool)
        return self._programs[key]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While this lasts, nothing runs, so that `compute` may change; its graphs are captured again afterwards."""
        with self._alone():
            yield
            self._programs.clear()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._process != os.getpid():
            raise Error("a GPU can't be used in a forked process; use the start method `spawn`, and open the engine there")
        with self._device_lock:
            yield


@contextmanager
def choosing_kernels() -> Iterator[None]:
    """cuDNN measures its kernels and takes the fastest, of float32 without those that round to TF32, which torch allows."""
    cudnn: Any = torch.backends.cudnn
    # Since torch 2.9 convolutions have a setting of their own, and `allow_tf32` can't be read if a program has changed that.
    owner, name, exact = (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    measures, allowed = cudnn.benchmark, getattr(owner, name)
    cudnn.benchmark = True
    setattr(owner, name, exact)
    try:
        yield
    finally:
        cudnn.benchmark = measures
        setattr(owner, name, allowed)


def _captured(compute: Callable[[torch.Tensor], Values], example: torch.Tensor, pool: Any) -> Callable[[torch.Tensor], Values]:
    """A computation as a CUDA graph for batches like the example.

    Its input and its values stay at their addresses; each run overwrites them. Graphs never run at the same time, so they
    share a pool of memory for what is in between.
    """
    given = example.clone()
    with choosing_kernels():
        for _ in range(WARM_UPS):  # libraries choose kernels and allocate memory, which a capture doesn't allow
            compute(given)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            values = compute(given)

    def replay(batch: torch.Tensor) -> Values:
        given.copy_(batch)
        graph.replay()
        return values

    return replay
