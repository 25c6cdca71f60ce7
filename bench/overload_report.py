"""What a server did under more load than it can take: records -> figures and a verdict. Pure: no clock, no I/O.

Definitions (all times on the client's clock):
    refused      answered with 503; its latency is send -> end of the answer
    admitted     every other request, whatever became of it
    kept         the admitted that succeeded within the limits of TTFT and TPOT (bench/report.py), as a share of them
    wasted       prefill tokens computed beyond the prompts of the requests that succeeded, as a share of all computed;
                 computed twice (after a preemption, a lost transfer) counts as wasted. Prompts are distinct, so that no
                 prefix cache computes less
    recovery     from the last arrival until the first of NUM_NORMAL probes in a row that are normal is sent; a probe is
                 normal when neither its TTFT nor its E2E is above NORMAL_FACTOR times the slowest of an idle server
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.record import RequestRecord
from bench.report import Distribution, Limits, distribution_ms, meets_limits

REFUSED = "http_503"
NUM_NORMAL = 3
NORMAL_FACTOR = 1.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """What must hold."""

    refusal_p99_ms: float = 50.0
    kept_share: float = 0.9
    wasted_share: float = 0.01
    recovery_s: float = 5.0


@dataclass(frozen=True, slots=True)
class OverloadReport:
    """The figures. None: not known."""

    num_sent: int
    num_admitted: int
    num_kept: int
    num_failed: int  # admitted, and no success
    refusal_ms: Distribution
    ttft_ms: Distribution  # of the admitted that succeeded
    tpot_ms: Distribution
    kept_share: float | None
    computed_tokens: int | None
    wasted_share: float | None
    recovery_s: float | None


def report_of(records: Sequence[RequestRecord], limits: Limits, computed_tokens: int | None) -> OverloadReport:
    """Of the overload's records; the recovery is not among them."""
    refused = [record for record in records if is_refused(record)]
    admitted = [record for record in records if not is_refused(record)]
    succeeded = [record for record in admitted if record.succeeded]
    num_kept = sum(meets_limits(record, limits) for record in admitted)
    wasted = None
    if computed_tokens:
        wasted = max(0.0, 1 - sum(record.prompt_tokens for record in succeeded) / computed_tokens)
    return OverloadReport(
        num_sent=len(records),
        num_admitted=len(admitted),
        num_kept=num_kept,
        num_failed=len(admitted) - len(succeeded),
        refusal_ms=distribution_ms([record.end_s - record.sent_s for record in refused]),
        ttft_ms=distribution_ms([record.ttft_s for record in succeeded]),
        tpot_ms=distribution_ms([tpot_s for record in succeeded if (tpot_s := record.tpot_s) is not None]),
        kept_share=num_kept / len(admitted) if admitted else None,
        computed_tokens=computed_tokens,
        wasted_share=wasted,
        recovery_s=None,
    )


def recovery_s(probes: Sequence[RequestRecord], idle: Sequence[RequestRecord], end_s: float) -> float | None:
    """When the server was back to normal, in seconds after `end_s`; None when it never was."""
    good = [record for record in idle if record.succeeded]
    if not good:
        return None
    ttft_s = NORMAL_FACTOR * max(record.ttft_s for record in good)
    e2e_s = NORMAL_FACTOR * max(record.e2e_s for record in good)
    verdicts = [probe.succeeded and probe.ttft_s <= ttft_s and probe.e2e_s <= e2e_s for probe in probes]
    for place in range(len(verdicts) - NUM_NORMAL + 1):
        if all(verdicts[place : place + NUM_NORMAL]):
            return probes[place].sent_s - end_s
    return None


def missed(report: OverloadReport, bounds: Bounds) -> list[str]:
    """Every bound that does not hold, in a sentence."""
    problems = []
    p99 = report.refusal_ms.p99
    if p99 is None:
        problems.append("nothing was refused: this was no overload")
    elif p99 > bounds.refusal_p99_ms:
        problems.append(f"p99 of the refusals is {p99:.1f} ms, at most {bounds.refusal_p99_ms:g} ms are allowed")
    if report.kept_share is None or report.kept_share < bounds.kept_share:
        share = "none" if report.kept_share is None else f"{report.kept_share:.1%}"
        problems.append(f"{share} of the admitted kept the limits, at least {bounds.kept_share:.0%} must")
    if report.wasted_share is not None and report.wasted_share > bounds.wasted_share:
        problems.append(f"{report.wasted_share:.1%} of prefill was in vain, at most {bounds.wasted_share:.0%} may be")
    if report.recovery_s is None or report.recovery_s > bounds.recovery_s:
        took = "never" if report.recovery_s is None else f"after {report.recovery_s:.1f} s"
        problems.append(f"latency was back to normal {took}, {bounds.recovery_s:g} s are allowed")
    return problems


def is_refused(record: RequestRecord) -> bool:
    """Whether the server did not take it."""
    return record.failure is not None and record.failure.kind == REFUSED
