"""The training loop, from top to bottom: `train`."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import Error
from ..formats import write
from ..module import Module, results
from ..network import Network, Provenance
from . import checkpoint, log
from .cache import Progress
from .pictures import Batch, Colours, mixing, normalised
from .recipes import rate
from .task import Options, Task, prepare
from .teachers import Teachers

LAST, BEST, NAN = "last.pt", "model.onnx", "nan.pt"  # in the run's folder
EVALUATED = 256  # pictures at once


@dataclass(frozen=True)
class Outcome:
    """What came of a training."""

    path: Path  # of the best network, an ONNX file
    history: list[dict[str, float]]  # a row for each epoch, as in log.csv
    errors: dict[str, str]  # pictures that couldn't be read, by name: why


def train(
    options: Options,
    progress: Progress = lambda what, done, total: None,
    told: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """Train a network, fine-tune one, or distil one from others; see `Options`.

    Run by torchrun, each process takes its part of every batch.

    Args:
        options: what is trained on what, and how.
        progress: called with what is being done, how much of it is done, and how much there is.
        told: called with a line on each epoch, and on what happens before.

    Returns:
        The best network so far, in the run's folder, beside the log and the last checkpoint.

    Raises:
        Error: the pictures or the options don't fit, nothing can be written, or the loss is no number any more.
    """
    with _processes(options.device) as (device, rank, world):
        if rank:
            progress, told = (lambda what, done, total: None), (lambda line: None)
        if (options.to / LAST).exists() and not options.resume:
            raise Error(f"{options.to}: has a run in it already; --resume goes on with it, another folder begins anew")
        task = prepare(options, progress, told)
        recipe, folder = task.recipe, options.to
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        module: Module = task.module.to(device, memory_format=layout)  # type: ignore[call-overload]
        optimizer = _optimizer(task)
        average = _average(module, recipe.ema) if recipe.ema else None
        judged: Any = average.module if average else module
        parallel: Any = DistributedDataParallel(module) if world > 1 else module
        autocast = torch.autocast("cuda", torch.bfloat16) if recipe.bf16 and device.type == "cuda" else nullcontext()

        colours = Colours(recipe, device)
        teachers = Teachers(task.teachers, task.matched, device, layout) if task.teachers else None

        def prepared(pictures: torch.Tensor) -> torch.Tensor:
            """Pictures as the module takes them."""
            return normalised(pictures, task.preprocessing).contiguous(memory_format=layout)

        def judged_inputs(batch: Batch) -> torch.Tensor:
            """Pictures, or what frozen layers made of them, as the module takes them."""
            return torch.from_numpy(batch.pixels).to(device) if task.start else prepared(colours(batch.pixels))

        def given(batch: Batch, look: int) -> tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]:
            """What a step is given: inputs, the scores that are to come of them, and the teacher's values to be matched."""
            if task.start:
                return judged_inputs(batch), task.targets(batch, look).to(device), task.match(batch, look, device)
            pictures = colours(batch.pixels, training=True)
            mix = mixing(len(pictures), recipe.mixup) if recipe.mixup else lambda values: values
            pictures = mix(pictures)
            if teachers:
                with autocast:
                    return prepared(pictures), *teachers(pictures, recipe.temperature)
            return prepared(pictures), mix(task.targets(batch, look).to(device)), task.match(batch, look, device)

        steps = len(task.places) // recipe.batch  # the last, incomplete batch is left out
        parts = world * math.ceil(recipe.batch / world / (options.micro_batch or recipe.batch))  # of a batch
        history: list[dict[str, float]] = []
        first_epoch, first_step, loss_sum = 0, 0, 0.0
        if (folder / LAST).exists():
            state = checkpoint.load(folder / LAST)
            if unlike := checkpoint.differences(state["config"], task.config):
                raise Error(f"{folder / LAST}: is of a run with other options: {'; '.join(unlike)}")
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            if average:
                average.load_state_dict(state["average"])
            history, first_epoch, first_step, loss_sum = (state[key] for key in ("history", "epoch", "step", "loss_sum"))
            loss_sum *= world if rank == 0 else 0  # it was the first process's
            told(f"going on in epoch {first_epoch + 1}, step {first_step + 1}")

        def save(epoch: int, step: int, loss_sum: float) -> None:
            """Keep the state in which this step of this epoch is about to begin."""
            if rank == 0:
                state = {"config": task.config, "epoch": epoch, "step": step, "loss_sum": loss_sum, "history": history}
                state |= {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"average": average.state_dict()} if average else {}
                checkpoint.save(folder / LAST, state)

        begun, done, saved = time.perf_counter(), 0, time.monotonic()
        for epoch in range(first_epoch, recipe.epochs):
            if log.tired(recipe.patience, history):
                break
            module.train()
            order = np.random.default_rng([options.seed, epoch]).permutation(task.places)
            batches = [np.array_split(order[step * recipe.batch :][: recipe.batch], parts) for step in range(first_step, steps)]
            look = epoch % recipe.views if recipe.views else epoch
            mine = task.train.batches((part for batch in batches for part in batch[rank::world]), look)
            started, waited = time.perf_counter(), task.train.waited
            for step in range(first_step, steps):
                lr = rate(recipe, epoch + step / steps, [row["val_top1"] for row in history])
                for group in optimizer.param_groups:
                    group["lr"] = lr / recipe.rate_decay ** group["depth"] if epoch >= group["depth"] * recipe.thaw else 0.0
                optimizer.zero_grad()
                used: list[Batch] = []
                loss = torch.zeros((), device=device)
                for part in range(rank, parts, world):
                    batch = next(mine)
                    used.append(batch)
                    if not len(batch.places):
                        if world > 1:  # the other processes would wait for ever
                            raise Error(f"{task.dataset}: of a whole part of a batch, no picture can be read")
                        continue
                    # Seeded by the part, so that dropout, colours and mixup are the same wherever it is computed.
                    torch.manual_seed(((options.seed * recipe.epochs + epoch) * steps + step) * parts + part)
                    inputs, targets, theirs = given(batch, look)
                    synchronised = part + world >= parts or world == 1
                    with nullcontext() if synchronised else parallel.no_sync():
                        with autocast:
                            logits, *values = results(parallel, inputs, task.matched, task.start)
                        one = _loss(logits.float(), targets, recipe.temperature, recipe.smoothing)
                        for value, wanted in zip(values, theirs, strict=True):
                            one = one + recipe.match_weight * functional.mse_loss(value.float(), wanted)
                        one = one * (len(batch.places) / recipe.batch)
                        torch.autograd.backward(one * world)  # DistributedDataParallel takes the mean over the processes
                    loss += one.detach()
                step_loss = float(loss)
                if not math.isfinite(step_loss):
                    checkpoint.keep_step(folder / NAN, epoch, step, lr, used, task)
                    raise Error(
                        f"the loss is {step_loss} in epoch {epoch + 1}, step {step + 1}; {folder / NAN} has the step's "
                        f"pictures, {LAST} an earlier state; a lower --lr often helps"
                    )
                optimizer.step()
                if average:
                    average.update_parameters(module)
                loss_sum, done = loss_sum + step_loss, done + 1
                speed = done * recipe.batch / (time.perf_counter() - begun)
                doing = f"epoch {epoch + 1} of {recipe.epochs}, loss {step_loss:.4f}, lr {lr:.2g}, {speed:,.0f} images/s"
                progress(doing, epoch * steps + step + 1, recipe.epochs * steps)
                if time.monotonic() - saved > options.save_seconds and step + 1 < steps:
                    save(epoch, step + 1, loss_sum)
                    saved = time.monotonic()
            seconds = time.perf_counter() - started
            waited = (task.train.waited - waited) / seconds
            row = {"epoch": epoch + 1, "lr": lr, "loss": _total(loss_sum, device, world) / steps}
            row |= _evaluated(judged, task, judged_inputs, device, rank, world)
            speed = (steps - first_step) * recipe.batch / seconds
            row |= {"seconds": seconds, "images_per_second": speed, "waited": waited, "time": time.time()}
            best = not len(task.judges) or all(log.better(row, one) for one in history)
            history.append(row)
            if rank == 0:
                told(log.line(row, recipe.epochs))
                log.write(folder, history)
                if best:
                    write(_network(judged, task, row), folder / BEST)
                save(epoch + 1, 0, 0.0)
            first_step, loss_sum, saved = 0, 0.0, time.monotonic()
        if rank == 0:
            log.curves(folder, history)
        return Outcome(folder / BEST, history, task.errors)


