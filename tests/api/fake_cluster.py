"""A cluster without models: real Redis and the real API, and workers that publish what the test scripts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from api.app import create_app
from api.cancellation import end_tasks
from api.server import new_server
from api.services import Services, open_services
from broker.choice import Append, Taken
from broker.keys import GROUP
from broker.scripts import load_script
from messages.job import Phase, PrefillJob
from messages.request import GenerationRequest
from messages.token_event import FinishReason, TokenEvent
from messages.wire import encode
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.api import ApiSettings
from settings.batch import BatchSettings
from settings.broker import QueueSettings, RedisSettings
from settings.loading import Settings
from settings.model import ModelSettings

CAPACITY_TOKENS = 1000
LOGPROB = -0.5
ResultT = TypeVar("ResultT")
Script = Callable[[GenerationRequest, int], AsyncIterator[TokenEvent]]


def run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(main)


async def until(condition: Callable[[], Coroutine[Any, Any, bool]], deadline_s: float = 5.0) -> None:
    """Poll until `condition()`; fails after `deadline_s`."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in Redis
            await asyncio.sleep(0.005)


def settings_for(redis: RedisSettings, model: Path, **api: Any) -> Settings:
    return Settings(
        redis=redis,
        model=ModelSettings(path=str(model)),
        queue=QueueSettings(lease_s=30, max_waiting=8),
        batch=BatchSettings(store=f"memory://{redis.key_prefix}"),
        api=ApiSettings(**({"port": 0, "token_load_max_age_s": 0.002} | api)),
    )


def status(role: Role, **changes: Any) -> WorkerStatus:
    ready = WorkerStatus(
        worker_id=f"{role}-0",
        role=role,
        state=WorkerState.READY,
        host="test",
        pid=1,
        started_ms=0,
        capacity_tokens=CAPACITY_TOKENS,
    )
    return msgspec.structs.replace(ready, **changes)


class FakeCluster:
    """`script` decides what the workers publish; it is asked once per choice."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.broker = services.broker
        self.app = create_app(services)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://test", timeout=20
        )
        self.requests: list[GenerationRequest] = []
        self.script: Script = self.length_script("")
        self._work: set[asyncio.Task[None]] = set()

    # -- what the workers say ------------------------------------------------------------------------------------

    def ids(self, text: str) -> list[int]:
        return self.services.tokenizer._encode(text, False)

    def events(self, token_ids: Sequence[int], finish: FinishReason = FinishReason.LENGTH) -> list[TokenEvent]:
        last = len(token_ids) - 1
        return [TokenEvent(one, LOGPROB, finish if i == last else None) for i, one in enumerate(token_ids)]

    def length_script(self, text: str, finish: FinishReason = FinishReason.LENGTH) -> Script:
        """Says the tokens of `text`."""
        return self.events_script(self.events(self.ids(text), finish))

    def events_script(self, events: Sequence[TokenEvent]) -> Script:
        async def script(request: GenerationRequest, choice: int) -> AsyncIterator[TokenEvent]:
            for event in events:
                yield event

        return script

    # -- the workers ---------------------------------------------------------------------------------------------

    async def beat(self, worker: WorkerStatus) -> None:
        """Put `worker` on the registry, once."""
        keys = self.broker.keys
        lease_ms = int(self.services.settings.queue.lease_s * 1000)
        await load_script("heartbeat").run(
            self.broker.redis,
            [keys.workers(), keys.worker_leases(), keys.pulse()],
            [GROUP, worker.worker_id, lease_ms, encode(worker)],
        )

    async def bury(self, *roles: Role) -> None:
        for role in roles:
            await self.broker.registry.leave(f"{role}-0")

    async def work(self) -> None:
        """Take prefill jobs for ever."""
        while True:
            for entry in await self.broker.prefill_queue.take("prefill-0", 8, block_ms=100):
                taken = await self.broker.requests.take(entry.job, Phase.PREFILLING)
                await self.broker.prefill_queue.ack([entry])
                if taken is not None:
                    task = asyncio.create_task(self._publish(entry.job, taken))
                    self._work.add(task)
                    task.add_done_callback(self._work.discard)

    def start(self) -> None:
        """Begin to take jobs."""
        self._work.add(asyncio.create_task(self.work()))

    async def stop(self) -> None:
        """Take and publish nothing more."""
        await end_tasks(list(self._work))

    async def _publish(self, job: PrefillJob, taken: Taken) -> None:
        request = taken.request
        self.requests.append(request)
        index = 0
        async for event in self.script(request, job.choice):
            item = Append(request.request_id, job.choice, taken.epoch, index, event, request.api_id)
            (accepted,) = await self.broker.requests.append([item])
            if not accepted:
                return
            index += 1

    # -- asking --------------------------------------------------------------------------------------------------

    async def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **more)

    async def ask(self, inputs: Any = "What is AI?", path: str = "/generate", **parameters: Any) -> httpx.Response:
        return await self.post(path, {"inputs": inputs, "parameters": parameters})

    async def generate(self, **parameters: Any) -> dict[str, Any]:
        answer = await self.ask(**parameters)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def last_event(self, request_id: str, choice: int = 0) -> TokenEvent | None:
        events = await self.broker.request_reader.read(request_id, choice)
        return events[-1][1] if events else None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """The API on a real socket; its port."""
        server = new_server(self.services)
        task = asyncio.create_task(server.serve())

        async def started() -> bool:
            return server.started

        await until(started)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def fake_cluster(
    settings: Settings, *, workers: bool = True, takes_jobs: bool = True
) -> AsyncIterator[FakeCluster]:
    """An API and, with `workers`, one prefill and one decode worker that are ready; with `takes_jobs` they work."""
    async with open_services(settings) as services:
        await services.broker.prefill_queue.ensure()
        cluster = FakeCluster(services)

        async def relay_reads() -> bool:
            return bool((await services.broker.redis.info("clients"))["blocked_clients"])

        # redis-py loses a cancellation that comes while it sends (api/cancellation.py); a short test would wait for it.
        await until(relay_reads)
        if workers:
            await cluster.beat(status(Role.PREFILL))
            await cluster.beat(status(Role.DECODE))
        if takes_jobs:
            cluster.start()
        try:
            yield cluster
        finally:
            await cluster.stop()
            await cluster.client.aclose()
