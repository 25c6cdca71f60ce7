"""Rank 1 or up of a tensor-parallel worker, in its own process: load a part, join the others, compute what is told.

It knows pipes and the runner. What the pool lies on, and what is pulled into it, is the role's
(`prefill_worker/rank.py`, `decode_worker/rank.py`).
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch._C._distributed_c10d import FileStore

from engine.kv_pool import KVPool
from engine.loading import LoadedModel, decode_graphs, load_part
from engine.model_runner import ModelRunner
from engine.process_group import GroupCommunicator
from engine.rank_messages import Here, Loaded, RankMessage, Ready, Serve, Start, StartFailed, decode, encode
from engine.step import DecodeStep, PrefillStep, ScoreStep
from engine.tensor_parallel import Shard
from errors import StartupError
from messages.kv_transfer import PoolExport
from messages.worker_status import Role
from settings.loading import Settings
from telemetry import configure_logging


@dataclass(frozen=True, slots=True)
class RankProcess:
    """This process: a loaded part of the model, and the pipes to rank 0."""

    settings: Settings
    role: Role
    worker_id: str
    shard: Shard
    loaded: LoadedModel
    num_blocks: int
    pulls: Connection
    _steps: Connection

    def serve(self, pool: KVPool, export: PoolExport | None = None) -> None:
        """Compute every step until rank 0 closes. Raises RuntimeError when another rank is gone."""
        self._steps.send_bytes(encode(Ready(export)))
        graphs = None
        if self.role is Role.DECODE:
            graphs = decode_graphs(self.settings, self.loaded.model, pool, lambda line: None)
        runner = ModelRunner(self.loaded.model, pool, graphs=graphs)
        while True:
            try:
                step = decode(self._steps.recv_bytes())
            except (EOFError, OSError):
                return
            assert isinstance(step, PrefillStep | DecodeStep | ScoreStep), f"{step} is no step"
            runner.compute(step)


def run_rank(role: Role, serve: Callable[[RankProcess], None]) -> None:
    """Be the rank of a worker of `role` that rank 0 says; `serve` makes the pool and calls `RankProcess.serve`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C reaches us too; we end when rank 0 does
    steps, pulls = (Connection(int(descriptor)) for descriptor in sys.argv[1:3])
    start = decode(steps.recv_bytes())
    assert isinstance(start, Start)
    settings = Settings.model_validate_json(start.settings)
    configure_logging(settings.log, worker_id=start.worker_id, rank=str(start.shard.rank))

    def join(device: torch.device) -> GroupCommunicator:
        steps.send_bytes(encode(Here()))
        return GroupCommunicator(start.shard, FileStore(start.store_path), device, 2 * settings.model.rank_timeout_s)

    try:
        loaded = load_part(settings, role, start.num_threads, lambda line: None, start.shard, join)
        steps.send_bytes(encode(Loaded(loaded.num_blocks)))
        said: RankMessage = decode(steps.recv_bytes())
        assert isinstance(said, Serve)
        serve(RankProcess(settings, role, start.worker_id, start.shard, loaded, said.num_blocks, pulls, steps))
    except StartupError as error:
        steps.send_bytes(encode(StartFailed(error.exit_code, str(error))))
        sys.exit(error.exit_code)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # rank 0 has ended
