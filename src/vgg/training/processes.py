"""The processes of a training run: one, or those that torchrun started."""

import ctypes
import gc
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch

# Imported before a process group exists: its functions' default arguments would keep the group, and so its threads, alive.
import torch.distributed.nn
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ..arrays import Array
from ..engines.torch import check_device
from ..module_layers import cpu_has

# Parameters of glibc's mallopt, and their values in bytes.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, KEPT_BLOCK = 2**30, 2**26


@dataclass(frozen=True)
class Process:
    """This process among those of a training run."""

    device: torch.device
    rank: int  # of this process
    world: int  # number of processes

    def parts(self, batch: int, largest: int) -> int:
        """The number of parts of a batch: as many for each process, of at most `largest` images, if that is not 0."""
        return self.world * math.ceil(batch / self.world / (largest or batch))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block before the others do, so that they find its files."""
        if self.rank:
            distributed.barrier()
        yield
        if self.world > 1 and not self.rank:
            distributed.barrier()

    def parallel(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module, or with more processes one that averages its gradients over all of them."""
        return DistributedDataParallel(module) if self.world > 1 else module

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the first process's tensors to all processes."""
        for tensor in tensors if self.world > 1 else ():
            distributed.broadcast(tensor, 0)

    def sum(self, values: Array) -> Array:
        """The sum of an array over all processes, float64."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.cpu().numpy()

    def gather(self, values: Array) -> Array:
        """The rows of all processes, in their order."""
        if self.world == 1:
            return values
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, values)
        return np.concatenate(parts)

    def total(self, value: float) -> float:
        """The sum of a value over all processes."""
        return float(self.sum(np.array(value)))


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32: a GPU, or a CPU with instructions for it."""
    return device.type == "cuda" or cpu_has("avx512_bf16", "amx_bf16", "bf16")


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Keep freed memory, in pieces of up to 64 MiB, for the next tensors in the block; does nothing without glibc.

    By default glibc returns it to the system after each layer, which clears every page again for the next step: 8,000 page
    faults and 10 to 15% of the time of a step of VGG-11-bn at a quarter of its width. Larger pieces fragment the memory. After
    the block, the process keeps at most twice that size, as is usual in glibc.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    # glibc before 2.35 refuses more than 32 MiB.
    changed = library.mallopt(MMAP_THRESHOLD, KEPT_BLOCK) or library.mallopt(MMAP_THRESHOLD, KEPT_BLOCK // 2)
    if changed:
        library.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        if changed:
            library.mallopt(TRIM_THRESHOLD, 2 * KEPT_BLOCK)
        library.malloc_trim(0)


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """This process, joined with the others for the block. Raises Error if torch can't use the device.

    What the block has made with the group, such as a DistributedDataParallel, must not outlive it: the group's threads end
    with its last reference, and a process that exits while one of them releases a tensor aborts.
    """
    check_device(device)
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        torch.cuda.set_device(local)
        torch.backends.cudnn.benchmark = True
    if world > 1:
        # The first process may take hours to fill the caches while the others wait.
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
    try:
        own = torch.device(device, local) if device == "cuda" else torch.device(device)
        with _kept_memory():
            yield Process(own, int(os.environ.get("RANK", 0)), world)
        if world > 1:
            distributed.barrier()
    finally:
        if world > 1:
            distributed.destroy_process_group()
            gc.collect()
