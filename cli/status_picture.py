"""What `pdq status` shows of a cluster: tables for people, a document for programs. Pure."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from broker.queue_waits import QUEUES, Wait
from cli.cluster_state import ClusterState, Latencies
from messages.request import Priority
from messages.worker_status import Role, WorkerState, WorkerStatus

FORMAT_VERSION = 1
WIDE = 110  # columns of a terminal from which hosts and sizes are shown
QUIET_S = 1.0  # a loop that stands still for longer is worth a word
_STYLES = {WorkerState.READY: "green", WorkerState.LOADING: "yellow", WorkerState.DRAINING: "yellow"}


def picture(
    state: ClusterState, width: int, rates: Mapping[str, float] | None = None, trouble: str = ""
) -> RenderableType:
    """All of it in `width` columns. `rates`: worker id -> prompt tokens per second since the last look; `trouble`: why
    the cluster cannot be looked at any more, which makes this the picture of what was."""
    clock = time.strftime("%H:%M:%S", time.localtime(state.at_s))
    head = Text(f"{clock}  {state.redis_url}", "dim", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [Text(trouble, "bold red"), head] if trouble else [head]
    parts += ["", _workers(state.workers, width, rates or {}), "", _queues(state)]
    transfers = _transfers(state.workers)
    if transfers.row_count:
        parts += ["", transfers]
    parts += ["", *(Text(line) for line in _sentences(state))]
    return Group(*parts)


def rates_between(before: ClusterState, now: ClusterState) -> dict[str, float]:
    """Worker id -> prompt tokens that it computed per second between two looks."""
    took_s = max(now.at_s - before.at_s, 0.001)
    known = {worker.worker_id: worker.prefilled_tokens for worker in before.workers}
    return {
        worker.worker_id: max(0, worker.prefilled_tokens - known[worker.worker_id]) / took_s
        for worker in now.workers
        if worker.worker_id in known
    }


def document(state: ClusterState) -> dict[str, Any]:
    """The same for programs; units are in the names."""
    return {
        "format_version": FORMAT_VERSION,
        "at_ms": round(state.at_s * 1000),
        "redis_url": state.redis_url,
        "api_url": state.api_url,
        "workers": [_worker_document(worker, state.at_s) for worker in state.workers],
        "queues": [
            {
                "queue": wait.queue,
                "priority": wait.priority,
                "num_waiting": wait.num_jobs,
                "oldest_s": wait.oldest_s,
                "num_in_work": state.in_work[wait.queue, wait.priority],
            }
            for wait in state.waits
        ],
        "sequences": {phase.value: asdict(found) for phase, found in state.sequences.items()},
        "last_minute": None if state.latencies is None else asdict(state.latencies),
        "why_no_last_minute": state.why_no_latencies,
    }


def _worker_document(worker: WorkerStatus, at_s: float) -> dict[str, Any]:
    names = ("worker_id", "role", "state", "detail", "host", "pid", "num_running", "max_running", "num_blocks")
    more = ("free_blocks", "block_size", "capacity_tokens", "idle_s", "tokens_per_s", "sequence_s", "prefilled_tokens")
    shown: dict[str, Any] = {name: getattr(worker, name) for name in (*names, *more)}
    transfers = {
        kind: {"pulls": one.pulls, "num_bytes": one.num_bytes, "failures": one.failures}
        for kind, one in worker.transfers.items()
    }
    up_s = max(0.0, at_s - worker.started_ms / 1000)
    return shown | {"up_s": round(up_s, 3), "gpus": list(worker.gpus), "transfers": transfers}


def _table(*columns: Column | str) -> Table:
    """Without lines around it: a terminal of 24 rows has to do."""
    return Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _workers(workers: Sequence[WorkerStatus], width: int, rates: Mapping[str, float]) -> Table:
    right = [Column(name, justify="right", no_wrap=True) for name in ("running", "KV used", "rate")]
    more = [Column("KV tokens", justify="right"), Column("host", no_wrap=True)] if width >= WIDE else []
    worker = Column("worker", no_wrap=True)
    table = _table(worker, Column("state", no_wrap=True), *right, *more, Column("detail", overflow="fold"))
    for one in workers:
        used = 1 - one.free_blocks / one.num_blocks if one.num_blocks else 0.0
        table.add_row(
            one.worker_id,
            Text(one.state, _STYLES[one.state]),
            f"{one.num_running}/{one.max_running}" if one.max_running else str(one.num_running),
            f"{used:.0%}",
            _rate(one, rates),
            *([f"{one.capacity_tokens:,}", f"{one.host}:{one.pid}"] if more else []),
            Text(_detail(one)),
        )
    if not workers:
        table.add_row("none is alive")
    return table


def _rate(worker: WorkerStatus, rates: Mapping[str, float]) -> str:
    """Prompt tokens per second since the last look, else at work; of a decode worker, seconds per sequence."""
    if worker.role is Role.PREFILL:
        rate = rates.get(worker.worker_id, worker.tokens_per_s)
        return f"{rate:,.0f} tok/s" if rate or worker.worker_id in rates else ""
    return f"{worker.sequence_s:.1f} s/seq" if worker.sequence_s else ""


def _detail(worker: WorkerStatus) -> str:
    if worker.detail:
        return worker.detail
    if worker.idle_s >= QUIET_S:
        return f"no progress for {worker.idle_s:.1f} s"
    return " ".join(worker.gpus)


def _queues(state: ClusterState) -> Table:
    names = ("waiting", "oldest", "in work")
    table = _table("queue", *(Column(name, justify="right") for name in names))
    for name in QUEUES:
        waits = [wait for wait in state.waits if wait.queue == name]
        oldest_s = max((wait.oldest_s for wait in waits), default=0.0)
        num_in_work = sum(state.in_work[wait.queue, wait.priority] for wait in waits)
        table.add_row(name, _counted(waits), f"{oldest_s:.1f} s" if oldest_s else "", str(num_in_work))
    return table


def _counted(waits: Sequence[Wait]) -> str:
    """All of them, and which are not normal."""
    others = ", ".join(
        f"{wait.num_jobs} {wait.priority}" for wait in waits if wait.num_jobs and wait.priority is not Priority.NORMAL
    )
    return f"{sum(wait.num_jobs for wait in waits)}{f' ({others})' if others else ''}"


def _transfers(workers: Sequence[WorkerStatus]) -> Table:
    right = [Column(name, justify="right") for name in ("pulls", "MB", "failures")]
    table = _table("KV pulled by", "transport", *right)
    for worker in workers:
        for kind, count in worker.transfers.items():
            if count.pulls or count.failures:
                moved = f"{count.num_bytes / 1e6:,.0f}"
                table.add_row(worker.worker_id, kind, str(count.pulls), moved, str(count.failures))
    return table


def _sentences(state: ClusterState) -> Iterator[str]:
    phases = ", ".join(f"{one.count} {phase.replace('_', ' ')}" for phase, one in state.sequences.items())
    yield f"sequences: {phases}"
    yield f"their tokens: {sum(one.tokens for one in state.sequences.values()):,}"
    if state.latencies is None:
        yield f"last minute: {state.why_no_latencies}"
    else:
        yield f"last minute at {state.api_url}: {state.latencies.tokens_per_s:,.1f} tokens/s"
        yield from _latency_lines(state.latencies)


def _latency_lines(said: Latencies) -> Iterator[str]:
    rows = {
        "TTFT": (said.ttft_p50_ms, said.ttft_p95_ms, said.ttft_p99_ms),
        "ITL": (said.itl_p50_ms, said.itl_p95_ms, said.itl_p99_ms),
    }
    for name, values in rows.items():
        shown = [
            f"{share} {value:,.1f} ms" for share, value in zip(("p50", "p95", "p99"), values, strict=True) if value
        ]
        yield f"  {name:<5}{', '.join(shown) or 'nothing to measure'}"
