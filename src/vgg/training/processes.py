"""The processes of a training run: one, or those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from ..engines.torch import check_device


@dataclass(frozen=True)
class Process:
    """This process among those of a training run."""

    device: torch.device
    rank: int  # of this process
    world: int  # number of processes

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block before the others do, so that they find its files."""
        if self.rank:
            distributed.barrier()
        yield
        if self.world > 1 and not self.rank:
            distributed.barrier()

    def total(self, value: float) -> float:
        """The sum of a value over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total)


@contextmanager
def processes(device: str) -> Iterator[Process]:
    """This process, joined with the others for the block. Raises Error if torch can't use the device."""
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
        yield Process(own, int(os.environ.get("RANK", 0)), world)
        if world > 1:  # a process that exits while a thread of torch still releases a tensor aborts
            distributed.barrier()
    finally:
        if world > 1:
            distributed.destroy_process_group()
