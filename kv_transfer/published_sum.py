"""The checksum that an owner puts into its pool's head beside the offer: how a puller comes by it.

The owner sums its blocks while the offer is on its way, so that the handoff does not wait for it; the puller, who has
to copy first, mostly finds it there. Knows heads and handles; knows no transport and no bytes.
"""

import time
from collections.abc import Callable

from errors import KVTransferFailed
from kv_transfer.offer_check import check_still_offered
from kv_transfer.pool_export import PoolHead
from messages.kv_transfer import KVHandle

SUM_WAIT_S = 5.0  # an owner that has not summed its blocks by then has stopped
_LOOK_S = 0.0002  # between two looks; 512 tokens of the demo model are summed in about a millisecond


def wait_for_sum(
    handle: KVHandle,
    head: PoolHead,
    is_owner_alive: Callable[[], bool] = lambda: True,
    refresh: Callable[[], object] = lambda: None,
) -> int:
    """What the owner says that the handle's blocks hold, once it says it.

    `refresh` brings `head` up to date where it is a copy. Raises OfferGone when the offer is withdrawn before, and
    KVTransferFailed when the owner has ended or is silent.
    """
    give_up = time.monotonic() + SUM_WAIT_S
    while (value := head.checksum(handle.slot, handle.generation)) is None:
        check_still_offered(handle, head)
        if not is_owner_alive() or time.monotonic() > give_up:
            raise KVTransferFailed(f"transfer {handle.transfer_id[:80]}: its owner does not say what was offered")
        time.sleep(_LOOK_S)
        refresh()
    return value
