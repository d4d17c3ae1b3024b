"""Metrics for Prometheus: counters with Triton's names, histograms, and the statistics of Triton's protocol extension."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
STAGES = {
    "queue": "Seconds an image waited for the engine",
    "decode": "Seconds from an encoded image to the network's input",
    "inference": "Seconds of the engine per batch",
    "total": "Seconds from a request's arrival to its response",
}
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
REASONS = ("REJECTED", "CANCELED", "OTHER")  # Triton's names: no room; deadline or disconnect; anything else


class Metrics:
    """The histograms and counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        labels = ("model", "version")
        self.stages = {
            stage: Histogram(f"vgg_{stage}_seconds", text, labels, buckets=SECONDS, registry=registry)
            for stage, text in STAGES.items()
        }
        self.batches = Histogram("vgg_batch_size", "Images per batch", labels, buckets=SIZES, registry=registry)
        self.requests = Counter("vgg_http_requests", "HTTP requests", ("method", "route", "status"), registry=registry)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        # The client library appends _total to the names of counters in HELP and TYPE lines; Triton's names have no _total.
        return re.sub(rb"(?m)^(# (?:HELP|TYPE) nv_\w+?)_total ", rb"\1 ", generate_latest(self.registry))


class Duration(TypedDict):
    """How many times something happened, and the total time in nanoseconds."""

    count: int
    ns: int


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


class Statistics:
    """The statistics of one model, with the fields of Triton's statistics extension."""

    def __init__(self, model: str, version: str, metrics: Metrics) -> None:
        self.labels = {"model": model, "version": version}
        self.durations = {name: _zero() for name in DURATIONS}
        self.failures = dict.fromkeys(REASONS, 0)
        self.inferences = self.executions = 0
        self._last = 0  # milliseconds since 1970
        self._batches: dict[int, BatchStatistics] = {}
        self._stages = {stage: histogram.labels(model, version) for stage, histogram in metrics.stages.items()}
        self._sizes = metrics.batches.labels(model, version)

    def batch(self, size: int, inferred: float, output: float) -> None:
        """Record a batch that went through the engine; times in seconds."""
        self.inferences += size
        self.executions += 1
        self._last = int(time.time() * 1000)
        if size not in self._batches:
            self._batches[size] = BatchStatistics(
                batch_size=size, compute_input=_zero(), compute_infer=_zero(), compute_output=_zero()
            )
        for duration in (self._batches[size]["compute_infer"], self.durations["compute_infer"]):
            _add(duration, inferred)
        for duration in (self._batches[size]["compute_output"], self.durations["compute_output"]):
            _add(duration, output)
        self._sizes.observe(size)
        self._stages["inference"].observe(inferred)

    def queued(self, seconds: float) -> None:
        """Record the time an image waited for the engine."""
        _add(self.durations["queue"], seconds)
        self._stages["queue"].observe(seconds)

    def decoded(self, seconds: float) -> None:
        """Record the time from an encoded image to the network's input."""
        _add(self.durations["compute_input"], seconds)
        self._stages["decode"].observe(seconds)

    def succeeded(self, seconds: float) -> None:
        """Record a successful request."""
        _add(self.durations["success"], seconds)
        self._stages["total"].observe(seconds)

    def failed(self, reason: str, seconds: float) -> None:
        """Record a failed request, with one of REASONS."""
        _add(self.durations["fail"], seconds)
        self.failures[reason] += 1

    def record(self) -> ModelStatistics:
        """The model's entry in a response of the statistics extension."""
        return {
            "name": self.labels["model"],
            "version": self.labels["version"],
            "last_inference": self._last,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": self.durations,
            "batch_stats": [batch for _, batch in sorted(self._batches.items())],
        }


def _zero() -> Duration:
    return {"count": 0, "ns": 0}


def _add(duration: Duration, seconds: float) -> None:
    duration["count"] += 1
    duration["ns"] += round(seconds * 1e9)


class TritonCounters(Collector):
    """The statistics of each model and its queue length, with Triton's metric names."""

    def __init__(self, served: Callable[[], Iterable[tuple[Statistics, int]]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        served = list(self._served())

        def counter(name: str, text: str, read: Callable[[Statistics], float]) -> Metric:
            metric = Metric(name, text, "counter")
            for statistics, _ in served:
                metric.add_sample(name, statistics.labels, read(statistics))
            return metric

        yield counter("nv_inference_request_success", "Successful requests", lambda one: one.durations["success"]["count"])
        failure = Metric("nv_inference_request_failure", "Failed requests, by reason", "counter")
        pending = Metric("nv_inference_pending_request_count", "Images that wait for the engine", "gauge")
        for statistics, waiting in served:
            for reason, count in statistics.failures.items():
                failure.add_sample(failure.name, {**statistics.labels, "reason": reason}, count)
            pending.add_sample(pending.name, statistics.labels, waiting)
        yield failure
        yield pending
        yield counter("nv_inference_count", "Images inferred", lambda one: one.inferences)
        yield counter("nv_inference_exec_count", "Batches inferred", lambda one: one.executions)
        for name, key, text in (
            ("request", "success", "from arrival to response, of successful requests"),
            ("queue", "queue", "that images waited for the engine"),
            ("compute_input", "compute_input", "from encoded images to the network's input"),
            ("compute_infer", "compute_infer", "of the engine"),
            ("compute_output", "compute_output", "that distributing the engine's results took"),
        ):

            def microseconds(one: Statistics, key: str = key) -> int:
                return one.durations[key]["ns"] // 1000

            yield counter(f"nv_inference_{name}_duration_us", f"Microseconds {text}", microseconds)
