"""A decode worker put together from a loaded model: its pool, the ways to pull KV into it, a runner, the loop.

Knows the engine and the transfer, and nothing of what the loop does.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from broker.client import Broker
from broker.heartbeat import Heartbeat
from broker.status_board import StatusBoard
from decode_worker.pace_probe import measure_pace
from decode_worker.pool import open_pool
from decode_worker.shard_receiver import start_receiver
from decode_worker.step_turns import StepTurns
from decode_worker.worker import DecodeWorker
from engine.block_growth import growth_of
from engine.block_space import BlockSpace
from engine.loading import LoadedModel, decode_graphs
from engine.model_runner import ModelRunner, alone
from engine.threads import on_passing_thread
from kernels import cpu_build
from kv_transfer.seal import open_seal
from kv_transfer.segment import sweep_segments
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
    num_blocks, model, ranks = loaded.num_blocks, loaded.model, loaded.ranks
    seal = open_seal(settings.kv_transfer, log.warning)
    turns = StepTurns()
    between_slices = turns.wait if model.device.type == "cpu" else None  # a GPU's copies take no cores from its steps
    with ExitStack() as stack:
        pool, exported = await on_passing_thread(open_pool, settings, board.worker_id, loaded)
        if exported is not None:
            stack.enter_context(exported)
            board.export = seal.seal_export(exported.export)
        receiver = await on_passing_thread(
            start_receiver, settings.kv_transfer, board.worker_id, loaded, between_slices
        )
        stack.callback(receiver.close)
        if ranks is not None:
            ranks.serve(num_blocks)
        board.read_transfers = lambda: receiver.counts
        board.meters.read_pairs = lambda: receiver.pairs
        # A worker killed beside us leaves its pool in /dev/shm, and our mapping keeps the memory.
        heartbeat.on_tick += [sweep_segments, receiver.prune]
        graphs = await on_passing_thread(decode_graphs, settings, model, pool, board.say)
        runner = ModelRunner(model, pool, ranks.step if ranks else alone, graphs, loaded.grammars)
        # On GPUs the pool leaves no room for a prefill step, and prefill is what they are many for.
        can_prefill = model.device.type == "cpu" and not model.is_reward and settings.decode.local_prefill != "never"
        sender = None if exported is None else exported.sender
        growth = None
        if sender is not None:
            growth = growth_of(settings.kv, pool.layout.block_bytes, num_blocks, sender.reserve, sender.num_reservable)
        has_cache = can_prefill and settings.kv.prefix_cache
        space = BlockSpace(num_blocks, settings.kv.block_size, has_cache, growth=growth)
        library = cpu_build.loaded() if model.device.type == "cpu" else None
        worker = DecodeWorker(
            settings, broker, board, heartbeat, runner, pool, space, receiver, seal, sender, turns, library
        )
        if can_prefill:
            await on_passing_thread(measure_pace, runner, space, worker.local.pace)
        else:
            worker.local.turn_off()
        worker.stopping = listen()
        board.max_running = settings.decode.max_running
        board.ready(model_hash=model.model_hash, block_size=settings.kv.block_size, num_blocks=num_blocks)
        log.info("worker_ready", num_blocks=num_blocks, capacity_tokens=num_blocks * settings.kv.block_size)
        await worker.run()
