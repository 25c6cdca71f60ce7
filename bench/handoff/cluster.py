"""A redis-server, a prefill worker and a decode worker, processes each, and requests put straight on the queue.

Without an API process: nobody reads the tokens, so that the cores are the workers'.
"""

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.handoff.marks import Mark, read_marks
from bench.handoff.role import Pace, play
from broker.client import Broker, open_broker
from cli.embedded_redis import find_redis_server, redis_command, redis_url, wait_until_answering
from errors import PdqError
from messages.request import GenerationRequest, SamplingParams
from messages.worker_status import Role, WorkerState
from settings.loading import load_settings

START_TIMEOUT_S = 120.0


class BenchFailed(PdqError):
    """The workers do not come up, or a request does not end."""


class HandoffCluster:
    """Use as an async context manager; `marks` are there when it is left."""

    def __init__(self, pace: Pace | None, settings: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pdq-handoff-"))
        self.marks: dict[Role, list[Mark]] = {}
        self._pace = pace
        self._environment = {
            "PDQ_REDIS__URL": redis_url(self.folder),
            "PDQ_MODEL__DEVICE": "cpu",
            **settings,
        }
        self._processes: dict[Role, multiprocessing.process.BaseProcess] = {}
        self._stack = AsyncExitStack()
        self._num_requests = 0

    async def __aenter__(self) -> Self:
        command = redis_command(find_redis_server(), self.folder)
        self._redis = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await self._start()
        except BaseException as error:
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def _start(self) -> None:
        await wait_until_answering(self.folder)
        context = multiprocessing.get_context("spawn")
        for role in (Role.PREFILL, Role.DECODE):
            log, marks = self.folder / f"{role}.log", self.folder / f"{role}.marks"
            process = context.Process(target=play, args=(role, self._environment, log, marks, self._pace), daemon=True)
            process.start()
            self._processes[role] = process
        settings = load_settings({"redis": {"url": self._environment["PDQ_REDIS__URL"]}})
        self.broker: Broker = await self._stack.enter_async_context(
            open_broker(settings.redis, settings.queue, settings.stream)
        )
        give_up = time.monotonic() + START_TIMEOUT_S
        while [worker.state for worker in await self.broker.registry.live()] != [WorkerState.READY] * 2:
            if time.monotonic() > give_up or not all(process.is_alive() for process in self._processes.values()):
                raise BenchFailed(f"the workers are not ready; their logs are in {self.folder}")
            await asyncio.sleep(0.05)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)
        for role, process in self._processes.items():
            await asyncio.to_thread(process.join, 20)
            process.kill()
            if error is None:
                self.marks[role] = read_marks(self.folder / f"{role}.marks")
        await self._stack.aclose()
        self._redis.kill()
        self._redis.wait()
        if error is None:
            shutil.rmtree(self.folder)

    async def send(self, prompt_tokens: int, output_tokens: int) -> str:
        """A prompt that no other shares a block with; its id."""
        self._num_requests += 1
        number = self._num_requests
        prompt = [10 + number % 50, 10 + number // 50 % 50] + [10 + place % 50 for place in range(prompt_tokens - 2)]
        sampling = SamplingParams(do_sample=False, max_new_tokens=output_tokens, ignore_eos=True, seed=0)
        request = GenerationRequest(f"handoff-{number}", prompt, sampling, created_ms=int(time.time() * 1000))
        await self.broker.requests.create(request)
        return request.request_id

    async def ended(self, request_id: str, within_s: float = 120.0) -> None:
        """Wait. Raises BenchFailed."""
        give_up = time.monotonic() + within_s
        while not await self.broker.request_reader.is_finished(request_id, 0):
            if time.monotonic() > give_up:
                raise BenchFailed(f"{request_id} does not end; the workers' logs are in {self.folder}")
            await asyncio.sleep(0.005)
