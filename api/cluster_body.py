"""The body of GET /cluster: the cluster as the page draws it.

Pure. No text of any request is in it. Request ids, which clients may have chosen, are shown as they are or as digests
by which rows can be told apart; who gets which is the route's to say.
"""

import hashlib
from collections.abc import Callable, Sequence

import orjson

from api.curves import EVERY_S, LastMinute, Point
from api.incidents import Incident
from api.timelines import Timeline
from broker.queue_waits import Wait
from messages.worker_status import WorkerStatus

ShowId = Callable[[str], str]

_WORKER_FIELDS = (
    *("worker_id", "role", "state", "host", "detail", "num_running", "max_running", "num_blocks", "free_blocks"),
    *("capacity_tokens", "idle_s", "tokens_per_s", "prefilled_tokens"),
)


def digest_of(request_id: str) -> str:
    """A stand-in for a request's id."""
    return "~" + hashlib.sha256(request_id.encode()).hexdigest()[:8] if request_id else ""


def cluster_body(
    *,
    now_ms: int,
    api_id: str,
    model_name: str,
    num_followed: int,
    workers: Sequence[WorkerStatus],
    waits: Sequence[Wait],
    points: Sequence[Point],
    last_minute: LastMinute,
    timelines: Sequence[Timeline],
    incidents: Sequence[Incident],
    show_id: ShowId,
) -> bytes:
    """JSON. Times are Unix times (ms), durations in the unit of their names."""
    names = Point.__struct_fields__
    return orjson.dumps(
        {
            "now_ms": now_ms,
            "api_id": api_id,
            "model": model_name,
            "num_followed": num_followed,
            "workers": [_worker(worker, now_ms) for worker in workers],
            "queues": [
                {"queue": one.queue, "priority": one.priority, "num_jobs": one.num_jobs, "oldest_s": one.oldest_s}
                for one in waits
            ],
            "curves": {"every_s": EVERY_S, **{name: [getattr(point, name) for point in points] for name in names}},
            "last_minute": {name: getattr(last_minute, name) for name in LastMinute.__struct_fields__},
            "timelines": [_timeline(one, show_id) for one in timelines],
            "incidents": [_incident(one, show_id) for one in incidents],
        }
    )


def _worker(worker: WorkerStatus, now_ms: int) -> dict[str, object]:
    shown: dict[str, object] = {name: getattr(worker, name) for name in _WORKER_FIELDS}
    transfers = {kind: {"pulls": one.pulls, "num_bytes": one.num_bytes} for kind, one in worker.transfers.items()}
    return shown | {
        "up_s": max(0, now_ms - worker.started_ms) / 1000,
        "num_gpus": len(worker.gpus),
        "transfers": transfers,
    }


def _timeline(one: Timeline, show_id: ShowId) -> dict[str, object]:
    bars = [
        {
            "phase": phase.name,
            "choice": phase.choice,
            "worker_id": worker_id,
            "began_ms": round(phase.ended_ms - phase.took_ms, 2),
            "took_ms": phase.took_ms,
        }
        for worker_id, phase in one.bars
    ]
    return {
        "request_id": show_id(one.request_id),
        "created_ms": one.created_ms,
        "first_token_ms": one.first_token_ms,
        "ended_ms": one.ended_ms,
        "finish_reason": one.finish_reason,
        "prompt_tokens": one.prompt_tokens,
        "output_tokens": one.output_tokens,
        "bars": bars,
    }


def _incident(one: Incident, show_id: ShowId) -> dict[str, object]:
    return {
        "number": one.number,
        "at_ms": one.at_ms,
        "kind": one.kind,
        "subject": one.subject,
        "detail": one.detail,
        "request_id": show_id(one.request_id),
    }
