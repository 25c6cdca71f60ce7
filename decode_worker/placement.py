"""Whether a prompt is prefilled by the decode worker that will decode it, and in which chunks.

Pure: figures in, a bid out. Local is faster where the decode worker is idle and the prefill workers have much ahead of
them, or where most of the prompt lies here already: the KV need not travel, and the sequence is in the batch at once.
It is never allowed to cost a running stream more than a bounded part of a step, nor to keep the worker busy for long.

    local_s(n)  = n * seconds per token here + a decode step between any two chunks
    remote_s(n) = (tokens ahead + n) / rate of the prefill workers + hand-off + n / rate of the pulls

Both are lines in n, so that "local is no slower" is a bound of n that grows with what is ahead: a `Bid`, which Redis
can apply to a job that it has at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from broker.bid import Bid
from decode_worker.prefill_pace import PrefillPace
from messages.worker_status import Role, WorkerState, WorkerStatus

UNBOUNDED = 1e18
MAX_STRETCH = 0.9  # of a decode step: what a chunk may add to it
LEAST_CHUNK_TOKENS = 8  # smaller ones read the weights more often than it pays
TRY_TOKENS = 64  # so long a prompt is taken to measure again


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings allow."""

    mode: Literal["auto", "always", "never"]
    max_stall_s: float  # that a running stream waits more for a token
    max_prefill_s: float  # for which a prompt may keep this worker busy
    token_budget: int  # of one chunk


@dataclass(frozen=True, slots=True)
class Here:
    """This worker."""

    num_running: int
    step_s: float  # a decode step of late; 0: not known
    room: int  # sequences that it could take more
    free_tokens: int  # for whose KV there are blocks
    cached_tokens: int = 0  # whose KV the prefix cache has


@dataclass(frozen=True, slots=True)
class There:
    """The prefill workers, and the way from them."""

    num_workers: int
    tokens_per_s: float  # of all of them; 0: not known
    handoff_s: float  # from a decode job's taking to its joining, its pull aside; 0: not known
    pull_tokens_per_s: float  # 0: not known
    shares_cores: bool = False  # whether some of them compute on the cores that we do


def remote_workers(workers: Sequence[WorkerStatus]) -> tuple[int, float]:
    """(how many prefill workers are ready, the tokens that they compute per second together). Who has not measured yet
    counts like the mean of those who have."""
    rates = [
        worker.tokens_per_s for worker in workers if worker.role is Role.PREFILL and worker.state is WorkerState.READY
    ]
    known = [rate for rate in rates if rate > 0]
    return len(rates), len(rates) * sum(known) / len(known) if known else 0.0


def are_beside(workers: Sequence[WorkerStatus], host: str) -> bool:
    """Whether a prefill worker is ready on this host, and so computes on the same cores."""
    return any(
        worker.role is Role.PREFILL and worker.state is WorkerState.READY and worker.host == host for worker in workers
    )


def chunk_tokens(limits: Limits, here: Here, pace: PrefillPace) -> int:
    """The most tokens of the next chunk; 0: none while those run who run."""
    if limits.mode == "always" or here.num_running == 0:
        return limits.token_budget
    if not pace.is_known or here.step_s <= 0:
        return 0
    chunk = min(limits.token_budget, pace.tokens_within(min(limits.max_stall_s, MAX_STRETCH * here.step_s)))
    return chunk if chunk >= LEAST_CHUNK_TOKENS else 0


def token_s(limits: Limits, here: Here, pace: PrefillPace) -> float:
    """Seconds per prompt token here, with the decode steps between the chunks; UNBOUNDED when none is computed."""
    chunk = chunk_tokens(limits, here, pace)
    if chunk == 0:
        return UNBOUNDED
    between_s = here.step_s if here.num_running else 0.0
    return (pace.seconds(chunk) + between_s) / chunk


def bid_for(
    limits: Limits, here: Here, there: There, pace: PrefillPace, *, looks: bool, tries: bool = False
) -> Bid | None:
    """The prompts that this worker would prefill now; None: none.

    `looks`: whether prompts that are too long may come to be compared with the prefix cache. `tries`: whether what was
    measured is old; a worker that was slow for a while would else never learn that it is no longer.
    """
    if limits.mode == "never" or here.room <= 0 or here.free_tokens <= 0:
        return None
    if limits.mode == "always":
        return Bid(here.room, here.free_tokens, UNBOUNDED, 0.0)
    if there.shares_cores and there.num_workers:
        # They compute on our cores as fast as we would, and leave us a part of them meanwhile. Two cores of Zen 4,
        # SmolLM2, 16 streams: 474 tokens/s where they prefill, 445 where we do.
        return None
    if not pace.is_known:
        return None
    each_s = token_s(limits, here, pace)
    if each_s >= UNBOUNDED:
        return None
    most = min(here.free_tokens, int(limits.max_prefill_s / each_s))
    remote_s = 1 / there.tokens_per_s if there.tokens_per_s > 0 else each_s  # a stranger is taken for one like us
    if there.num_workers == 0:
        free, per_ahead = UNBOUNDED, 0.0
    else:
        more_s = each_s - remote_s - (1 / there.pull_tokens_per_s if there.pull_tokens_per_s > 0 else 0.0)
        free = there.handoff_s / more_s if more_s > 0 else UNBOUNDED
        per_ahead = remote_s / more_s if more_s > 0 else 0.0
    if tries and here.num_running == 0:
        most, free = max(most, min(here.free_tokens, TRY_TOKENS)), max(free, TRY_TOKENS)
    look = min(here.free_tokens, here.cached_tokens + most) if looks and here.cached_tokens else 0
    if most < 1 or (free < 1 and per_ahead == 0 and look == 0):
        return None
    return Bid(1, most, free, per_ahead, look)


def plan_chunks(remaining_tokens: Sequence[int], budget: int) -> list[int]:
    """Tokens of each sequence in the next step, the oldest first; who gets none is left out."""
    shares = []
    for remaining in remaining_tokens:
        share = min(remaining, budget)
        if share == 0:
            break
        shares.append(share)
        budget -= share
    return shares


def is_local(bid: Bid | None, num_tokens: int, num_cached: int) -> bool:
    """Whether a job that has come is computed here, `num_cached` of its tokens lying here already."""
    return bid is not None and bid.fits(num_tokens - num_cached, 0, is_new=False)
