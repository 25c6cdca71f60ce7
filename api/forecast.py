"""How much may wait before a new request, so that it is served in time; and when to come again if more does.

Pure: what the workers say of themselves and what was asked in, numbers out. broker/backlog.py holds the numbers against
what waits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from broker.backlog import UNBOUNDED, Backlog, Reason, Room
from messages.request import Priority
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.broker import QueueSettings

LEAST_RETRY_S, MOST_RETRY_S = 1, 30
LARGEST_OWN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Supply:
    """What the ready workers do together. 0: not known yet, and nobody is refused for it."""

    tokens_per_s: float = 0.0  # of prefill
    decode_places: float = 0.0  # sequences that run at once
    sequences_per_s: float = 0.0  # that leave the decode batches while all places are taken


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for. Before it is tokenized its prompt counts for nothing."""

    priority: Priority = Priority.NORMAL
    num_choices: int = 1
    prompt_tokens: int = 0
    timeout_s: float | None = None  # until its deadline; None: it has none


def supply_of(workers: Sequence[WorkerStatus]) -> Supply:
    """What `workers` do together. One that has no figure yet is taken for the mean of the others."""
    ready = [worker for worker in workers if worker.state == WorkerState.READY]
    prefill = [worker.tokens_per_s for worker in ready if worker.role == Role.PREFILL]
    decode = [worker for worker in ready if worker.role == Role.DECODE]
    stays_s = [worker.sequence_s for worker in decode if worker.sequence_s > 0]
    places = sum(places_of(worker) for worker in decode)
    known = [rate for rate in prefill if rate > 0]
    return Supply(
        tokens_per_s=sum(known) / len(known) * len(prefill) if known else 0.0,
        decode_places=places,
        sequences_per_s=places / (sum(stays_s) / len(stays_s)) if stays_s else 0.0,
    )


def places_of(worker: WorkerStatus) -> float:
    """Sequences that a decode worker runs at once: its slots, or as many as its KV blocks hold of today's size."""
    used = worker.num_blocks - worker.free_blocks
    if not worker.num_running or not used:
        return worker.max_running
    return min(worker.max_running, worker.num_blocks * worker.num_running / used)


def room_for(asked: Asked, supply: Supply, settings: QueueSettings) -> Room:
    """What may wait before the request.

    jobs              the class's share of max_waiting
    tokens ahead      (they + its own) / rate <= ttft_limit_s, where its own count for at most half of the limit, lest
                      a long prompt is refused for ever; and <= the time it has, its own in full
    sequences ahead   they + its own - places <= what leaves within place_limit_s, and while the tokens ahead are done

    Where nothing waits everybody is let in: the rates are what was measured last, and might never be again.
    """
    rate = supply.tokens_per_s
    own = asked.prompt_tokens * asked.num_choices
    tokens_ahead = UNBOUNDED
    if rate > 0 and settings.ttft_limit_s > 0:
        limit = settings.ttft_limit_s * rate
        tokens_ahead = limit - min(own, LARGEST_OWN_SHARE * limit)
    if rate > 0 and asked.timeout_s is not None:
        tokens_ahead = max(0.0, min(tokens_ahead, asked.timeout_s * rate - own))
    leaving = supply.sequences_per_s
    is_bounded = leaving > 0 and settings.place_limit_s > 0
    return Room(
        jobs=most_jobs(asked.priority, settings),
        tokens_ahead=tokens_ahead,
        # A request of more choices than there are places gets them one after the other.
        sequences_ahead=max(asked.num_choices, supply.decode_places + leaving * settings.place_limit_s)
        if is_bounded
        else UNBOUNDED,
        sequences_per_token=min(UNBOUNDED, leaving / rate) if is_bounded and rate > 0 else 0.0,
    )


def most_jobs(priority: Priority, settings: QueueSettings) -> int:
    """Up to how many waiting jobs a class is let in: low leaves room for normal, and normal for high."""
    share = {Priority.HIGH: 1.0, Priority.NORMAL: settings.normal_share, Priority.LOW: settings.low_share}[priority]
    return math.ceil(settings.max_waiting * share)


def retry_after_s(reason: Reason, backlog: Backlog, asked: Asked, room: Room, supply: Supply) -> int:
    """Whole seconds after which what is too much now has been worked off, at the present rates."""
    excess_s = 0.0
    if reason is Reason.SEQUENCES and supply.sequences_per_s:
        allowed = room.sequences_ahead + backlog.tokens_ahead(asked.priority) * room.sequences_per_token
        excess = backlog.sequences_ahead(asked.priority) + asked.num_choices - allowed
        excess_s = excess / supply.sequences_per_s
    elif reason is not Reason.SEQUENCES and supply.tokens_per_s:
        if reason is Reason.TOKENS:
            excess_tokens = backlog.tokens_ahead(asked.priority) - room.tokens_ahead
        else:
            num_jobs = sum(backlog.prefill_jobs)
            too_many = num_jobs + asked.num_choices - room.jobs
            excess_tokens = too_many * sum(backlog.prefill_tokens) / max(1, num_jobs)
        excess_s = excess_tokens / supply.tokens_per_s
    return math.ceil(min(MOST_RETRY_S, max(LEAST_RETRY_S, excess_s)))


def why_refused(reason: Reason, asked: Asked, room: Room, after_s: int, settings: QueueSettings) -> str:
    """The bound that a request met, when to come again, and what would let it in. Says nothing of others' requests."""
    again = f"try again in {after_s} s"
    match reason:
        case Reason.JOBS:
            return (
                f"the queue is full, {room.jobs:.0f} {asked.priority} requests may wait; {again}, or the server takes "
                f"more with PDQ_QUEUE__MAX_WAITING={2 * settings.max_waiting} or more prefill workers"
            )
        case Reason.TOKENS if asked.timeout_s is not None and not _is_by_setting(asked, settings):
            return (
                f"the first token would not come within the request's {asked.timeout_s:g} s; {again}, or give it "
                f"X-Request-Timeout: {math.ceil(asked.timeout_s) + after_s}, or the server another prefill worker"
            )
        case Reason.TOKENS:
            return (
                f"the first token would not come within {settings.ttft_limit_s:g} s; {again}, or the server takes it "
                f"with PDQ_QUEUE__TTFT_LIMIT_S={math.ceil(settings.ttft_limit_s) + after_s} or more prefill workers"
            )
        case Reason.SEQUENCES:
            return (
                f"no place to decode would be free within {settings.place_limit_s:g} s; {again}, or the server "
                f"takes it with PDQ_QUEUE__PLACE_LIMIT_S={math.ceil(settings.place_limit_s) + after_s} or more decode "
                "workers"
            )


def _is_by_setting(asked: Asked, settings: QueueSettings) -> bool:
    """Whether it is the setting that bounds the tokens ahead, and not the time that the request has."""
    return bool(settings.ttft_limit_s) and settings.ttft_limit_s <= (asked.timeout_s or math.inf)
