"""KV that is on offer: where it lies, how to reach it, that it was pulled. Owner -> receiver, and back."""

import msgspec


class KVHandle(msgspec.Struct, frozen=True, array_like=True):
    """What a receiver needs to pull offered blocks. At most 1 KiB, block ids aside."""

    transfer_id: str
    worker_id: str  # the owner, to whom the release goes
    pool: str  # name of the exported pool
    pool_epoch: int  # random, one per export; a pool of the same name with another epoch is another pool
    slot: int  # which generation counter in the pool's head guards this offer
    generation: int  # its value while the offer stands
    layout_hash: str  # model, shapes, dtype, block size; compared before the first byte
    num_tokens: int  # tokens whose KV the blocks hold
    block_ids: list[int]
    num_ranks: int = 1  # over how many pools the heads are spread: slot, generation and block ids are the same in all
    is_summed: bool = False  # whether a checksum of the blocks is, or will be, in each pool's head
    mac: bytes = b""  # over all of it and the job it is for (kv_transfer/seal.py); empty where there is no secret


class PoolExport(msgspec.Struct, frozen=True, array_like=True):
    """How an owner's pool can be reached; said once per pool, not per request."""

    worker_id: str
    pool: str  # name of the head's segment in /dev/shm
    pool_epoch: int
    host_id: str  # equal exactly where /dev/shm is shared: boot id and IPC namespace
    device: str  # where the blocks lie: "cpu", or a GPU's UUID ("GPU-..."), never an index
    block_bytes: int
    num_blocks: int
    addresses: dict[str, bytes] = {}  # transport kind -> what its puller needs besides
    ranks: tuple["PoolExport", ...] = ()  # the pools of a tensor-parallel owner's ranks 1 and up, in order
    mac: bytes = b""  # over all of it, ranks included (kv_transfer/seal.py); empty where there is no secret


class TransferCount(msgspec.Struct, frozen=True, array_like=True):
    """What one transport has done for one decode worker since its start."""

    pulls: int = 0
    num_bytes: int = 0
    failures: int = 0

    def plus(self, pulls: int = 0, num_bytes: int = 0, failures: int = 0) -> "TransferCount":
        """The sum."""
        return TransferCount(self.pulls + pulls, self.num_bytes + num_bytes, self.failures + failures)


class Release(msgspec.Struct, frozen=True, array_like=True):
    """Decode worker -> the owner's inbox: the offer is pulled or no longer wanted."""

    transfer_id: str