@contextmanager
def _processes(device: str) -> Iterator[tuple[torch.device, int, int]]:
    """This process's device and number, and how many there are: one, or those that torchrun has started."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Error(f"torch {torch.__version__} finds no GPU that it can use; the device cpu needs none")
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda":
        torch.cuda.set_device(local)
        torch.backends.cudnn.benchmark = True
    if world > 1:
        # The first process may take hours to compute what is computed once, while the others wait.
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
    try:
        yield torch.device(device, local) if device == "cuda" else torch.device(device), int(os.environ.get("RANK", 0)), world
    finally:
        if world > 1:
            distributed.destroy_process_group()


def _optimizer(task: Task) -> torch.optim.Optimizer:
    """The recipe's optimiser, with a group of parameters for each block, counted from the last, and for what isn't decayed."""
    recipe = task.recipe
    blocks = list(dict.fromkeys(block for block, _ in task.module.groups()))[::-1]
    groups: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for block, layer in task.module.groups():
        for parameter in layer.parameters():
            decayed = recipe.decay_all or parameter.ndim > 1
            groups.setdefault((blocks.index(block), decayed), []).append(parameter)
    listed = [
        {"params": parameters, "depth": depth, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (depth, decayed), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(listed, recipe.lr)
    return torch.optim.SGD(listed, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)


def _average(module: Module, decay: float) -> AveragedModel:
    """The moving average of a module's parameters and of its batch normalisation's means and variances."""
    every: Any = get_ema_multi_avg_fn  # torch doesn't say its types
    return AveragedModel(module, multi_avg_fn=every(decay), use_buffers=True)


def _loss(logits: torch.Tensor, targets: torch.Tensor, temperature: float, smoothing: float) -> torch.Tensor:
    """Cross-entropy with scores [batch, classes]; softened ones are scaled as Hinton et al. do."""
    return functional.cross_entropy(logits / temperature, targets, label_smoothing=smoothing) * temperature**2


def _total(value: float, device: torch.device, world: int) -> float:
    """The sum of a value over all processes."""
    if world == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total)


def _evaluated(
    module: Any, task: Task, inputs_of: Callable[[Batch], torch.Tensor], device: torch.device, rank: int, world: int
) -> dict[str, float]:
    """Loss and accuracies in percent on the pictures that judge; each process takes its share of them."""
    if world > 1:
        for buffer in module.buffers():  # every process has means and variances of its own pictures
            distributed.broadcast(buffer, 0)
    module.eval()
    sums = np.zeros(4)  # loss, right, among the best five, pictures
    places = task.judges[rank::world]
    parts = [places[start : start + EVALUATED] for start in range(0, len(places), EVALUATED)]
    with torch.inference_mode():
        for batch in task.val.batches(parts):
            if not len(batch.places):
                continue
            targets = torch.from_numpy(task.answers(batch)).to(device)
            logits = module(inputs_of(batch), start=task.start).float()
            best = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
            lost = functional.cross_entropy(logits, targets, reduction="sum")
            sums += [float(lost), float(best[:, 0].sum()), float(best.sum()), len(batch.places)]
    loss, top1, top5, count = (_total(value, device, world) for value in sums.tolist())
    if not count:
        return {"val_loss": math.nan, "val_top1": 0.0, "val_top5": 0.0}
    return {"val_loss": loss / count, "val_top1": 100 * top1 / count, "val_top5": 100 * top5 / count}


def _network(module: Any, task: Task, row: dict[str, float]) -> Network:
    origin = Provenance(
        source=f"vgg train, recipe {task.recipe.name}, {task.dataset}, epoch {row['epoch']}: {row['val_top1']:.2f}% right",
        format="trained", preprocessing="given", labels="given", licence=task.licence,
    )  # fmt: skip
    learnt: Module = module
    return learnt.network(task.preprocessing, task.labels, origin)
