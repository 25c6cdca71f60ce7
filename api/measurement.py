"""One request as the API process that it came to sees it: how long each part took, and its span.

Measured where it was created and nowhere else; another process that comes to it later measures nothing, so that nothing
is counted twice. Knows no Redis and no HTTP.
"""

import time

import msgspec

from api.meters import ApiMeters
from api.timelines import Timeline
from broker.deadline import now_ms
from errors import RequestError
from messages.request import GenerationRequest
from observability.tracing import OpenSpan, Tracing
from telemetry import get_logger

log = get_logger()

LEFT = "left"  # the client went, and the sequence goes on


class Measurement:
    """Of one request. `request` is the one to go on with: it names our span as the one that work on it belongs to."""

    def __init__(self, meters: ApiMeters, tracing: Tracing | None, request: GenerationRequest, model_name: str) -> None:
        self._meters, self._model_name = meters, model_name
        # Once by the wall's clock, from there on by one that is never set.
        self._arrived_s = time.monotonic() - max(0, now_ms() - request.created_ms) / 1000
        self._came_s: dict[int, float] = {}  # by choice: when its last tokens came
        self._num_tokens = dict.fromkeys(range(request.n), 0)
        self._reasons: dict[int, str] = {}
        self._first_token_s = 0.0
        self._timeline: Timeline | None = None  # from its creation on
        self._tracing, self._span = tracing, self._begin_span(tracing, request)
        trace = self._span.traceparent if self._span is not None else ""
        self.request = msgspec.structs.replace(request, trace=trace)

    def created(self, request: GenerationRequest) -> None:
        """It is on the queue, as `request`: its id may be another now."""
        self.request = request
        num_tokens = len(request.prompt_token_ids)
        self._timeline = self._meters.timelines.begin(request.request_id, request.created_ms, num_tokens)
        self._meters.admission.observe(time.monotonic() - self._arrived_s)
        self._meters.prompt_tokens.observe(num_tokens)

    def came(self, choice: int, num_tokens: int, came_s: float) -> None:
        """So many tokens of a choice came together, at `came_s` (time.monotonic())."""
        before_s = self._came_s.get(choice)
        if before_s is None:
            self._meters.first_token.observe(came_s - self._arrived_s)
            if not self._first_token_s:
                self._first_token_s = came_s - self._arrived_s
                if self._timeline is not None:
                    self._timeline.first_token_ms = self._timeline.created_ms + round(self._first_token_s * 1000)
        else:
            self._meters.inter_token.observe(came_s - before_s)
        if num_tokens > 1:
            self._meters.inter_token.observe(0.0, num_tokens - 1)
        self._came_s[choice] = came_s
        self._num_tokens[choice] += num_tokens

    def relayed(self, num_tokens: int, came_s: float) -> None:
        """Tokens that came at `came_s` have gone on to the client."""
        self._meters.relay.observe(time.monotonic() - came_s, num_tokens)

    def ended(self, choice: int, reason: str) -> None:
        """A choice ended by itself, or with an error."""
        if choice not in self._reasons:
            self._reasons[choice] = reason
            self._meters.ended[reason] += 1
            if reason in ("stop", "length"):
                self._meters.sequence.observe(time.monotonic() - self._arrived_s)
                if choice in self._came_s:  # a score has no tokens
                    self._meters.output_tokens.observe(self._num_tokens[choice])

    def refused(self, error: Exception) -> None:
        """It was not created."""
        if self._span is not None:
            self._span.end({"pdq.request_id": self.request.request_id}, type(error).__name__)
            self._span = None

    def closed(self, unended_as: str) -> None:
        """Its reader is gone; what has not ended did so `unended_as`."""
        if self._timeline is None:  # or nobody knows whether
            self.refused(RequestError())
            return
        for choice in range(self.request.n):
            self.ended(choice, unended_as)
        reasons = [self._reasons[choice] for choice in range(self.request.n)]
        took_s = time.monotonic() - self._arrived_s
        timeline = self._timeline
        timeline.ended_ms = timeline.created_ms + round(took_s * 1000)
        timeline.finish_reason, timeline.output_tokens = ",".join(reasons), sum(self._num_tokens.values())
        log.info(
            "request_ended",
            request_id=self.request.request_id,
            finish_reason=",".join(reasons),
            prompt_tokens=len(self.request.prompt_token_ids),
            output_tokens=sum(self._num_tokens.values()),
            first_token_ms=round(self._first_token_s * 1000, 1),
            ms=round(took_s * 1000, 1),
        )
        if self._span is not None:
            self._end_span(self._span, reasons, took_s)
            self._span = None

    def _begin_span(self, tracing: Tracing | None, request: GenerationRequest) -> OpenSpan | None:
        if tracing is None:
            return None
        sampling = request.sampling
        # https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/; a score has no operation of that list.
        operation = "text_completion" if request.kind == "generate" else "score"
        attributes: dict[str, str | int | float | bool] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "pdq",
            "gen_ai.request.model": self._model_name,
            "gen_ai.request.max_tokens": sampling.max_new_tokens,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.choice.count": request.n,
            "pdq.priority": request.priority.value,
        }
        if sampling.do_sample:
            attributes |= {"gen_ai.request.temperature": sampling.temperature, "gen_ai.request.top_p": sampling.top_p}
        began_ns = request.created_ms * 1_000_000
        return tracing.begin(f"{operation} {self._model_name}", request.trace, began_ns, attributes)

    def _end_span(self, span: OpenSpan, reasons: list[str], took_s: float) -> None:
        if self._tracing is not None and span.traceparent and self._first_token_s:
            ended_ns = time.time_ns()
            began_ns = ended_ns - round((took_s - self._first_token_s) * 1e9)
            facts = {"pdq.request_id": self.request.request_id}
            self._tracing.add("stream", span.traceparent, began_ns, ended_ns, facts)
        span.end(
            {
                "gen_ai.response.id": self.request.request_id,
                "gen_ai.response.model": self._model_name,
                "gen_ai.response.finish_reasons": reasons,
                "gen_ai.usage.input_tokens": len(self.request.prompt_token_ids),
                "gen_ai.usage.output_tokens": sum(self._num_tokens.values()),
                "pdq.request_id": self.request.request_id,
            },
            "error" if "error" in reasons else "",
        )
