"""Pulling for every rank of a decode worker, from every rank of the owner that has heads for it.

Rank 0's process owns the pools of all ranks and pulls for all. The owner may have another number of ranks: then a pull
takes of each block the heads that two ranks share. Knows how heads are split; each pull is a `KVReceiver`'s.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import msgspec
import torch

from kv_transfer.copy_runs import BlockCut
from kv_transfer.head_split import HeadSplit
from kv_transfer.receiver import KVReceiver
from messages import KVHandle, KVTransferFailed, PoolExport, TransferCount

ReceiverOf = Callable[[int, BlockCut], KVReceiver]  # of a rank of ours, for owners whose blocks are cut so


class ShardedReceiver:
    """One `KVReceiver` per rank and cut, made when it is first needed."""

    def __init__(self, split: HeadSplit, num_ranks: int, receiver_of: ReceiverOf) -> None:
        self._split, self._num_ranks, self._receiver_of = split, num_ranks, receiver_of
        self._lock = threading.Lock()
        self._receivers: dict[tuple[int, BlockCut], KVReceiver] = {}
        self._threads = ThreadPoolExecutor(num_ranks, thread_name_prefix="pull-rank")

    def pull(
        self, handle: KVHandle, pools: Sequence[torch.Tensor], block_ids: Sequence[int], export: PoolExport | None
    ) -> None:
        """Copy the handle's blocks, in order, to `block_ids` of each rank's pool. Raises as `KVReceiver.pull`."""
        if export is not None and (export.pool, export.pool_epoch) != (handle.pool, handle.pool_epoch):
            export = None
        shards = (None,) if export is None else (export, *export.shards)
        pulls = []
        for rank in range(self._num_ranks):
            try:
                cuts = self._split.cuts(len(shards), self._num_ranks, rank)
            except ValueError as error:
                raise KVTransferFailed(f"pool {handle.pool[:160]}: {error}") from error
            for source_rank, cut in cuts:
                shard = shards[source_rank]
                pull = partial(self._receiver(rank, cut).pull, _handle_in(handle, shard), pools[rank], block_ids, shard)
                pulls.append(pull)
        if len(pulls) == 1:
            pulls[0]()
            return
        running = [self._threads.submit(pull) for pull in pulls]
        wait(running)  # for all: who gives the blocks back must not be written over by the rest
        for one in running:
            one.result()

    @property
    def counts(self) -> dict[str, TransferCount]:
        """What each transport has done, for all ranks together."""
        total: dict[str, TransferCount] = {}
        for receiver in self._all():
            for kind, count in receiver.counts.items():
                total[kind] = total.get(kind, TransferCount()).plus(count.pulls, count.num_bytes, count.failures)
        return total

    def prune(self) -> int:
        """As `KVReceiver.prune`."""
        return sum(receiver.prune() for receiver in self._all())

    def close(self) -> None:
        """As `KVReceiver.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for receiver in self._all():
            receiver.close()

    def _receiver(self, rank: int, cut: BlockCut) -> KVReceiver:
        with self._lock:
            if (rank, cut) not in self._receivers:
                self._receivers[rank, cut] = self._receiver_of(rank, cut)
            return self._receivers[rank, cut]

    def _all(self) -> list[KVReceiver]:
        with self._lock:
            return list(self._receivers.values())


def _handle_in(handle: KVHandle, shard: PoolExport | None) -> KVHandle:
    """The handle as that rank of its owner would have made it: offers are in step, so only the pool differs."""
    if shard is None:
        return handle
    return msgspec.structs.replace(handle, pool=shard.pool, pool_epoch=shard.pool_epoch)
