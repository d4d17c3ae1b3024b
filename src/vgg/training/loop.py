"""The training loop: the `Trainer`, whose state advances step by step."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..errors import Error, counted
from ..formats import write
from ..module import Module, Normalisation
from ..network import Provenance
from ..progress import Progress
from . import checkpoint
from .augmentation import Colours, erase, mixing
from .cache import Cache
from .checkpoint import BEST, LAST, NAN
from .history import COLUMNS, Row, epoch_line, has_stalled, kept_row, measures_text, quality, write_log
from .loader import Batch, Loader
from .measures import Measures
from .optimizer import make_average, make_optimizer, rate, set_rate
from .options import Options
from .processes import Process, has_bf16
from .setup import Setup
from .targets import Teachers, loss

EVALUATED = 256  # validation images computed at once


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
        self.average = make_average(self.module, recipe)
        self.steps = len(self.setup.indices) // recipe.batch  # in an epoch; the last, incomplete batch is dropped
        self.images = recipe.batch // recipe.repeats  # different ones in a batch
        largest = max(self.options.micro_batch // recipe.repeats, 1) if self.options.micro_batch else 0
        self.parts = self.process.parts(self.images, largest)
        self.least = self.setup.least
        if self.images // self.parts * recipe.repeats < self.least:
            raise Error(
                f"a batch of {recipe.batch} in {self.parts} parts: a part requires {counted(self.least, 'image')}"
                + " for batch normalisation in the head" * (self.least > 1)
                + "; use a larger --batch-size"
                + " or --micro-batch" * bool(self.options.micro_batch)
            )
        self.evaluated = min(EVALUATED, self.images // self.parts * recipe.repeats)  # images at once, no more than in training
        self.parallel: Any = self.process.parallel(self.module)
        self.autocast: Any = torch.autocast(device.type, torch.bfloat16) if recipe.bf16 and has_bf16(device) else nullcontext()
        self.colours = Colours(recipe, device)
        self.normalise = Normalisation(self.setup.preprocessing).to(device)
        self.weights = None if self.setup.weights is None else torch.from_numpy(self.setup.weights).to(device)
        self.teachers = Teachers(self.setup.teachers, self.matched, device, self.layout) if self.setup.teachers else None
        self.train: Loader | Cache
        self.val: Loader | Cache
        self.train, self.val = self.setup.frozen or (self.setup.train, self.setup.val)
        self.saved, self.waited = time.monotonic(), 0.0  # seconds: of the last checkpoint, and of waiting for images

    @property
    def result(self) -> Module:
        """The module to evaluate and to write: the moving average if the recipe has one."""
        return self.average.module if self.average else self.module

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the run has stopped early."""
        return self.epoch >= self.recipe.epochs or has_stalled(self.recipe.patience, self.history, self.recipe.best)

    def train_epoch(self) -> Row:
        """Train for the rest of the epoch; returns the epoch's row without its validation."""
        if self.process.device.type == "cuda" and isinstance(self.train, Loader):
            self.train.decode(self.setup.indices)  # a GPU would wait for the first images
        self.module.train()
        view, batches = self.view, self.batches()
        qualities = [quality(row, self.recipe.best) for row in self.history]
        started, first, self.waited = time.perf_counter(), self.step, 0.0
        while self.step < self.steps:
            lr = rate(self.recipe, self.epoch + self.step / self.steps, qualities)
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
                whole = loss * self.process.world  # about; the other processes have the rest
                self.log(f"epoch {self.epoch + 1}, step {self.step} of {self.steps}: loss {whole:.4f}, lr {lr:.2g}")
        seconds = time.perf_counter() - started
        speed, loss = (self.steps - first) * self.recipe.batch / seconds, self.process.total(self.loss_sum) / self.steps
        row = {"epoch": self.epoch + 1, "lr": lr, "loss": loss, "seconds": seconds, "images_per_second": speed}
        return row | {"waited": self.waited / seconds, "time": time.time()}

    @property
    def view(self) -> int:
        """The number of the random crop of each image in this epoch; for values that are computed once, it is below `views`."""
        cached = self.setup.frozen or self.setup.targets.logits or self.setup.targets.matched
        return self.epoch % self.recipe.views if cached else self.epoch

    def batches(self) -> Iterator[Batch]:
        """This process's parts of the batches in the rest of the epoch."""
        generator, indices = np.random.default_rng([self.options.seed, self.epoch]), self.setup.indices
        if self.setup.probabilities is None:
            order = generator.permutation(indices)
        else:
            order = generator.choice(indices, len(indices), p=self.setup.probabilities)
        size = self.images
        split = [np.array_split(order[step * size :][:size], self.parts) for step in range(self.step, self.steps)]
        return self.train.batches(
            (part for parts in split for part in parts[self.process.rank :: self.process.world]), self.view
        )

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        started, batch = time.perf_counter(), next(batches)
        self.waited += time.perf_counter() - started
        if self.process.world > 1 and len(batch.indices) < self.least:  # the other processes would wait for ever
            raise Error(f"{self.setup.name}: a part of a batch has too few readable images")
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
            torch.manual_seed((seed * self.parts + part) % 2**63)
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
            images = erase(images, self.recipe.erasing) if self.recipe.erasing else images
            mix = mixing(images, self.recipe)
            images = mix.images(images) if mix else images
            inputs = self.normalised(images)
            if self.teachers:
                with self.autocast:
                    return inputs, *self.teachers(images, self.recipe.temperature)
        scores, matched = self.setup.targets(batch, view)
        scores = scores.to(device)
        return inputs, mix.scores(scores) if mix else scores, [value.to(device) for value in matched]

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
        total = loss(logits, scores, self.setup.targets.output, self.recipe.smoothing, self.weights) * temperature**2
        for name, wanted in zip(self.matched, matched, strict=True):
            total = total + self.recipe.match_weight * functional.mse_loss(values[name].float(), wanted)
        return total

    def evaluate(self) -> Row:
        """The measures of the validation images, see `Measures`; each process evaluates its share of them."""
        module, setup = self.result.eval(), self.setup
        self.process.share(module.buffers())  # batch normalisation: each process has the statistics of its own images
        measures, count = Measures(setup.targets.classes, setup.targets.output), 0
        indices = setup.val_indices[self.process.rank :: self.process.world]
        parts = [indices[start : start + self.evaluated] for start in range(0, len(indices), self.evaluated)]
        for batch in self.val.batches(parts):
            if not len(batch.indices):
                continue
            targets = torch.from_numpy(setup.targets.val(batch)).to(self.process.device)
            with torch.inference_mode():
                measures.add(module(self.inputs(batch), start=setup.start).float(), targets)
            count += len(batch.indices)
        if len(setup.val_indices) and not self.process.total(count):
            raise Error(f"{setup.val.dataset.name}: none of the {len(setup.val_indices):,} validation images can be read")
        return measures.row(self.process)

    def end_epoch(self, row: Row) -> None:
        """Log the epoch, save a checkpoint, and write the network if it is the best so far."""
        self.history.append({name: row[name] for name in COLUMNS if name in row})
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if self.process.rank == 0:
            write_log(self.options.output, self.history)
            self.log(epoch_line(row, self.recipe.epochs, self.recipe.best))
        self.save()
        if self.process.rank == 0:
            self.write_if_best()

    def write_if_best(self) -> None:
        """Write the network of the last epoch if it is the best one so far."""
        recipe, setup, row = self.recipe, self.setup, self.history[-1]
        if kept_row(self.history, recipe.best) is not row:
            return
        origin = Provenance(
            source=f"vgg train, recipe {recipe.name}, {setup.name}, epoch {row['epoch']}: {measures_text(row, recipe.best)}",
            format="trained", preprocessing="given", labels="given", licence=setup.licence,
        )  # fmt: skip
        write(self.result.network(setup.preprocessing, setup.labels, origin), self.options.output / BEST)

    def save(self) -> None:
        """Save a checkpoint, in the first process."""
        self.saved = time.monotonic()
        if self.process.rank == 0:
            state = {"key": self.setup.key, "epoch": self.epoch, "step": self.step}
            state |= {"loss_sum": self.loss_sum * self.process.world}  # about, as the other processes have the rest
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
        self.loss_sum = 0.0 if self.process.rank else state["loss_sum"]
        if self.process.rank == 0 and self.history and not self.step:
            self.write_if_best()  # the process may have ended after the checkpoint
        if not self.is_finished:
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
