"""Steps and arrivals -> figures. Pure.

latency       a token's decode step, stamped when its batch has been computed and nothing of it is encoded yet -> the
              read that brought the last byte of its SSE frame to the client; both by the machine's monotonic clock
tokens/s      tokens of all steps / (first step -> last arrival)
CPU           each process's user and system time in that span, over the tokens
round trips   times that the worker waited for Redis in that span, over the steps
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from bench.relay.case import Case


class WorkerReport(msgspec.Struct):
    """What the simulated worker says of a case."""

    stamps_ns: list[int]  # time.monotonic_ns() of each step
    cpu_s: float
    num_round_trips: int
    num_refused: int  # appends that Redis refused; there is no reason for any


class Result(msgspec.Struct, frozen=True):
    """The figures of one case."""

    case: Case
    tokens_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    cpu_us_per_token: dict[str, float]  # by process: api, redis, worker, client
    round_trips_per_step: float


class Broken(ValueError):
    """The streams are not what the steps published."""


def latencies_ns(
    stamps_ns: Sequence[int], streams: Sequence[Sequence[int]]
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Of every token of every stream. Token 0 is prefill's; token i is step i - 1's. Raises Broken."""
    wanted = len(stamps_ns) + 1
    for number, arrivals_ns in enumerate(streams):
        if len(arrivals_ns) != wanted:
            raise Broken(f"stream {number} brought {len(arrivals_ns)} tokens of {wanted}")
    return (np.array(streams, dtype=np.int64)[:, 1:] - np.array(stamps_ns, dtype=np.int64)).ravel()


def result_of(case: Case, report: WorkerReport, streams: Sequence[Sequence[int]], cpu_s: Mapping[str, float]) -> Result:
    """The figures. `streams`: of each, when its tokens arrived; `cpu_s`: of every process but the worker. Raises
    Broken when a token is missing or was refused."""
    if report.num_refused or len(report.stamps_ns) != case.num_steps:
        raise Broken(f"{report.num_refused} events refused in {len(report.stamps_ns)} of {case.num_steps} steps")
    latencies = latencies_ns(report.stamps_ns, streams) / 1e6
    span_s = (max(arrivals_ns[-1] for arrivals_ns in streams) - report.stamps_ns[0]) / 1e9
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 99)))
    cpu = {**cpu_s, "worker": report.cpu_s}
    return Result(
        case=case,
        tokens_per_s=case.num_tokens / span_s,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=float(latencies.max()),
        cpu_us_per_token={name: used_s / case.num_tokens * 1e6 for name, used_s in cpu.items()},
        round_trips_per_step=report.num_round_trips / case.num_steps,
    )
