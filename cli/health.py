"""`pdq health`: whether this container, the API or the whole cluster is well, as an exit code."""

import asyncio
import http.client
import socket
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from cli.options import PortFlag, RedisUrlFlag, settings_from
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.loading import Settings

PROBE_TIMEOUT_S = 3.0


class Subject(StrEnum):
    """Whose health is asked for."""

    SELF = "self"  # what runs on this host (in a container: the one process of it): the API, else the worker
    API = "api"  # GET /health of the API on this host
    WORKER = "worker"  # the worker of this host, by its registry entry
    CLUSTER = "cluster"  # at least one worker of either role


def health(
    role: Annotated[Subject, typer.Option("--role", help="Whose health is asked for.")] = Subject.SELF,
    port: PortFlag = None,
    redis_url: RedisUrlFlag = None,
) -> None:
    """Exit 0 when it is well and 1 with a sentence when it is not: for health checks of containers."""
    settings = settings_from(port=port, redis_url=redis_url)
    if role is Subject.API or (role is Subject.SELF and is_api_here(settings.api.host, settings.api.port)):
        problem = api_problem(settings.api.host, settings.api.port)
    else:
        workers = asyncio.run(_live_workers(settings))
        if role is not Subject.CLUSTER:
            problem = own_problem(workers, socket.gethostname(), settings.api.no_progress_s)
        else:
            problem = cluster_problem(workers, settings.api.no_progress_s)
    if problem:
        typer.echo(f"pdq: {problem}", err=True)
        raise typer.Exit(1)


def probe_address(host: str) -> str:
    """Where a server that listens on `host` can be reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def in_url(host: str) -> str:
    """That address as a URL has it."""
    address = probe_address(host)
    return f"[{address}]" if ":" in address else address


def is_api_here(host: str, port: int) -> bool:
    """Whether anything listens on the API's port of this host."""
    try:
        socket.create_connection((probe_address(host), port), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def get_health_status(host: str, port: int) -> int:
    """Status of GET /health. Raises OSError or http.client.HTTPException when nobody answers properly."""
    connection = http.client.HTTPConnection(probe_address(host), port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def api_problem(host: str, port: int) -> str:
    """What is wrong with the API; empty when nothing is."""
    try:
        status = get_health_status(host, port)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from http://{in_url(host)}:{port}/health: {error}"
    return "" if status == http.HTTPStatus.OK else f"/health answers {status}"


def worker_problem(worker: WorkerStatus, no_progress_s: float) -> str:
    """What is wrong with a worker whose lease stands; empty when nothing is."""
    if worker.state is not WorkerState.READY:
        return f"{worker.worker_id} is {worker.state}" + (f" ({worker.detail})" if worker.detail else "")
    if worker.idle_s >= no_progress_s:
        return f"{worker.worker_id} has made no progress for {worker.idle_s:.1f} s"
    return ""


def own_problem(workers: Sequence[WorkerStatus], host: str, no_progress_s: float) -> str:
    """What is wrong with the workers of `host`; empty when nothing is."""
    own = [worker for worker in workers if worker.host == host]
    if not own:
        return f"no live worker of host {host} is registered"
    return "; ".join(filter(None, (worker_problem(worker, no_progress_s) for worker in own)))


def cluster_problem(workers: Sequence[WorkerStatus], no_progress_s: float) -> str:
    """Which role has no worker that is well; empty when both have one."""
    missing = []
    for role in Role:
        of_role = [worker for worker in workers if worker.role is role]
        problems = [worker_problem(worker, no_progress_s) for worker in of_role]
        if all(problems):  # also when there is none
            missing.append(f"{role}: 0/{len(of_role)} ready" + (f" ({problems[0]})" if problems else ""))
    return "; ".join(missing)


async def _live_workers(settings: Settings) -> list[WorkerStatus]:
    from broker.client import open_broker

    async with open_broker(settings.redis, settings.queue, settings.stream) as broker:
        return await broker.registry.live()
