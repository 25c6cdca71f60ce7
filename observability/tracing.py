"""Spans to an OpenTelemetry collector, where one is named: what a request went through, in every process it met.

A span is built once it is over, from how long it took, and sent by a thread of the SDK's. What ties the processes
together is the request's W3C traceparent, which travels in its record. OpenTelemetry is an optional extra
(`pip install 'pdq[tracing]'`), loaded only here and only when it is wanted. Prompts and outputs are in no span.

https://www.w3.org/TR/trace-context/ and, for the names, https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from errors import ConfigError
from observability.worker_meters import Attributes
from settings.observability import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

EXPORT_TIMEOUT_S = 2.0  # a collector that is away must not hold up the end of a process
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def valid_traceparent(text: str) -> str:
    """`text` if it is a W3C traceparent, else nothing."""
    found = _TRACEPARENT.fullmatch(text)
    is_valid = found is not None and int(found[1], 16) and int(found[2], 16) and not text.startswith("ff")
    return text if is_valid else ""


class OpenSpan:
    """A span that has begun. `traceparent` is what others go on from; empty when the trace was not chosen."""

    def __init__(self, span: "Span") -> None:
        self._span = span
        context = span.get_span_context()
        is_chosen = span.is_recording() and context.trace_flags.sampled
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01" if is_chosen else ""

    def end(self, attributes: Mapping[str, str | int | float | bool | list[str]], error: str = "") -> None:
        """It is over, well or with `error`, a short word for what went wrong."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class Tracing:
    """One per process; its spans are sent every few seconds and when it is closed."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pdq")

    def begin(self, name: str, parent: str, began_ns: int, attributes: Attributes) -> OpenSpan:
        """A request that a client sent, below the traceparent that it named, if it did; `began_ns`: Unix time."""
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            name, _context_of(parent), SpanKind.SERVER, attributes=attributes, start_time=began_ns
        )
        return OpenSpan(span)

    def add(
        self, name: str, parent: str, began_ns: int, ended_ns: int, attributes: Attributes, error: str = ""
    ) -> None:
        """See worker_meters.Spans."""
        span = self._tracer.start_span(name, _context_of(parent), attributes=attributes, start_time=began_ns)
        if error:
            span.set_attribute("error.type", error)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def open_tracing(settings: TracingSettings, role: str, instance: str) -> Tracing | None:
    """None unless an endpoint is set. `role` is what the process is, `instance` which one. Raises ConfigError."""
    if not settings.otlp_endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise ConfigError(
            f"PDQ_TRACING__OTLP_ENDPOINT = {settings.otlp_endpoint!r} needs OpenTelemetry, which is not installed "
            f"({error.name}): pip install 'pdq[tracing]'"
        ) from None
    url = urlsplit(settings.otlp_endpoint)
    endpoint = url._replace(path="/v1/traces" if url.path in ("", "/") else url.path).geturl()
    resource = Resource({"service.namespace": "pdq", "service.name": f"pdq-{role}", "service.instance.id": instance})
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_share)), resource=resource, shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=settings.export_every_s * 1000))
    return Tracing(provider)


def _context_of(traceparent: str) -> "Context":
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})
