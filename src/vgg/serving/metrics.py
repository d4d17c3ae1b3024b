"""Metrics for Prometheus: counters with Triton's names, histograms, and the statistics of Triton's protocol extension."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
STAGES = ("queue", "decode", "inference", "total")
REASONS = ("REJECTED", "CANCELED", "OTHER")  # Triton's names: no room; deadline or disconnect; anything else


class Metrics:
    """The histograms and counters of one server, in a registry of their own."""

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
                    "Seconds an image waited for the engine",
                    "Seconds from an encoded image to the network's input",
                    "Seconds of the engine per batch",
                    "Seconds from a request's arrival to its response",
                ),
                strict=True,
            )
        }
        self.batches = Histogram("vgg_batch_size", "Images per batch", labels, buckets=SIZES, registry=self.registry)
        self.requests = Counter("vgg_http_requests", "HTTP requests", ("method", "route", "status"), registry=self.registry)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        # The client library appends _total to the names of counters in HELP and TYPE lines; Triton's names have no _total.
        return re.sub(rb"(?m)^(# (?:HELP|TYPE) nv_\w+?)_total ", rb"\1 ", generate_latest(self.registry))


class Duration(TypedDict):
    count: int
    ns: int


@dataclass
class Durations:
    """How many times something happened, and the total time."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += round(seconds * 1e9)

    def record(self) -> Duration:
        return {"count": self.count, "ns": self.ns}


class BatchStatistics(TypedDict):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(TypedDict):
    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]
    batch_stats: list[BatchStatistics]


@dataclass
class Statistics:
    """The statistics of one model, with the fields of Triton's statistics extension."""

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
        """Record a batch that went through the engine; times in seconds."""
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
        """Record the duration of one of STAGES."""
        if stage == "queue":
            self.queue.add(seconds)
        elif stage == "decode":
            self.compute_input.add(seconds)
        self.metrics.stages[stage].labels(self.model, self.version).observe(seconds)

    def succeeded(self, seconds: float) -> None:
        """Record a successful request."""
        self.success.add(seconds)
        self.observe("total", seconds)

    def failed(self, reason: str, seconds: float) -> None:
        """Record a failed request, with one of REASONS."""
        self.fail[reason].add(seconds)

    def record(self) -> ModelStatistics:
        """The model's entry in a response of the statistics extension."""
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
    """The statistics of each model and its queue length, with Triton's metric names."""

    def __init__(self, served: Callable[[], Iterable[tuple[Statistics, int]]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        served = list(self._served())

        def metric(name: str, text: str, read: Callable[[Statistics], float]) -> Metric:
            counter = Metric(name, text, "counter")
            for one, _ in served:
                counter.add_sample(name, {"model": one.model, "version": one.version}, read(one))
            return counter

        yield metric("nv_inference_request_success", "Successful requests", lambda one: one.success.count)
        failure = Metric("nv_inference_request_failure", "Failed requests, by reason", "counter")
        depth = Metric("nv_inference_pending_request_count", "Images that wait for the engine", "gauge")
        for one, waiting in served:
            labels = {"model": one.model, "version": one.version}
            for reason in REASONS:
                failure.add_sample(failure.name, {**labels, "reason": reason}, one.fail[reason].count)
            depth.add_sample(depth.name, labels, waiting)
        yield failure
        yield depth
        yield metric("nv_inference_count", "Images inferred", lambda one: one.inferences)
        yield metric("nv_inference_exec_count", "Batches inferred", lambda one: one.executions)
        for stage, text, read in (
            ("request", "from arrival to response, of successful requests", lambda one: one.success.ns),
            ("queue", "that images waited for the engine", lambda one: one.queue.ns),
            ("compute_input", "from encoded images to the network's input", lambda one: one.compute_input.ns),
            ("compute_infer", "of the engine", lambda one: one.compute_infer.ns),
            ("compute_output", "that distributing the engine's results took", lambda one: one.compute_output.ns),
        ):
            name = f"nv_inference_{stage}_duration_us"
            yield metric(name, f"Microseconds {text}", lambda one, read=read: read(one) // 1000)  # type: ignore[misc]
