"""The event loop of a batch worker, in a thread of its own: Celery's threads hand it their work and wait.

So all of a worker's lines share one client, one bound and one connection pool. Knows asyncio and what is opened in it.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from batch_worker.work import Work, open_work
from broker.deadline import now_ms
from settings.loading import Settings

ResultT = TypeVar("ResultT")


class WorkLoop:
    """One per process."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        self._settings, self._worker_id = settings, worker_id
        self._opened: Future[Work] = Future()
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="batch-work", daemon=True)

    def start(self) -> None:
        """Open what the work needs. Raises StartupError."""
        self._thread.start()
        self._opened.result()

    def run(self, work: Callable[[Work], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """What `work` returns or raises, once it is through."""
        opened = self._opened.result()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work(opened), self._loop).result()

    def stop_steps(self) -> None:
        """Leave what can be left; what is running in the cluster runs on there."""
        self._loop.call_soon_threadsafe(self._opened.result().stopping.set)

    def end(self) -> None:
        """Close everything."""
        if self._thread.is_alive() and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        try:
            async with open_work(self._settings) as work:
                attending = asyncio.create_task(self._attend(work))
                self._opened.set_result(work)
                await self._end.wait()
                attending.cancel()
                await work.broker.batches.leave(self._worker_id)
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _attend(self, work: Work) -> None:
        lease_s = self._settings.batch.lease_s
        while not work.stopping.is_set():
            await work.broker.batches.attend(self._worker_id, now_ms(), lease_s)
            await asyncio.sleep(lease_s / 3)
