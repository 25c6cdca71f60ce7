"""A prefill worker put together from a loaded model: a pool that others can pull from, a runner, the loop.

Knows the engine and the transfer, and nothing of what the loop does.
"""

import asyncio
from collections.abc import Callable

from broker.client import Broker
from broker.heartbeat import Heartbeat
from broker.status_board import StatusBoard
from engine.block_growth import first_blocks, growth_of
from engine.block_space import BlockSpace
from engine.kv_pool import KVPool
from engine.loading import LoadedModel
from engine.model_runner import ModelRunner
from engine.threads import on_passing_thread
from kernels import cpu_build
from kv_transfer.checksum import start_summer
from kv_transfer.exported_pool import ExportedPool
from kv_transfer.local import start_driver
from kv_transfer.seal import open_seal
from kv_transfer.segment import sweep_segments
from kv_transfer.self_test import self_test
from prefill_worker.worker import PrefillWorker
from settings.loading import Settings
from telemetry import get_logger

log = get_logger()


async def work(
    settings: Settings,
    board: StatusBoard,
    broker: Broker,
    heartbeat: Heartbeat,
    loaded: LoadedModel,
    listen: Callable[[], asyncio.Event],
) -> None:
    """Serve with the loaded model until the event of `listen` is set, which SIGTERM does. Raises StartupError."""
    layout, num_blocks, ranks = loaded.layout, loaded.num_blocks, loaded.ranks
    seal = open_seal(settings.kv_transfer, log.warning)
    driver, place = start_driver(settings.kv_transfer, loaded.model.device)
    await on_passing_thread(self_test, driver)
    heartbeat.on_tick.append(sweep_segments)  # a worker killed beside us leaves its pool in /dev/shm
    with ExportedPool(
        settings.kv_transfer,
        driver,
        place,
        worker_id=board.worker_id,
        num_blocks=num_blocks,
        block_bytes=layout.block_bytes,
        layout_hash=layout.hash(loaded.model.model_hash),
        max_offers=settings.kv_transfer.max_offers,
        summer=start_summer(settings.kv_transfer, loaded.model.device),
        # The pools of all ranks are reserved by their own.
        first_blocks=first_blocks(settings.kv, layout.block_bytes, num_blocks) if ranks is None else None,
    ) as exported:
        pool = KVPool.over(layout, exported.sender.buffer)
        if ranks is None:
            runner = ModelRunner(loaded.model, pool, grammars=loaded.grammars)
        else:
            exported.lead(ranks.serve(num_blocks))
            runner = ModelRunner(loaded.model, pool, ranks.step, grammars=loaded.grammars)
        board.export = seal.seal_export(exported.export)
        growth = None
        if ranks is None and loaded.model.device.type == "cpu":
            sender = exported.sender
            growth = growth_of(settings.kv, layout.block_bytes, num_blocks, sender.reserve, sender.num_reservable)
        space = BlockSpace(num_blocks, settings.kv.block_size, settings.kv.prefix_cache, growth)
        library = cpu_build.loaded() if loaded.model.device.type == "cpu" else None
        worker = PrefillWorker(
            settings, broker, board, heartbeat, runner, space, exported.sender, seal, library, loaded.images
        )
        worker.stopping = listen()
        board.max_running = settings.prefill.max_running
        board.ready(model_hash=loaded.model.model_hash, block_size=settings.kv.block_size, num_blocks=num_blocks)
        log.info("worker_ready", num_blocks=num_blocks, capacity_tokens=num_blocks * settings.kv.block_size)
        await worker.run()
