"""KV from a worker that is cut into ranks to one that may be cut otherwise: who pulls what from whom.

Every rank of ours pulls the heads that it computes with, from those ranks of the owner that have them: cut alike, whole
blocks, rank from rank; else the part of each block that both have. Knows receivers and ranks; it does not know where
handles come from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import torch

from engine.loading import LoadedModel
from engine.rank_messages import Pull
from engine.ranks import Ranks
from engine.tensor_parallel import Shard
from errors import KVTransferFailed
from kv_transfer.checksum import start_summer
from kv_transfer.copy_runs import BlockCut
from kv_transfer.head_split import HeadSplit
from kv_transfer.local import start_driver
from kv_transfer.network import start_pullers
from kv_transfer.receiver import KVReceiver
from kv_transfer.self_test import self_test
from messages.kv_transfer import KVHandle, PoolExport, TransferCount
from settings.kv import TransferSettings


class ShardReceiver:
    """A `KVReceiver` per cut for one rank's heads; in rank 0 it has the others pull theirs. One pull at a time."""

    def __init__(
        self,
        split: HeadSplit,
        shard: Shard,
        open_receiver: Callable[[BlockCut], KVReceiver],
        ranks: Ranks | None = None,
    ) -> None:
        """`open_receiver`: for owners whose blocks are cut so."""
        self._split, self._shard = split, shard
        self._open_receiver = open_receiver
        self._ranks = ranks
        # For owners that are cut as we are; for others, when the first is met.
        self._receivers = {
            cut: open_receiver(cut) for _, cut in split.cuts(shard.num_ranks, shard.num_ranks, shard.rank)
        }

    @property
    def counts(self) -> Mapping[str, TransferCount]:
        """By transport, what this rank has pulled."""
        total: dict[str, TransferCount] = {}
        for receiver in list(self._receivers.values()):
            for kind, count in receiver.counts.items():
                total[kind] = total.get(kind, TransferCount()).plus(count.pulls, count.num_bytes, count.failures)
        return total

    @property
    def pairs(self) -> Mapping[tuple[str, str], int]:
        """See KVReceiver."""
        total: dict[tuple[str, str], int] = {}
        for receiver in list(self._receivers.values()):
            for pair, number in list(receiver.pairs.items()):
                total[pair] = total.get(pair, 0) + number
        return total

    def pull(
        self,
        handle: KVHandle,
        into: torch.Tensor,
        block_ids: Sequence[int],
        export: PoolExport | None = None,
        request_id: str = "",
    ) -> None:
        """See KVReceiver; `into` is our rank's pool. Raises RankLost too."""
        if self._ranks is None:
            self._pull_ours(handle, into, block_ids, export, request_id)
            return
        with self._ranks.pull(Pull(handle, list(block_ids), export, request_id)) as failures:
            self._pull_ours(handle, into, block_ids, export, request_id)
        if failures:
            raise KVTransferFailed("; ".join(failures))

    def _pull_ours(
        self,
        handle: KVHandle,
        into: torch.Tensor,
        block_ids: Sequence[int],
        export: PoolExport | None,
        request_id: str,
    ) -> None:
        num_pools = 1 if export is None else 1 + len(export.ranks)
        if handle.num_ranks != num_pools:
            raise KVTransferFailed(f"the handle is of {handle.num_ranks} ranks, of {num_pools} is known where they are")
        if export is not None and num_pools > 1:
            # What rank 0's export says of the others is all that ties their pools to this handle.
            if (export.pool, export.pool_epoch) != (handle.pool, handle.pool_epoch):
                raise KVTransferFailed(
                    f"pool {handle.pool[:160]}: where its ranks are is said of another pool or epoch"
                )
        try:
            cuts = self._split.cuts(handle.num_ranks, self._shard.num_ranks, self._shard.rank)
        except ValueError as error:
            raise KVTransferFailed(f"pool {handle.pool[:160]}: {error}") from error
        for rank, cut in cuts:
            if cut not in self._receivers:
                self._receivers[cut] = self._open_receiver(cut)
            theirs = _of_rank(handle, export, rank)
            self._receivers[cut].pull(theirs, into, block_ids, _rank_of(export, rank), request_id)

    def prune(self) -> int:
        """See KVReceiver."""
        return sum(receiver.prune() for receiver in list(self._receivers.values()))

    def close(self) -> None:
        """See KVReceiver."""
        for receiver in list(self._receivers.values()):
            receiver.close()


def start_receiver(
    settings: TransferSettings,
    worker_id: str,
    loaded: LoadedModel,
    between_slices: Callable[[], object] | None = None,
) -> ShardReceiver:
    """What pulls into a pool for this model, over every transport there is here; `between_slices`: see MappedPuller.

    Raises DeviceError, ConfigError.
    """
    model, layout = loaded.model, loaded.layout
    driver, place = start_driver(settings, model.device)
    self_test(driver)
    summer = start_summer(settings, model.device)
    network = start_pullers(settings, worker_id, driver, summer)
    split = HeadSplit(2 * layout.num_layers, model.config.num_kv_heads, layout.head_bytes)

    def open_receiver(cut: BlockCut) -> KVReceiver:
        theirs = replace(layout, num_kv_heads=split.heads_in(cut.source_block_bytes))
        layout_hash = theirs.hash(model.model_hash)
        return KVReceiver(
            layout_hash,
            cut.source_block_bytes,
            driver,
            network=network(layout_hash, cut),
            place=place,
            require=settings.require,
            cut=cut,
            summer=summer,
            between_slices=between_slices,
        )

    return ShardReceiver(split, model.communicator.shard, open_receiver, loaded.ranks)


def _rank_of(export: PoolExport | None, rank: int) -> PoolExport | None:
    """What is known of that rank's pool."""
    return export if export is None or rank == 0 else export.ranks[rank - 1]


def _of_rank(handle: KVHandle, export: PoolExport | None, rank: int) -> KVHandle:
    """The offer as it stands in that rank's pool."""
    pool = _rank_of(export, rank)
    if rank == 0 or pool is None:
        return handle
    return msgspec.structs.replace(handle, pool=pool.pool, pool_epoch=pool.pool_epoch)
