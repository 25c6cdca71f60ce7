"""Whether what a handle says is what its owner offers, by the owner's head. Pure, but for reading the head."""

from errors import KVTransferFailed
from kv_transfer.pool_export import PoolHead, PoolShape, offer_digest
from messages.kv_transfer import KVHandle


class OfferGone(KVTransferFailed):
    """The owner does not offer this, however one asks."""


def check_places(handle: KVHandle, shape: PoolShape) -> None:
    """Before a slot or block is looked at. Raises OfferGone unless the handle's are in the pool."""
    name = _name(handle)
    if not 0 <= handle.slot < shape.num_slots:
        raise OfferGone(f"{name}: slot {handle.slot} of {shape.num_slots}")
    for block_id in handle.block_ids:
        if not 0 <= block_id < shape.num_blocks:
            raise OfferGone(f"{name}: block {block_id} of a pool of {shape.num_blocks}")


def check_offer(handle: KVHandle, head: PoolHead) -> None:
    """Before the first byte. Raises OfferGone unless the handle's blocks are in the pool and its offer stands."""
    check_places(handle, head.shape)
    generation = head.generation(handle.slot)
    if generation != handle.generation or generation % 2 == 0:
        raise OfferGone(f"{_name(handle)}: no longer offered, generation {handle.generation} but is {generation}")
    if head.digest(handle.slot) != digest_of(handle):
        raise OfferGone(f"{_name(handle)}: the handle is not what was offered in slot {handle.slot}")


def check_still_offered(handle: KVHandle, head: PoolHead) -> None:
    """After the last byte, of an offer that stood before the first. Raises OfferGone unless it stood all the time."""
    if head.generation(handle.slot) != handle.generation or head.epoch() != handle.pool_epoch:
        raise OfferGone(f"{_name(handle)}: withdrawn while it was pulled")


def digest_of(handle: KVHandle) -> int:
    """What has to stand in the handle's slot."""
    return offer_digest(
        handle.worker_id,
        handle.transfer_id,
        handle.num_tokens,
        handle.block_ids,
        handle.num_ranks,
        handle.pool_epoch,
    )


def _name(handle: KVHandle) -> str:
    return f"transfer {handle.transfer_id[:80]}"
