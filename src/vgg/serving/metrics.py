"""What is counted: Triton's statistics and counters under Triton's names, and histograms, for Prometheus."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
STAGES = ("queue", "decode", "inference", "total")
REASONS = ("REJECTED", "CANCELED", "OTHER")  # Triton's words: no room, no time, anything else


class Metrics:
    """The server's own histograms and counters. They are held by whoever serves, not by the module."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        labels = ("model", "version")
        self.stages = {
            stage: Histogram(f"vgg_{stage}_seconds", text, labels, buckets=SECONDS, registry=self.registry)
            for stage, text in zip(
                STAGES,
                (
                    "Seconds that a picture waited for the engine",
                    "Seconds from a picture's bytes to the network's input",
                    "Seconds that the engine took for a batch",
                    "Seconds from a request's arrival to its answer",
                ),
                strict=True,
            )
        }
        self.batches = Histogram("vgg_batch_size", "Pictures in a batch", labels, buckets=SIZES, registry=self.registry)
        self.requests = Counter(
            "vgg_http_requests", "Answered HTTP requests", ("method", "route", "status"), registry=self.registry
        )

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format."""
        # Triton's counters are older than the rule that a counter's name ends in _total, which the headings get here.
        return re.sub(rb"(?m)^(# (?:HELP|TYPE) nv_\w+?)_total ", rb"\1 ", generate_latest(self.registry))


@dataclass
class Durations:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += round(seconds * 1e9)

    def record(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """What became of one model's requests, in the terms of Triton's statistics extension."""

    model: str
    version: str
    metrics: Metrics
    success: Durations = field(default_factory=Durations)
    fail: dict[str, Durations] = field(default_factory=lambda: {reason: Durations() for reason in REASONS})
    queue: Durations = field(default_factory=Durations)
    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)
    inferences: int = 0
    executions: int = 0
    last: int = 0  # milliseconds since 1970
    batches: dict[int, tuple[Durations, Durations]] = field(default_factory=dict)  # by size: infer, output

    def batch(self, size: int, inferred: float, output: float) -> None:
        """A batch went through the engine."""
        self.inferences += size
        self.executions += 1
        self.last = int(time.time() * 1000)
        infer, out = self.batches.setdefault(size, (Durations(), Durations()))
        infer.add(inferred)
        out.add(output)
        self.compute_infer.add(inferred)
        self.compute_output.add(output)
        self.metrics.batches.labels(self.model, self.version).observe(size)
        self.observe("inference", inferred)

    def observe(self, stage: str, seconds: float) -> None:
        """One of STAGES took a time."""
        if stage == "queue":
            self.queue.add(seconds)
        elif stage == "decode":
            self.compute_input.add(seconds)
        self.metrics.stages[stage].labels(self.model, self.version).observe(seconds)

    def answered(self, seconds: float) -> None:
        """A request was answered."""
        self.success.add(seconds)
        self.observe("total", seconds)

    def failed(self, reason: str, seconds: float) -> None:
        """A request was not answered, for one of REASONS."""
        self.fail[reason].add(seconds)

    def record(self) -> dict[str, Any]:
        """The model's entry in an answer of the statistics extension."""
        failures = self.fail.values()
        nothing = Durations().record()
        return {
            "name": self.model,
            "version": self.version,
            "last_inference": self.last,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.record(),
                "fail": {"count": sum(one.count for one in failures), "ns": sum(one.ns for one in failures)},
                "queue": self.queue.record(),
                "compute_input": self.compute_input.record(),
                "compute_infer": self.compute_infer.record(),
                "compute_output": self.compute_output.record(),
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [
                {"batch_size": size, "compute_input": nothing, "compute_infer": infer.record(), "compute_output": out.record()}
                for size, (infer, out) in sorted(self.batches.items())
            ],
        }


class TritonCounters(Collector):
    """The statistics of each model that is served, and how many pictures wait, under the names that Triton gave them."""

    def __init__(self, served: Callable[[], Iterable[tuple[Statistics, int]]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        served = list(self._served())

        def metric(name: str, text: str, read: Callable[[Statistics], float]) -> Metric:
            found = Metric(name, text, "counter")
            for one, _ in served:
                found.add_sample(name, {"model": one.model, "version": one.version}, read(one))
            return found

        yield metric("nv_inference_request_success", "Requests that were answered", lambda one: one.success.count)
        failure = Metric("nv_inference_request_failure", "Requests that were not answered, by reason", "counter")
        depth = Metric("nv_inference_pending_request_count", "Pictures that wait for the engine", "gauge")
        for one, waiting in served:
            labels = {"model": one.model, "version": one.version}
            for reason in REASONS:
                failure.add_sample(failure.name, {**labels, "reason": reason}, one.fail[reason].count)
            depth.add_sample(depth.name, labels, waiting)
        yield failure
        yield depth
        yield metric("nv_inference_count", "Pictures that went through the engine", lambda one: one.inferences)
        yield metric("nv_inference_exec_count", "Batches that went through the engine", lambda one: one.executions)
        for stage, text, read in (
            ("request", "from arrival to answer, of answered requests", lambda one: one.success.ns),
            ("queue", "that pictures waited for the engine", lambda one: one.queue.ns),
            ("compute_input", "from bytes to the network's input", lambda one: one.compute_input.ns),
            ("compute_infer", "that the engine took", lambda one: one.compute_infer.ns),
            ("compute_output", "that handing out the engine's results took", lambda one: one.compute_output.ns),
        ):
            name = f"nv_inference_{stage}_duration_us"
            yield metric(name, f"Microseconds {text}", lambda one, read=read: read(one) // 1000)  # type: ignore[misc]
