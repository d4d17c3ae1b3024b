"""How fast the engines are, side by side in one run, and how near they come to what the machine could do."""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import engines
from .arrays import Array
from .errors import Error
from .formats import QuantizedGraph, network_of
from .network import Network
from .parameters import LowRank, Parameter, Part, is_int4

ROUNDS = 10
WARM_UP = 2  # runs of each engine before the first measurement
PAUSE = 0.05  # seconds before each measurement: some engines' threads go on spinning for a while and would take the core
REFERENCE = "onnxruntime"  # what the others are compared with
MEMORY = 256 * 2**20  # bytes read to find the bandwidth, much more than the caches hold
PEAK_SECONDS = 0.05  # of each measurement of the peak


@dataclass(frozen=True)
class Work:
    """What a layer, or a network, takes."""

    multiply_adds: float  # an image
    weight_bytes: float  # read once a batch

    def __add__(self, other: "Work") -> "Work":
        return Work(self.multiply_adds + other.multiply_adds, self.weight_bytes + other.weight_bytes)


def work(network: Network) -> dict[str, Work]:
    """What each layer with weights takes at the network's input size, by the name of its value, `conv1_1` … `logits`.

    A 3x3 convolution is counted as Winograd's F(4x4,3x3): 36 multiply-adds for 4x4 pixels instead of 144, hence a quarter,
    and 36 float32 for each nine weights. The first convolution, whose three channels are too few to pay for the transforms,
    1x1 convolutions and linear layers are counted directly, linear weights with the bytes that they are stored in. Transforms,
    biases, activations and what overhangs at the edges of a map are left out. Batch normalisation is folded.
    """
    architecture = network.architecture.without_batch_norm()
    side, found = architecture.input_size, {}
    for layer in architecture.layers:
        weight = layer.parameters.get("weight")
        if layer.operation == "max_pool":
            side //= 2
        elif weight:
            numbers, name = math.prod(weight), layer.value.removesuffix(".raw")
            if layer.operation == "linear":
                stored = network.parameters[f"{layer.name}.weight"]
                found[name] = sum((_linear(part) for part in _factors(stored)), Work(0, 0))
            elif weight[2] == 3 and found:
                found[name] = Work(numbers * side * side / 4, numbers * 4 * 36 / 9)
            else:
                found[name] = Work(numbers * side * side, numbers * 4)
    return found


def _factors(weight: Parameter) -> tuple[Part, ...]:
    return (weight.left, weight.right) if isinstance(weight, LowRank) else (weight,)


def _linear(weight: Part) -> Work:
    numbers = math.prod(weight.shape)
    if isinstance(weight, np.ndarray):
        return Work(numbers, weight.nbytes)
    return Work(numbers, numbers * (0.5 if is_int4(weight.values) else 1) + weight.scale.nbytes)


@dataclass(frozen=True)
class Machine:
    """What the machine can do with a number of threads, as measured."""

    flops: float  # floating point operations a second on numbers in registers; a multiply-add is two
    bandwidth: float  # bytes a second read from memory

    def limit(self, work: Work, batch: int) -> float:
        """Seconds that a batch takes if all of the machine is used: 2 * multiply-adds * batch / flops + bytes / bandwidth.

        The sum, since the convolutions are bound by the one and the linear layers by the other, one after another. It is a
        yardstick rather than a law: larger tiles than F(4x4) take fewer multiply-adds, and a small network's weights may stay
        in the caches.
        """
        return 2 * work.multiply_adds * batch / self.flops + work.weight_bytes / self.bandwidth


