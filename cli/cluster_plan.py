"""Which children `pdq serve` starts: the very commands that compose.yaml runs, with the environment that places them.

Pure. Knows settings; starts nothing.
"""

import sys
from pathlib import Path

from cli.child import ChildSpec, pdq_command
from cli.embedded_redis import redis_command
from cli.options import Overrides, environment
from messages.worker_status import Role
from settings.loading import Settings

# Seconds after the stop began by which a child must be gone; then it is killed. The whole must be over within 10 s.
API_WITHIN_S = 5.5
WORKERS_WITHIN_S = 7.0
REDIS_WITHIN_S = 7.5
# Open streams need the workers while they drain, so both fit one after the other.
API_DRAIN_S = 4.5
WORKER_DRAIN_S = 1.0


def shared_knobs(
    settings: Settings,
    model_dir: Path,
    model_name: str,
    redis_url: str,
    is_terminal: bool = False,
    secret_file: Path | None = None,
    export_decode_pools: bool = True,
) -> Overrides:
    """What every child is told on top of the environment of `pdq serve`; `secret_file`: made for them."""
    # Children write into a pipe and cannot see that a terminal is at its end.
    log_format = "console" if is_terminal and settings.log.format == "auto" else settings.log.format
    return {
        "redis": {"url": redis_url},
        "kv_transfer": {} if secret_file is None else {"secret_file": secret_file},
        "decode": {} if export_decode_pools else {"export_pool": False},
        "model": {"path": model_dir, "name": model_name, "dtype": settings.model.dtype},
        "api": {
            "host": settings.api.host,
            "port": settings.api.port,
            "drain_s": min(settings.api.drain_s, API_DRAIN_S),
        },
        "queue": {"drain_s": min(settings.queue.drain_s, WORKER_DRAIN_S)},
        "metrics": {"port": settings.metrics.port},
        "log": {"level": settings.log.level, "format": log_format},
    }


def redis_child(binary: Path, state_dir: Path) -> ChildSpec:
    """The embedded Redis: the last one to go."""
    return ChildSpec("redis", redis_command(binary, state_dir), stop_order=2, stop_within_s=REDIS_WITHIN_S)


def nursery_path(state_dir: Path) -> Path:
    """Where the nursery of this run takes orders."""
    return state_dir / "nursery.sock"


def nursery_child(state_dir: Path) -> ChildSpec:
    """What workers on a CPU are forked from. It holds nothing that anybody waits for."""
    command = (sys.executable, "-P", "-m", "cli.nursery", str(nursery_path(state_dir)))
    return ChildSpec("nursery", command, stop_within_s=API_WITHIN_S)


def cluster_children(knobs: Overrides, num_workers: dict[Role, int], nursery: Path | None = None) -> list[ChildSpec]:
    """The workers, of a nursery where there is one, and the API: it goes first and drains, the workers follow."""
    variables = environment(knobs)
    first_port = knobs.get("metrics", {}).get("port", 0)
    names = [(role, number) for role, count in num_workers.items() for number in range(count)]
    workers = [
        ChildSpec(
            f"{role} {number}",
            pdq_command(role),
            variables | ({"PDQ_METRICS__PORT": str(first_port + place)} if first_port else {}),
            stop_order=1,
            stop_within_s=WORKERS_WITHIN_S,
            nursery=nursery,
        )
        for place, (role, number) in enumerate(names)
    ]
    return [*workers, ChildSpec("api", pdq_command("api"), variables, stop_order=0, stop_within_s=API_WITHIN_S)]
