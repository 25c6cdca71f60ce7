"""`pdq status`: the cluster as the registry and the queues know it.

`read_cluster` asks Redis; `render` is pure.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from broker.choice import SequenceLoad
from broker.client import Broker, open_broker
from cli.options import RedisUrlFlag, settings_from
from messages.job import Phase
from messages.request import Priority
from messages.worker_status import WorkerStatus
from settings.loading import Settings

REFRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One look at the cluster."""

    workers: Sequence[WorkerStatus]
    prefill_depths: Mapping[Priority, int]  # jobs on the queue, taken ones included
    decode_depths: Mapping[Priority, int]
    loads: Sequence[SequenceLoad]


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    redis_url: RedisUrlFlag = None,
) -> None:
    """Show workers, queues and running sequences. For `pdq serve` the banner names the --redis-url."""
    settings = settings_from(redis_url=redis_url)
    try:
        asyncio.run(_show(settings, watch))
    except KeyboardInterrupt:
        pass  # the way to end --watch


async def _show(settings: Settings, watch: bool) -> None:
    console = Console()
    async with open_broker(settings.redis, settings.queue, settings.stream) as broker:
        picture = render(await read_cluster(broker))
        if not watch:
            console.print(picture)
            return
        with Live(picture, console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(REFRESH_S)
                live.update(render(await read_cluster(broker)), refresh=True)


async def read_cluster(broker: Broker) -> ClusterState:
    """The cluster as of now."""
    workers, prefill_depths, decode_depths, loads = await asyncio.gather(
        broker.registry.live(),
        broker.prefill_queue.depths(),
        broker.decode_queue.depths(),
        broker.request_reader.loads(),
    )
    return ClusterState(workers, prefill_depths, decode_depths, loads)


def render(state: ClusterState) -> RenderableType:
    """Two tables: workers, and what is waiting or running."""
    workers = Table("worker", "state", "host", "running", "KV tokens", "KV used", "detail", title="workers")
    for worker in state.workers:
        used = 1 - worker.free_blocks / worker.num_blocks if worker.num_blocks else 0.0
        detail = (
            worker.detail
            or " ".join(worker.gpus)
            or (f"no progress for {worker.idle_s:.1f} s" if worker.idle_s >= REFRESH_S else "")
        )
        workers.add_row(
            worker.worker_id,
            str(worker.state),
            f"{worker.host}:{worker.pid}",
            str(worker.num_running),
            f"{worker.capacity_tokens:,}",
            f"{used:.0%}",
            detail,
        )
    if not state.workers:
        workers.add_row("none is alive", *[""] * 6)
    transfers = Table("worker", "transport", "pulls", "MB", "failures", title="KV transfers")
    for worker in state.workers:
        for kind, count in worker.transfers.items():
            if count.pulls or count.failures:
                moved = f"{count.num_bytes / 1e6:,.0f}"
                transfers.add_row(worker.worker_id, kind, str(count.pulls), moved, str(count.failures))
    loads = Table("phase", "sequences", "tokens", title="sequences")
    num_sequences = Counter(load.phase for load in state.loads)
    num_tokens: Counter[Phase] = Counter()
    for load in state.loads:
        num_tokens[load.phase] += load.prompt_tokens + load.output_tokens
    for phase in Phase:
        loads.add_row(phase, str(num_sequences[phase]), f"{num_tokens[phase]:,}")
    depths = f"jobs on the queues: {_counted(state.prefill_depths)} prefill, {_counted(state.decode_depths)} decode"
    return Group(workers, transfers, loads, depths) if transfers.row_count else Group(workers, loads, depths)


def _counted(depths: Mapping[Priority, int]) -> str:
    """All of them, and which are not normal."""
    others = ", ".join(f"{depth} {priority}" for priority, depth in depths.items() if depth and priority != "normal")
    return f"{sum(depths.values())}{f' ({others})' if others else ''}"
