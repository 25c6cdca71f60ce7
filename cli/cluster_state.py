"""One look at a cluster: what Redis says of workers, queues and sequences, and what one API process says of latencies.

Asks both; judges nothing and shows nothing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker.client import Broker
from broker.keys import LOCAL, QueueName
from broker.queue_waits import Wait, read_waits
from messages.job import Phase
from messages.request import Priority
from messages.worker_status import Role, WorkerStatus

if TYPE_CHECKING:
    import httpx

API_TIMEOUT_S = 2.0
ASK_AGAIN_S = 5.0  # an API that did not answer is left alone for so long, lest each look waits for it


@dataclass(frozen=True, slots=True)
class Latencies:
    """The last minute, of the requests that came to one API process. None: there were none."""

    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    itl_p99_ms: float | None
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Sequences:
    """Unfinished ones of one phase."""

    count: int
    tokens: int  # prompt and output together


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One look."""

    at_s: float  # Unix time
    redis_url: str  # without a password
    api_url: str
    workers: Sequence[WorkerStatus]
    waits: Sequence[Wait]
    in_work: Mapping[tuple[QueueName, Priority], int]  # jobs that a worker has taken and not acknowledged
    sequences: Mapping[Phase, Sequences]
    latencies: Latencies | None
    why_no_latencies: str = ""


async def read_cluster(broker: Broker, redis_url: str, api: "Api") -> ClusterState:
    """The cluster as of now. Raises RedisError; an API that says nothing is no error."""
    workers, waits, depths, loads, (latencies, why) = await asyncio.gather(
        broker.registry.live(),
        read_waits(broker.redis, broker.keys),
        _depths(broker),
        broker.request_reader.loads(),
        api.latencies(),
    )
    if latencies is not None and api.worker_ids and workers and api.worker_ids.isdisjoint(w.worker_id for w in workers):
        latencies, why = None, f"{api.url} is the API of another cluster"
    counts = Counter(load.phase for load in loads)
    tokens: Counter[Phase] = Counter()
    for load in loads:
        tokens[load.phase] += load.prompt_tokens + load.output_tokens
    return ClusterState(
        at_s=time.time(),
        redis_url=redis_url,
        api_url=api.url,
        workers=workers,
        waits=waits,
        in_work={
            # Read one after the other: a job that came in between is not in work for that.
            (wait.queue, wait.priority): max(0, depths[wait.queue][wait.priority] - wait.num_jobs)
            for wait in waits
        },
        sequences={phase: Sequences(counts[phase], tokens[phase]) for phase in Phase},
        latencies=latencies,
        why_no_latencies=why,
    )


async def _depths(broker: Broker) -> dict[QueueName, Mapping[Priority, int]]:
    """Jobs on each queue, those that are taken included."""
    prefill, decode, local = await asyncio.gather(
        broker.prefill_queue.depths(), broker.decode_queue.depths(), broker.local_queue.depths()
    )
    return {Role.PREFILL: prefill, Role.DECODE: decode, LOCAL: local}


class Api:
    """The API process that is asked. Use as an async context manager."""

    def __init__(self, url: str, api_key: str) -> None:
        import httpx

        self.url = url.rstrip("/").removesuffix("/v1")
        self.worker_ids: frozenset[str] = frozenset()  # that it named last
        self._unreachable: tuple[float, str] | None = None  # since when, and why
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=API_TIMEOUT_S)

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def latencies(self) -> tuple[Latencies | None, str]:
        """What it says of the last minute; or why there is nothing, in a few words."""
        import httpx

        if self._unreachable is not None and time.monotonic() - self._unreachable[0] < ASK_AGAIN_S:
            return None, self._unreachable[1]
        try:
            answer = await self._client.get("/cluster")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            why = f"{self.url} cannot be reached: {reason}; --url names another API"
            self._unreachable = (time.monotonic(), why)
            return None, why
        if answer.status_code in (401, 403):
            return None, f"{self.url} asks for a key of scope monitor or admin: --api-key or PDQ_API_KEY"
        return self._read(answer)

    def _read(self, answer: "httpx.Response") -> tuple[Latencies | None, str]:
        try:
            body: dict[str, Any] = answer.json()
            self.worker_ids = frozenset(worker["worker_id"] for worker in body["workers"])
            minute = body["last_minute"]
            return Latencies(**{name: minute[name] for name in Latencies.__dataclass_fields__}), ""
        except (ValueError, LookupError, TypeError):
            return None, f"{self.url}/cluster answered {answer.status_code}, and not as pdq does"
