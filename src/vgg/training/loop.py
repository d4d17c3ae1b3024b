"""The training loop: `train`, and the `Trainer` whose state it advances."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import Error
from ..formats import write
from ..module import Module, Normalisation
from ..network import Provenance
from ..progress import Progress, silent
from . import checkpoint
from .augmentation import Colours, mixup
from .cache import Cache
from .checkpoint import BEST, LAST, NAN
from .history import COLUMNS, Row, accuracy, accuracy_text, draw_curves, epoch_line, has_stalled, is_better, write_log
from .loader import Batch, Loader
from .optimizer import make_optimizer, rate, set_rate
from .options import Options
from .processes import Process, processes
from .setup import Setup, cache_values, prepare
from .targets import Teachers, loss, measured, measures

EVALUATED = 256  # validation images computed at once


@dataclass(frozen=True)
class Outcome:
    """The result of a training run."""

    path: Path  # of the best network, an ONNX file
    history: list[Row]  # one for each epoch, as in log.csv
    errors: dict[str, str]  # images that couldn't be read: the reason by name


def train(options: Options, progress: Progress = silent, log: Callable[[str], object] = lambda line: None) -> Outcome:
    """Train a network, fine-tune one, or distil one from others. The same options resume an interrupted run.

    Under torchrun, each process computes its part of every batch.

    Args:
        options: see `Options`.
        progress: see `vgg.progress`.
        log: called with a line for each epoch, and for what happens before.

    Returns:
        The best network, with the history of the run. The run's folder also has the log and the last checkpoint.

    Raises:
        Error: the images don't fit the options, the folder has another run, a file can't be written, or the loss is not
            finite.
    """
    with processes(options.device) as process:
        if process.rank:
            progress, log = silent, lambda line: None
        return run(options, process, progress, log)


def run(options: Options, process: Process, progress: Progress, log: Callable[[str], object]) -> Outcome:
    """Train in this process; see `train`."""
    setup = prepare(options, log)
    with process.first_alone():
        checkpoint.create(options.output, fresh=options.fresh and process.rank == 0)
    state = checkpoint.resume(options.output, setup.key)
    cache_values(setup, options, process, progress)
    trainer = Trainer(options, setup, process, progress, log)
    if state:
        trainer.restore(state)
    while trainer.epoch < setup.recipe.epochs and not has_stalled(setup.recipe.patience, trainer.history):
        row = trainer.train_epoch()
        trainer.end_epoch({**row, **trainer.evaluate()})
    if process.rank == 0:
        draw_curves(options.output, trainer.history)
    return Outcome(options.output / BEST, trainer.history, {**setup.train.errors, **setup.val.errors})


@dataclass
class Trainer:
    """A training run in progress: the state that a checkpoint keeps, and the steps that change it."""

    options: Options
    setup: Setup
    process: Process
    progress: Progress
    log: Callable[[str], object]
    history: list[Row] = field(default_factory=list)
    epoch: int = 0
    step: int = 0  # the next one in the epoch
    loss_sum: float = 0.0  # of the epoch's steps so far, in this process

    def __post_init__(self) -> None:
        recipe, device = self.setup.recipe, self.process.device
        self.recipe, self.matched = recipe, self.options.matched
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.module: Module = self.setup.module.to(device, memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.module, recipe)
        self.average: Any = None
        if recipe.ema:  # also of batch normalisation's means and variances
            decay = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.module, multi_avg_fn=decay, use_buffers=True)
        self.steps = len(self.setup.indices) // recipe.batch  # in an epoch; the last, incomplete batch is dropped
        self.parts = self.process.parts(recipe.batch, self.options.micro_batch)
        self.least = self.setup.least
        if recipe.batch // self.parts < self.least:
            raise Error("batch normalisation in the head requires 2 images in each part of a batch; use a larger --micro-batch")
        self.parallel: Any = self.process.parallel(self.module)
        self.autocast: Any = torch.autocast("cuda", torch.bfloat16) if recipe.bf16 and device.type == "cuda" else nullcontext()
        self.colours = Colours(recipe, device)
        self.normalise = Normalisation(self.setup.preprocessing).to(device)
        self.teachers = Teachers(self.setup.teachers, self.matched, device, self.layout) if self.setup.teachers else None
        self.train: Loader | Cache
        self.val: Loader | Cache
        self.train, self.val = self.setup.frozen or (self.setup.train, self.setup.val)
        self.saved, self.waited = time.monotonic(), 0.0  # seconds: of the last checkpoint, and of waiting for images

    @property
    def result(self) -> Module:
        """The module to evaluate and to write: the moving average if the recipe has one."""
        return self.average.module if self.average else self.module

    def train_epoch(self) -> Row:
        """Train for the rest of the epoch; returns the epoch's row without its validation."""
        if self.process.device.type == "cuda" and isinstance(self.train, Loader):
            self.train.decode(self.setup.indices)  # a GPU would wait for the first images
        self.module.train()
        view = self.epoch % self.recipe.views if self.recipe.views else self.epoch
        batches = self.batches(view)
        started, first, self.waited = time.perf_counter(), self.step, 0.0
        while self.step < self.steps:
            lr = rate(self.recipe, self.epoch + self.step / self.steps, list(map(accuracy, self.history)))
            set_rate(self.optimizer, lr, self.epoch, self.recipe)
            loss, used = self.gradients(batches, view)
            if not math.isfinite(loss):
                self.fail(loss, lr, used)
            self.optimizer.step()
            if self.average:
                self.average.update_parameters(self.module)
            self.step, self.loss_sum = self.step + 1, self.loss_sum + loss
            self.progress("Training", self.epoch * self.steps + self.step, self.recipe.epochs * self.steps)
            if time.monotonic() - self.saved > self.options.save_seconds and self.step < self.steps:
                self.save()
                self.log(f"epoch {self.epoch + 1}, step {self.step} of {self.steps}: loss {loss:.4f}, lr {lr:.2g}")
        seconds = time.perf_counter() - started
        speed, loss = (self.steps - first) * self.recipe.batch / seconds, self.process.total(self.loss_sum) / self.steps
        row = {"epoch": self.epoch + 1, "lr": lr, "loss": loss, "seconds": seconds, "images_per_second": speed}
        return row | {"waited": self.waited / seconds, "time": time.time()}

    def batches(self, view: int) -> Iterator[Batch]:
        """This process's parts of the batches in the rest of the epoch."""
        order = np.random.default_rng([self.options.seed, self.epoch]).permutation(self.setup.indices)
        size = self.recipe.batch
        split = [np.array_split(order[step * size :][:size], self.parts) for step in range(self.step, self.steps)]
        return self.train.batches((part for parts in split for part in parts[self.process.rank :: self.process.world]), view)

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        started, batch = time.perf_counter(), next(batches)
        self.waited += time.perf_counter() - started
        if self.process.world > 1 and len(batch.indices) < self.least:  # the other processes would wait for ever
            raise Error(f"{self.setup.name}: too few images can be read of a part of a batch")
        return batch

    def gradients(self, batches: Iterator[Batch], view: int) -> tuple[float, list[Batch]]:
        """Compute the gradients of a step; returns this process's share of the loss, and its parts of the batch."""
        rank, world = self.process.rank, self.process.world
        self.optimizer.zero_grad()
        total, used = torch.zeros((), device=self.process.device), []
        for part in range(rank, self.parts, world):
            batch = self.next_batch(batches)
            used.append(batch)
            if len(batch.indices) < self.least:
                continue
            # Seeded by the part, so that dropout, colours and mixup are the same in whichever process computes it.
            seed = (self.options.seed * self.recipe.epochs + self.epoch) * self.steps + self.step
            torch.manual_seed(seed * self.parts + part)
            inputs, scores, matched = self.inputs_and_targets(batch, view)
            last = part + world >= self.parts or world == 1  # processes exchange their gradients once for each step
            with nullcontext() if last else self.parallel.no_sync():
                with self.autocast:
                    values = self.parallel(inputs, ("logits", *self.matched), self.setup.start)
                loss = self.loss(values, scores, matched) * (len(batch.indices) / self.recipe.batch)
                torch.autograd.backward(loss * world)  # DistributedDataParallel averages over the processes
            total += loss.detach()
        return float(total), used

    def inputs_and_targets(self, batch: Batch, view: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """A part of a batch as the module takes it, the target scores, and the teacher's matched values, on the device."""
        device, mix = self.process.device, None
        if self.setup.start:
            inputs = self.inputs(batch)
        else:
            images = self.colours(batch.inputs, training=True)
            mix = mixup(len(images), self.recipe.mixup)
            images = mix(images)
            inputs = self.normalised(images)
            if self.teachers:
                with self.autocast:
                    return inputs, *self.teachers(images, self.recipe.temperature)
        scores, matched = self.setup.targets(batch, view)
        scores = scores.to(device)
        return inputs, mix(scores) if mix else scores, [value.to(device) for value in matched]

    def inputs(self, batch: Batch) -> torch.Tensor:
        """Images as in evaluation, or values of frozen layers, as the module takes them."""
        if self.setup.start:
            return torch.from_numpy(batch.inputs).to(self.process.device)
        return self.normalised(self.colours(batch.inputs))

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.normalise(images)
        return normalised.contiguous(memory_format=self.layout)

    def loss(self, values: dict[str, torch.Tensor], scores: torch.Tensor, matched: list[torch.Tensor]) -> torch.Tensor:
        """The loss against the target scores, and the mean square error of the matched values.

        With a temperature, the cross-entropy is multiplied by its square, as in Hinton et al., arXiv 1503.02531.
        """
        temperature = self.recipe.temperature
        logits = values["logits"].float() / temperature
        total = loss(logits, scores, self.setup.targets.output, self.recipe.smoothing) * temperature**2
        for name, wanted in zip(self.matched, matched, strict=True):
            total = total + self.recipe.match_weight * functional.mse_loss(values[name].float(), wanted)
        return total

    def evaluate(self) -> Row:
        """Validation loss and accuracy, see `measures`; each process evaluates its share of the images."""
        module, setup, output = self.result.eval(), self.setup, self.setup.targets.output
        self.process.share(module.buffers())  # batch normalisation: each process has the statistics of its own images
        sums = np.zeros((3, 2))
        indices = setup.val_indices[self.process.rank :: self.process.world]
        parts = [indices[start : start + EVALUATED] for start in range(0, len(indices), EVALUATED)]
        for batch in self.val.batches(parts):
            if not len(batch.indices):
                continue
            targets = torch.from_numpy(setup.targets.val(batch)).to(self.process.device)
            with torch.inference_mode():
                logits = module(self.inputs(batch), start=setup.start).float()
            sums += measured(logits, targets, output)
        return measures(np.array([[self.process.total(value) for value in pair] for pair in sums.tolist()]), output)

    def end_epoch(self, row: Row) -> None:
        """Log the epoch, write the network if it is the best so far, and save a checkpoint."""
        best = not len(self.setup.val_indices) or all(is_better(row, earlier) for earlier in self.history)
        self.history.append({name: row[name] for name in COLUMNS if name in row})
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if self.process.rank == 0:
            self.log(epoch_line(row, self.recipe.epochs))
            write_log(self.options.output, self.history)
            if best:
                self.write_network(row)
        self.save()

    def write_network(self, row: Row) -> None:
        """Write the network of an epoch as the best one."""
        recipe, setup = self.recipe, self.setup
        origin = Provenance(
            source=f"vgg train, recipe {recipe.name}, {setup.name}, epoch {row['epoch']}: {accuracy_text(row)}",
            format="trained", preprocessing="given", labels="given", licence=setup.licence,
        )  # fmt: skip
        write(self.result.network(setup.preprocessing, setup.labels, origin), self.options.output / BEST)

    def save(self) -> None:
        """Save a checkpoint, in the first process."""
        self.saved = time.monotonic()
        if self.process.rank == 0:
            state = {"key": self.setup.key, "epoch": self.epoch, "step": self.step, "loss_sum": self.loss_sum}
            state |= {"history": self.history, "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            state |= {"average": self.average.state_dict()} if self.average else {}
            checkpoint.save(self.options.output / LAST, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.history, self.epoch, self.step = state["history"], state["epoch"], state["step"]
        self.loss_sum = 0.0 if self.process.rank else state["loss_sum"] * self.process.world  # it is the first process's
        if self.epoch < self.recipe.epochs:
            self.log(f"resuming in epoch {self.epoch + 1}, step {self.step + 1}")

    def fail(self, loss: float, lr: float, used: list[Batch]) -> None:
        """Save the step that led to a loss that is not finite, and raise Error."""
        samples, path = self.setup.train.dataset.samples, self.options.output / NAN
        state = {"key": self.setup.key, "epoch": self.epoch, "step": self.step, "lr": lr}
        state |= {"names": [samples[index].name for batch in used for index in batch.indices]}
        state |= {"inputs": [torch.from_numpy(np.ascontiguousarray(batch.inputs)) for batch in used]}
        checkpoint.save(path, state | {"targets": [torch.from_numpy(batch.targets) for batch in used]})
        raise Error(
            f"the loss is {loss} in epoch {self.epoch + 1}, step {self.step + 1}; try a lower --lr. {path} has the step's "
            f"images, {LAST} an earlier state"
        )
