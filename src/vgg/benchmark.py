"""The speed of engines, side by side in one run, and in relation to the limit of the machine."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Protocol

import numpy as np

from . import engines
from .arrays import Array
from .errors import Error
from .formats import QuantizedGraph, network_of
from .limits import Machine, Meter, Work, work
from .network import Network
from .parallel import cores
from .progress import Progress, silent

ROUNDS = 10
WARM_UP = 2  # runs of each engine before the first measurement
PAUSE = 0.05  # seconds before each measurement: some engines' threads keep spinning for a while and would occupy the core
REFERENCE = "onnxruntime"  # the engine that the others are compared with


@dataclass(frozen=True)
class Timing:
    """The measured times of an engine."""

    engine: str
    seconds: tuple[float, ...]  # per batch, in each round
    layers: Mapping[str, float] = field(default_factory=dict)  # native engine: median seconds per batch, by layer output

    def quantile(self, share: float) -> float:
        """Seconds per batch: 0 for the minimum, 0.5 for the median, 1 for the maximum."""
        return float(np.quantile(self.seconds, share))


@dataclass(frozen=True)
class Comparison:
    """Engines timed with the same batch in the same rounds; `work`, `total` and `limit` are those of the first network."""

    batch: int
    threads: int
    timings: tuple[Timing, ...]
    work: Mapping[str, Work]  # of each layer, see `work`
    machine: Machine | None  # None if the native engine, which measures it, is not installed
    others: Mapping[str, Mapping[str, Work]] = field(default_factory=dict)  # work of the timings of other networks, by name

    @property
    def total(self) -> Work:
        """The work of all layers."""
        return sum(self.work.values(), Work(0, 0))

    @property
    def limit(self) -> float | None:
        """Seconds per batch at full use of the machine; see `Machine.limit`."""
        return self._limit(self.work)

    def _limit(self, work: Mapping[str, Work]) -> float | None:
        return self.machine.limit(sum(work.values(), Work(0, 0)), self.batch) if self.machine else None

    def ratio(self, timing: Timing, to: str = REFERENCE) -> float | None:
        """The median over rounds of an engine's time divided by another's in the same round; below 1 is faster.

        Of several timings of the other engine, the first one counts: that of the first network and precision.
        """
        other = next((one for one in self.timings if one.engine.partition(",")[0] == to), None)
        return float(np.median(np.divide(timing.seconds, other.seconds))) if other else None

    def record(self, timing: Timing) -> dict[str, Any]:
        """An engine's times as JSON values: milliseconds per image, their quartiles, and ratios."""
        least, low, median, high, most = (timing.quantile(quarter / 4) for quarter in range(5))
        ratio, machine = self.ratio(timing), self.machine
        limit = self._limit(self.others.get(timing.engine, self.work))
        return {
            "engine": timing.engine,
            "batch": self.batch,
            "threads": self.threads,
            "rounds": len(timing.seconds),
            "ms": self.milliseconds(median),
            "ms_min": self.milliseconds(least),
            "ms_q1": self.milliseconds(low),
            "ms_q3": self.milliseconds(high),
            "ms_max": self.milliseconds(most),
            "vs_onnxruntime": None if ratio is None else round(ratio, 4),
            "ms_limit": limit and self.milliseconds(limit),
            "of_limit": limit and round(limit / median, 4),
            "gflops": machine and round(machine.flops / 1e9, 1),
            "gb_per_s": machine and round(machine.bandwidth / 1e9, 1),
        }

    def layers(self, timing: Timing) -> dict[str, tuple[float, float | None]]:
        """By layer output: milliseconds per image, and the layer's limit divided by its time; fused layers are left out."""
        found: dict[str, tuple[float, float | None]] = {}
        work = self.others.get(timing.engine, self.work)
        for name, seconds in timing.layers.items():
            if seconds:
                limit = self.machine.limit(work[name], self.batch) if self.machine and name in work else None
                found[name] = self.milliseconds(seconds), limit and round(limit / seconds, 4)
        return found

    def milliseconds(self, seconds: float) -> float:
        """Milliseconds per image from seconds per batch."""
        return round(1000 * seconds / self.batch, 4)