class Meter:
    """Measures the machine, time and again; the best of it counts, since others at work can only make it seem slower."""

    def __init__(self, threads: int, memory: int = MEMORY) -> None:
        self._threads = threads
        self._memory = np.ones(memory // 4, np.float32)  # written, so that it is there
        self._peak = self._bandwidth = 0.0

    def measure(self) -> None:
        from .engines import native

        self._peak = max(self._peak, native.peak(self._threads, PEAK_SECONDS))
        self._bandwidth = max(self._bandwidth, native.bandwidth(self._threads, self._memory))

    @property
    def machine(self) -> Machine:
        """The best so far; `measure` comes first."""
        return Machine(2 * self._peak, self._bandwidth)


@dataclass(frozen=True)
class Timing:
    """How long an engine took."""

    engine: str
    seconds: tuple[float, ...]  # a batch, in each round
    layers: Mapping[str, float] = field(default_factory=dict)  # median seconds a batch by value; of the native engine

    def quantile(self, share: float) -> float:
        """Seconds a batch: 0 gives the shortest, 0.5 the median, 1 the longest."""
        return float(np.quantile(self.seconds, share))


@dataclass(frozen=True)
class Comparison:
    """Engines at the same work in the same rounds."""

    batch: int
    threads: int
    timings: tuple[Timing, ...]
    work: Mapping[str, Work]  # of each layer, see `work`
    machine: Machine | None  # None where the native engine, which measures it, is not installed

    @property
    def total(self) -> Work:
        """The work of all layers."""
        return sum(self.work.values(), Work(0, 0))

    @property
    def limit(self) -> float | None:
        """Seconds that a batch takes if all of the machine is used; see `Machine.limit`."""
        return self.machine.limit(self.total, self.batch) if self.machine else None

    def ratio(self, timing: Timing, to: str = REFERENCE) -> float | None:
        """The median over the rounds of an engine's time divided by another's in the same round; below 1 is faster."""
        other = next((one for one in self.timings if one.engine == to), None)
        return float(np.median(np.divide(timing.seconds, other.seconds))) if other else None

    def record(self, timing: Timing) -> dict[str, Any]:
        """An engine's times as plain data: milliseconds an image, quartiles, and what they are to be held against."""
        least, low, median, high, most = (timing.quantile(quarter / 4) for quarter in range(5))
        ratio, limit, machine = self.ratio(timing), self.limit, self.machine
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
        """By value: milliseconds an image, and the layer's limit divided by its time; without the layers fused into others."""
        found: dict[str, tuple[float, float | None]] = {}
        for name, seconds in timing.layers.items():
            if seconds:
                limit = self.machine.limit(self.work[name], self.batch) if self.machine and name in self.work else None
                found[name] = self.milliseconds(seconds), limit and round(limit / seconds, 4)
        return found

    def milliseconds(self, seconds: float) -> float:
        """Milliseconds an image for seconds a batch."""
        return round(1000 * seconds / self.batch, 4)


class Runner(Protocol):
    """What can be timed: an `Engine`, or anything else that has its `logits`."""

    def logits(self, batch: Array) -> Array: ...


@runtime_checkable
class _LayerTimes(Protocol):
    def times(self) -> dict[str, float]: ...


def compare(
    network: Network | QuantizedGraph,
    names: Sequence[str] = (),
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (),
    rounds: int = ROUNDS,
    beside: Mapping[str, Network | QuantizedGraph] | None = None,
    progress: Callable[[str], object] = lambda name: None,
) -> Iterator[Comparison]:
    """Engines side by side on one network, and on others beside it.

    A `Comparison` for each number of threads and each batch size, as they come.

    Args:
        network: what to run, at its `input_size`.
        names: engines; all that are installed when not given.
        batch_sizes: images a batch.
        threads: how many an engine uses at most; as many as there are cores when not given.
        rounds: how often each engine is measured.
        beside: further networks with the same input, by name; on them, an engine is called `ENGINE, NAME`.
        progress: called with an engine's name after each of its measurements.

    Raises:
        Error: an engine is unknown or not installed, or a number is below 1.
    """
    if min((rounds, *batch_sizes)) < 1:
        raise Error("a benchmark needs batches of 1 image or more, and 1 round or more")
    size, rng = network_of(network).architecture.input_size, np.random.default_rng(0)
    for count in threads or (os.cpu_count() or 1,):
        chosen = names or engines.installed()
        runners = {name: engines.open(network, name, threads=count) for name in chosen}
        for title, other in (beside or {}).items():
            runners |= {f"{name}, {title}": engines.open(other, name, threads=count) for name in chosen}
        for batch_size in batch_sizes:
            batch = rng.standard_normal((batch_size, 3, size, size), np.float32)
            yield side_by_side(runners, batch, work(network_of(network)), count, rounds, progress)
        del runners  # before the next ones take as much memory


def side_by_side(
    runners: Mapping[str, Runner],
    batch: Array,
    work: Mapping[str, Work],
    threads: int,
    rounds: int = ROUNDS,
    progress: Callable[[str], object] = lambda name: None,
) -> Comparison:
    """Time runners, which use `threads` threads, on a batch, float32 [batch, 3, height, width], and the machine with them."""
    meter = Meter(threads) if engines.native_library() else None
    runs: dict[str, Callable[[], object]] = {name: partial(runner.logits, batch) for name, runner in runners.items()}
    if meter:
        runs["machine"] = meter.measure
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    layers: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for name, took in _interleaved(runs, rounds):
        seconds[name].append(took)
        if name in runners:
            if isinstance(runner := runners[name], _LayerTimes):
                layers[name].append(runner.times())
            progress(name)
    timings = tuple(Timing(name, tuple(seconds[name]), _medians(layers[name])) for name in runners)
    return Comparison(len(batch), threads, timings, work, meter.machine if meter else None)


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]} if rows else {}


def _interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> Iterator[tuple[str, float]]:
    """Name and seconds of each measurement; every round has each run once, and begins with another one than the last."""
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


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
