"""Rank 1 or up of a tensor-parallel decode worker: its pool, and a thread that pulls into it beside the steps."""

import threading
from multiprocessing.connection import Connection

from decode_worker.shard_receiver import ShardReceiver, start_receiver
from engine.kv_pool import KVPool
from engine.rank_messages import Pull, Pulled, decode, encode
from engine.rank_process import RankProcess, run_rank
from errors import KVTransferFailed
from messages.worker_status import Role

PRUNE_S = 1.0  # how often what is kept of dead owners is let go


def serve(rank: RankProcess) -> None:
    """Pull and compute until rank 0 closes."""
    pool = KVPool.allocate(rank.loaded.layout, rank.num_blocks, rank.loaded.model.device)
    receiver = start_receiver(rank.settings.kv_transfer, f"{rank.worker_id}-{rank.shard.rank}", rank.loaded)
    threading.Thread(target=_pull_until_closed, args=(rank.pulls, receiver, pool), name="pull", daemon=True).start()
    rank.serve(pool)


def _pull_until_closed(pulls: Connection, receiver: ShardReceiver, pool: KVPool) -> None:
    with pulls:  # a rank that no longer pulls is lost, and rank 0 finds out by this
        try:
            while True:
                if not pulls.poll(PRUNE_S):
                    receiver.prune()
                    continue
                pull = decode(pulls.recv_bytes())
                assert isinstance(pull, Pull)
                pulls.send_bytes(encode(_pulled(pull, receiver, pool)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # rank 0 has ended; the steps end with it


def _pulled(pull: Pull, receiver: ShardReceiver, pool: KVPool) -> Pulled:
    try:
        receiver.pull(pull.handle, pool.tensor, pull.block_ids, pull.export, pull.request_id)
    except KVTransferFailed as error:
        return Pulled(str(error) or repr(error))
    return Pulled()


if __name__ == "__main__":
    run_rank(Role.DECODE, serve)