class Runner(Protocol):
    """An `Engine`, or another object with its method `logits`."""

    def logits(self, batch: Array) -> Array: ...


@dataclass(frozen=True)
class Features:
    """A `Runner` for a network without a head, whose last layer output takes the place of the logits."""

    engine: engines.Engine
    value: str

    def logits(self, batch: Array) -> Array:
        return self.engine.run(batch, (self.value,))[self.value]

    def times(self) -> dict[str, float]:
        return dict(self.engine.times()) if self.engine.name == "native" else {}  # type: ignore[attr-defined]


def compare(
    network: Network | QuantizedGraph,
    names: Sequence[str] = (),
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (),
    rounds: int = ROUNDS,
    beside: Mapping[str, Network | QuantizedGraph] | None = None,
    precisions: Sequence[str] = ("auto",),
    progress: Progress = silent,
) -> Iterator[Comparison]:
    """Time engines side by side: yields a `Comparison` for each number of threads and each batch size.

    Args:
        network: the network to run, at its `input_size`.
        names: engines; all installed ones by default.
        batch_sizes: numbers of images per batch.
        threads: numbers of engine threads; the number of cores by default.
        rounds: number of measurements of each engine.
        beside: further networks with the same input, by name; their engines are called `ENGINE, NAME`.
        precisions: of each engine, see `vgg.engines.open`; the name of one that is not `auto` follows the engine's.
        progress: called after each measurement.

    Raises:
        Error: an engine is unknown or not installed, or a number is below 1.
    """
    if min((rounds, *batch_sizes)) < 1:
        raise Error("batch sizes and rounds must be 1 or more")
    size, rng, done = network_of(network).architecture.input_size, np.random.default_rng(0), 0
    chosen, threads, models = names or engines.installed(), threads or (cores(),), {"": network, **(beside or {})}
    works = {title: work(network_of(model)) for title, model in models.items()}
    total = len(threads) * len(batch_sizes) * len(chosen) * len(models) * len(precisions) * rounds

    def advance(task: str, measured: int, *_: object) -> None:
        progress(task, done + measured, total)

    for count in threads:
        runners, others = dict[str, Runner](), dict[str, Mapping[str, Work]]()
        for (title, model), precision, name in product(models.items(), precisions, chosen):
            full = ", ".join(filter(None, (name, title, precision.removeprefix("auto"))))
            runners[full] = _opened(model, name, count, precision)
            if title:
                others[full] = works[title]
        for batch_size in batch_sizes:
            batch = rng.standard_normal((batch_size, 3, size, size), np.float32)
            found = side_by_side(runners, batch, works[""], count, rounds, advance)
            yield replace(found, others=others)
            done += len(runners) * rounds
        del runners  # frees the memory before the next engines are opened


def _opened(model: Network | QuantizedGraph, engine: str, threads: int, precision: str) -> Runner:
    architecture, opened = network_of(model).architecture, engines.open(model, engine, threads=threads, precision=precision)
    return opened if architecture.classifier else Features(opened, architecture.values[-1])


def side_by_side(
    runners: Mapping[str, Runner],
    batch: Array,
    work: Mapping[str, Work],
    threads: int,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> Comparison:
    """Time runners with `threads` threads on a batch, float32 [batch, 3, height, width], and measure the machine with them."""
    meter = Meter(threads) if "native" in engines.installed() else None
    runs: dict[str, Callable[[], object]] = {name: partial(runner.logits, batch) for name, runner in runners.items()}
    if meter:
        runs["machine"] = meter.measure
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    layers: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    done = 0
    for name, took in _interleaved(runs, rounds):
        seconds[name].append(took)
        if name in runners:
            if times := getattr(runners[name], "times", None):  # only the native engine has them
                layers[name].append(times())
            done += 1
            progress("Measuring", done, len(runners) * rounds)
    timings = tuple(Timing(name, tuple(seconds[name]), _medians(layers[name])) for name in runners)
    return Comparison(len(batch), threads, timings, work, meter.machine if meter else None)


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> Iterator[tuple[str, float]]:
    """Name and seconds of each measurement. Each round has every run once, and begins with another one than the last round."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(PAUSE)
            start = time.perf_counter()
            runs[name]()
            yield name, time.perf_counter() - start
