"""What `pdq serve` says when the cluster is ready. Pure text out of facts; knows no process and no Redis."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.model import ModelSettings


@dataclass(frozen=True, slots=True)
class Facts:
    """What the banner is made of."""

    url: str
    model_name: str
    model_dir: Path
    dtype: str
    workers: Sequence[WorkerStatus]
    redis_url: str  # without a password
    ready_after_s: float
    asks_for_key: bool = False


def model_dtype(settings: ModelSettings, model_dir: Path) -> str:
    """The type of weights and KV: the setting, else what the checkpoint says."""
    if settings.dtype != "auto":
        return settings.dtype
    try:
        config = json.loads((model_dir / "config.json").read_text())
    except (OSError, ValueError):
        return "auto"
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def capacity_tokens(workers: Sequence[WorkerStatus]) -> int:
    """How many tokens can be in decode at once, the whole cluster's."""
    return sum(worker.capacity_tokens for worker in workers if worker.role is Role.DECODE)


def banner(facts: Facts) -> str:
    """The lines, ready to print."""
    count = {role: sum(worker.role is role for worker in facts.workers) for role in Role}
    capacity = capacity_tokens(facts.workers)
    body = json.dumps({"inputs": "What is AI?", "parameters": {"max_new_tokens": 32}})
    rows = {
        "URL": facts.url,
        "model": f"{facts.model_name} ({facts.dtype}) from {facts.model_dir}",
        "workers": ", ".join(f"{number} {role}" for role, number in count.items()),
        "KV cache": f"{capacity:,} tokens, or {capacity // 2048:,} requests of 2,048 at once",
        "watch it": f"pdq status --watch --redis-url {facts.redis_url}",
        "stop it": "Ctrl-C",
    }
    key = '-H "Authorization: Bearer $PDQ_API_KEY" ' if facts.asks_for_key else ""
    return "\n".join(
        [
            "",
            f"pdq is ready after {facts.ready_after_s:.1f} s",
            *(f"  {name:<9} {value}" for name, value in rows.items()),
            "",
            f"  curl -N {facts.url}/generate_stream {key}-H 'Content-Type: application/json' -d '{body}'",
            "",
        ]
    )


def waiting_for(workers: Sequence[WorkerStatus], wanted: dict[Role, int], api_problem: str) -> str:
    """Why it is not ready yet: `prefill 0/1 ready (loading weights 43 %), decode 1/1 ready, api starting`."""
    parts = []
    for role, number in wanted.items():
        of_role = [worker for worker in workers if worker.role is role]
        num_ready = sum(worker.state is WorkerState.READY for worker in of_role)
        details = sorted(
            {worker.detail for worker in of_role if worker.detail and worker.state is not WorkerState.READY}
        )
        parts.append(f"{role} {num_ready}/{number} ready" + (f" ({'; '.join(details)})" if details else ""))
    return ", ".join(
        [
            *parts,
            "api: " + (api_problem if api_problem.startswith("/health") else "starting")
            if api_problem
            else "api ready",
        ]
    )
