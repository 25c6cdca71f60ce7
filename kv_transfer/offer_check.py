"""Whether what a handle says is what its owner offers, by the owner's head. Pure, but for reading the head."""

from kv_transfer.pool_export import PoolHead, offer_digest
from messages import KVHandle, KVTransferFailed


class OfferGone(KVTransferFailed):
    """The owner does not offer this, however one asks."""


def check_offer(handle: KVHandle, head: PoolHead) -> None:
    """Raises OfferGone unless the handle's blocks are in the pool and its offer stands right now."""
    shape = head.shape
    name = f"transfer {handle.transfer_id[:80]}"
    if not 0 <= handle.slot < shape.num_slots:
        raise OfferGone(f"{name}: slot {handle.slot} of {shape.num_slots}")
    for block_id in handle.block_ids:
        if not 0 <= block_id < shape.num_blocks:
            raise OfferGone(f"{name}: block {block_id} of a pool of {shape.num_blocks}")
    generation = head.generation(handle.slot)
    if generation != handle.generation or generation % 2 == 0:
        raise OfferGone(f"{name}: no longer offered, generation {handle.generation} but is {generation}")
    digest = offer_digest(handle.worker_id, handle.transfer_id, handle.num_tokens, handle.block_ids, handle.num_ranks)
    if head.digest(handle.slot) != digest:
        raise OfferGone(f"{name}: the handle is not what was offered in slot {handle.slot}")
