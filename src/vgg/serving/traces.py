"""OpenTelemetry traces: a span for each request, and below it spans of decoding, waiting and the engine.

Names and attributes follow OpenTelemetry's semantic conventions for HTTP and gRPC. The standard OTEL_ environment variables set
everything but the collector's address.
"""

import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from .. import __version__
from ..errors import Error

FLUSH = 3.0  # seconds for the last spans at the end of a shutdown
PATH = "/v1/traces"

Attributes = Mapping[str, str | int]


class Trace:
    """The span of one request."""

    def __init__(self, tracer: Any, headers: Mapping[str, str], started: float) -> None:
        from opentelemetry import propagate, trace

        self._tracer = tracer
        self._epoch = time.time_ns() - time.perf_counter_ns()
        self._span = tracer.start_span(
            "request", propagate.extract(headers), trace.SpanKind.SERVER, start_time=self._nanoseconds(started)
        )
        self._parent = trace.set_span_in_context(self._span)
        self._failed = trace.Status(trace.StatusCode.ERROR)
        self.id = trace.format_trace_id(self._span.get_span_context().trace_id)

    def stage(self, name: str, started: float, ended: float, failed: bool = False, **attributes: int) -> None:
        """Record a part of the request that has ended; times are those of `time.perf_counter`."""
        if self._span.is_recording():
            named = {f"vgg.{key}": value for key, value in attributes.items()}
            span = self._tracer.start_span(name, self._parent, attributes=named, start_time=self._nanoseconds(started))
            if failed:
                span.set_status(self._failed)
            span.end(self._nanoseconds(ended))

    def end(self, name: str, attributes: Attributes, failed: bool) -> None:
        """Record the request, which has ended."""
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(self._failed)
        self._span.end(self._nanoseconds(time.perf_counter()))

    def _nanoseconds(self, moment: float) -> int:
        """Nanoseconds since 1970."""
        return self._epoch + int(moment * 1e9)


current: ContextVar[Trace | None] = ContextVar("trace", default=None)  # of the request that a task works on


class Traces:
    """Exports spans to an OpenTelemetry collector, in a thread of its own. Spans that it can't export are dropped.

    Args:
        collector: its address, such as `http://127.0.0.1:4318`.

    Raises:
        Error: the address is not an HTTP URL.
    """

    def __init__(self, collector: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if urlsplit(collector).scheme not in ("http", "https") or not urlsplit(collector).netloc:
            raise Error(f"the collector of traces must have an address such as http://127.0.0.1:4318, not {collector!r}")
        address = collector.rstrip("/").removesuffix(PATH) + PATH
        resource = Resource.create({"service.name": "vgg", "service.version": __version__})
        self._provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(address)))
        self._tracer = self._provider.get_tracer("vgg.serving", __version__)

    def start(self, headers: Mapping[str, str], started: float) -> Trace:
        """Begin the trace of a request, as a part of the trace that its headers name, and make it the current one."""
        trace = Trace(self._tracer, headers, started)
        current.set(trace)
        return trace

    def close(self) -> None:
        """Export the last spans within `FLUSH` seconds."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(FLUSH)
