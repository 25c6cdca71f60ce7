"""What `pdq prefill` and `pdq decode` have in common: Redis, heartbeat, model, and then the room's own loop.

Holds torch only once it runs.
"""

import asyncio
import faulthandler
import os
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from broker.client import Broker, open_broker
from broker.heartbeat import Heartbeat
from broker.status_board import StatusBoard
from cli.gpu_placement import place
from cli.model import client_name
from cli.stop_signals import StopSignals
from errors import STALLED_EXIT_CODE
from messages.worker_status import Role
from observability.listener import metrics_listener
from observability.tracing import open_tracing
from settings.loading import Settings
from telemetry import configure_logging, get_logger

log = get_logger()

# The last but one is the LoadedModel, whose module holds torch; the last makes SIGTERM set the event it returns.
Work = Callable[[Settings, StatusBoard, Broker, Heartbeat, Any, Callable[[], asyncio.Event]], Awaitable[None]]


def run_worker(settings: Settings, role: Role, work: Work) -> None:
    """Be a worker of `role` until `work` returns, which it does on SIGTERM. Raises StartupError."""
    board = StatusBoard(role)
    configure_logging(settings.log, worker_id=board.worker_id)
    loop = settings.prefill if role is Role.PREFILL else settings.decode
    asyncio.run(_run(settings, board, loop.num_threads, loop.tensor_parallel, work))


async def until_done(working: asyncio.Future[None], signals: StopSignals, exit_s: float) -> None:
    """Await the work. Once asked to stop it has `exit_s`, or until asked again; then the process ends as it stands."""
    asked, insisted = (asyncio.create_task(event.wait()) for event in (signals.asked, signals.insisted))
    either: list[asyncio.Future[Any]] = [working, asked]
    hurried: list[asyncio.Future[Any]] = [working, insisted]
    try:
        await asyncio.wait(either, return_when=FIRST_COMPLETED)
        if not working.done():
            log.info("worker_stopping", within_s=exit_s)
            await asyncio.wait(hurried, timeout=exit_s, return_when=FIRST_COMPLETED)
            if not working.done():
                log.error("drain_cut_short", why="second signal" if insisted.done() else f"not through in {exit_s:g} s")
                end_stalled()
    finally:
        asked.cancel()
        insisted.cancel()
    await working


def end_stalled() -> None:
    """End the process as it stands, from any thread: what hangs cannot be asked to end. Says where each thread is."""
    faulthandler.dump_traceback(all_threads=True)
    os._exit(STALLED_EXIT_CODE)


async def _run(settings: Settings, board: StatusBoard, num_threads: int, num_ranks: int, work: Work) -> None:
    from engine.loading import load
    from engine.ranks import Ranks
    from engine.threads import on_passing_thread

    tracing = open_tracing(settings.tracing, board.role, board.worker_id)
    board.meters.spans = tracing
    model_name = client_name(settings.model, Path(settings.model.path))
    async with AsyncExitStack() as stack:
        if tracing is not None:
            stack.callback(tracing.close)
        stack.enter_context(metrics_listener(settings.metrics, board.meters, board.read, model_name))
        broker = await stack.enter_async_context(
            open_broker(settings.redis, settings.queue, settings.stream, is_patient=True)
        )
        heartbeat = Heartbeat(
            settings.redis,
            settings.queue,
            board.worker_id,
            board.role,
            board.read,
            num_rounds=board.num_rounds,
            on_stall=end_stalled,
        )
        heartbeat.start()
        lease, ranks = None, None
        try:
            lease = await place(settings.gpu, settings.model, num_ranks, board)
            if num_ranks > 1:
                module = f"{board.role}_worker.rank"
                ranks = Ranks.start(module, num_ranks, board.worker_id, num_threads, settings)
            loaded = await on_passing_thread(load, settings, board.role, num_threads, board.say, ranks)
            await broker.registry.refuse_mixed(loaded.model.model_hash, settings.kv.block_size)
            signals = StopSignals()

            def listen() -> asyncio.Event:
                signals.listen()
                return signals.asked

            working = asyncio.ensure_future(work(settings, board, broker, heartbeat, loaded, listen))
            if ranks is not None:
                loop = asyncio.get_running_loop()
                ranks.on_lost = lambda: loop.call_soon_threadsafe(working.cancel)
            try:
                await until_done(working, signals, settings.queue.exit_s)
            except asyncio.CancelledError:
                if ranks is None or ranks.failure is None:
                    raise
                raise ranks.failure from None
        finally:
            heartbeat.stop()
            if ranks is not None:
                ranks.close()
            if lease is not None:
                lease.release()
