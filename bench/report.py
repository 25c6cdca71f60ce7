"""Records -> figures. Pure: no clock, no I/O.

Definitions (all times on the client's clock; a request is sent when its connect begins):
    success      every token asked for arrived once, and the response ended as it should; nothing else counts below
                 except where it says so
    duration     start of the measured phase -> end of the group's last request, failures and drain included
    TTFT         send -> first output token
    ITL          each gap between successive output tokens of a request; percentiles over all gaps, so it weighs tokens
    TPOT         per request: (E2E - TTFT) / (output tokens - 1); weighs requests and hides stalls. A request of one
                 token has none
    E2E          send -> last output token
    tokens/s     output (or prompt + output) tokens of successes / duration
    requests/s   successes / duration
    offered      requests sent per second: over the arrival window if the group has a duration, else over the time
                 between the first and the last send
    goodput      successes with TTFT <= limit and TPOT <= limit (TPOT-less ones need only TTFT), per second of duration
    attainment   the same successes as a share of ALL requests sent
    percentile   linear interpolation between closest ranks (numpy's default)

A server that says with no frame how many tokens it has made (some OpenAI-style ones): a frame with text is one token,
and what the count at the end has beyond that counts as come with the last frame. Tokens/s, E2E and TPOT are then right;
TTFT is until the first text that can be shown, and ITL is between frames, with gaps of 0 for the rest. How many tokens
that concerns is `untimed_output_tokens`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.record import RequestRecord
from bench.workload import Concurrency, Group


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of one figure, in milliseconds. None where there is no sample."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Limits:
    """The stated service-level objectives."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class FailureCount:
    """Failures of one kind."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one group. See the module's definitions."""

    group: str
    num_sent: int
    num_succeeded: int
    failures: list[FailureCount]
    duration_s: float
    offered_rps: float | None
    requests_per_s: float
    output_tokens: int
    failed_output_tokens: int  # arrived in requests that failed; in no other figure
    untimed_output_tokens: int  # of `output_tokens`, those without a frame of their own
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Distribution
    itl_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    num_met_limits: int
    attainment: float | None
    goodput_rps: float
    send_delay_ms: Distribution  # open loop: how late requests left the client


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, at least one."""
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def distribution_ms(values_s: Sequence[float]) -> Distribution:
    """Of values in seconds."""
    if not values_s:
        return Distribution(0, None, None, None, None, None)
    ordered = sorted(value * 1000 for value in values_s)
    p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
    return Distribution(len(ordered), sum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def meets_limits(record: RequestRecord, limits: Limits) -> bool:
    """Whether a request counts for goodput."""
    if not record.succeeded or record.ttft_s * 1000 > limits.ttft_ms:
        return False
    tpot_s = record.tpot_s
    return tpot_s is None or tpot_s * 1000 <= limits.tpot_ms


def summarize(group: Group, records: Sequence[RequestRecord], start_s: float, limits: Limits) -> Summary:
    """The figures of `group` from the records of a run (those of other groups are skipped)."""
    records = [record for record in records if record.group == group.name]
    successes = [record for record in records if record.succeeded]
    duration_s = max((record.end_s for record in records), default=start_s) - start_s
    output_tokens = sum(len(record.arrivals_s) for record in successes)
    prompt_tokens = sum(record.prompt_tokens for record in successes)
    num_met = sum(meets_limits(record, limits) for record in records)
    tpots = [tpot_s for record in successes if (tpot_s := record.tpot_s) is not None]

    def per_s(amount: int) -> float:
        return amount / duration_s if duration_s > 0 else 0.0

    return Summary(
        group=group.name,
        num_sent=len(records),
        num_succeeded=len(successes),
        failures=_count_failures(records),
        duration_s=duration_s,
        offered_rps=_offered_rps(group, records),
        requests_per_s=per_s(len(successes)),
        output_tokens=output_tokens,
        failed_output_tokens=sum(len(record.arrivals_s) for record in records) - output_tokens,
        untimed_output_tokens=sum(record.num_untimed for record in successes),
        output_tokens_per_s=per_s(output_tokens),
        total_tokens_per_s=per_s(output_tokens + prompt_tokens),
        ttft_ms=distribution_ms([record.ttft_s for record in successes]),
        itl_ms=distribution_ms([gap_s for record in successes for gap_s in record.itl_s]),
        tpot_ms=distribution_ms(tpots),
        e2e_ms=distribution_ms([record.e2e_s for record in successes]),
        num_met_limits=num_met,
        attainment=num_met / len(records) if records else None,
        goodput_rps=per_s(num_met),
        send_delay_ms=distribution_ms([r.sent_s - r.scheduled_s for r in records if r.scheduled_s is not None]),
    )


def _count_failures(records: Sequence[RequestRecord]) -> list[FailureCount]:
    failures = [record.failure for record in records if record.failure is not None]
    examples = {failure.kind: failure.detail for failure in reversed(failures)}  # the first of each kind
    counts = Counter(failure.kind for failure in failures)
    return [FailureCount(kind, count, examples[kind]) for kind, count in counts.most_common()]


def _offered_rps(group: Group, records: Sequence[RequestRecord]) -> float | None:
    """None for a closed loop, which offers no rate of its own."""
    if isinstance(group.arrivals, Concurrency):
        return None
    if group.duration_s is not None and (group.num_requests is None or len(records) < group.num_requests):
        return len(records) / group.duration_s
    if len(records) < 2:
        return None
    sends = sorted(record.sent_s for record in records)
    return (len(sends) - 1) / (sends[-1] - sends[0]) if sends[-1] > sends[0] else None
