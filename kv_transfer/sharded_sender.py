"""The pools of all ranks of one prefill worker, offered as one.

Rank 0's process owns all of them, so an offer takes no word with another process. Every offer is made in each pool, in
one order: slots and generations are the same in all, and one handle says it for all. Knows no device.
"""

import threading
from collections.abc import Sequence

import msgspec

from kv_transfer.sender import KVSender
from messages import KVHandle, PoolExport


class ShardedSender:
    """One `KVSender` per rank. Safe to call from several threads."""

    def __init__(self, senders: Sequence[KVSender]) -> None:
        self.senders = list(senders)
        self._lock = threading.Lock()

    @property
    def num_offers(self) -> int:
        """Open offers."""
        return self.senders[0].num_offers

    @property
    def num_free_offers(self) -> int:
        """Offers that can still be made."""
        return self.senders[0].num_free_offers

    def offer(self, transfer_id: str, block_ids: Sequence[int], num_tokens: int) -> KVHandle:
        """As `KVSender.offer`, of the blocks of these ids in every pool."""
        with self._lock:
            first, *others = [sender.offer(transfer_id, block_ids, num_tokens) for sender in self.senders]
            assert all((one.slot, one.generation) == (first.slot, first.generation) for one in others), "in step"
            return first

    def withdraw(self, transfer_id: str) -> bool:
        """As `KVSender.withdraw`."""
        with self._lock:
            withdrawn = [sender.withdraw(transfer_id) for sender in self.senders]
            return all(withdrawn)

    def export(self, host_id: str, devices: Sequence[str], addresses: Sequence[dict[str, bytes]]) -> PoolExport:
        """What receivers are to know of the pools; devices and addresses by rank."""
        first, *others = [
            sender.export(host_id, device, reachable)
            for sender, device, reachable in zip(self.senders, devices, addresses, strict=True)
        ]
        return msgspec.structs.replace(first, shards=tuple(others))

    def close(self) -> None:
        """As `KVSender.close`."""
        for sender in self.senders:
            sender.close()
