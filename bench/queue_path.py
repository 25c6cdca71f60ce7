"""What the queues add to the first token of an idle cluster.

added latency = p50 of TTFT over HTTP (one request at a time, nothing else running)
                minus p50 of the prefill of the same prompts in this process (same model, dtype and thread count).

The two ways take turns, prompt by prompt: a machine's speed drifts by more than what is measured here, and both ways
then find the caches and the clocks as the other one left them. Neither runs while the other does. This file must not
know torch; the in-process prefill is handed in as a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.load import Load, build_body, send_request
from bench.record import RequestRecord
from bench.report import Distribution, distribution_ms
from bench.workload import Group
from errors import PdqError


class QueuePathFailed(PdqError):
    """A request failed, so there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class QueuePath:
    """Both halves and their difference."""

    http_ttft_ms: Distribution
    in_process_ms: Distribution
    added_p50_ms: float  # p50 - p50
    paired_added_ms: Distribution  # per prompt: TTFT - prefill of the same prompt


def compare(ttfts_s: Sequence[float], prefills_s: Sequence[float]) -> QueuePath:
    """The figures of equally long, equally ordered samples, at least one."""
    pairs = zip(ttfts_s, prefills_s, strict=True)
    http, in_process = distribution_ms(ttfts_s), distribution_ms(prefills_s)
    paired = distribution_ms([ttft_s - prefill_s for ttft_s, prefill_s in pairs])
    assert http.p50 is not None and in_process.p50 is not None, "no samples"
    return QueuePath(http, in_process, http.p50 - in_process.p50, paired)


async def measure_in_turn(
    load: Load, group: Group, num_warmup: int, prefill: Callable[[list[int]], float], on_end: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """(TTFT over HTTP, seconds that `prefill` takes) of every prompt, in order. Raises QueuePathFailed.

    Warm-up requests have indexes above the measured ones, so that their prompts are others.
    """
    assert group.num_requests is not None
    measured = range(group.num_requests)
    warmup = range(group.num_requests, group.num_requests + num_warmup)
    ttfts_s, prefills_s = [], []
    for index in (*warmup, *measured):
        ttft_s = _checked_ttft_s(await send_request(load, group, index, build_body(load, group, index)))
        prompt = load.prompts.prompt(group.name, index, group.prompt_tokens, group.shared_prefix_tokens)
        prefill_s = prefill(prompt)  # blocks the event loop: nothing else is to run
        if index in measured:
            ttfts_s.append(ttft_s)
            prefills_s.append(prefill_s)
        on_end()
    return ttfts_s, prefills_s


def _checked_ttft_s(record: RequestRecord) -> float:
    if record.failure is not None:
        raise QueuePathFailed(f"request {record.index} failed: {record.failure.kind} {record.failure.detail}")
    return record.ttft_s
