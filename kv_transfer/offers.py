"""The blocks this worker has offered and still owns.

An offer is closed by the release of the decode worker that pulled it, by a cancel, or because the sequence has moved on
without it (it ended, or went to another queue). Knows the sender and who gets the blocks back; knows no Redis and no
model.
"""

import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from kv_transfer.seal import Seal
from kv_transfer.sender import KVSender
from messages.kv_transfer import KVHandle
from messages.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks under a handle, and the job they were offered for."""

    handle: KVHandle
    request: GenerationRequest
    choice: int
    hop: int

    @property
    def transfer_id(self) -> str:
        """The handle's."""
        return self.handle.transfer_id

    @property
    def key(self) -> tuple[str, int]:
        """(request_id, choice)."""
        return self.request.request_id, self.choice


class Offers:
    """Every open offer of this worker."""

    def __init__(self, sender: KVSender, free: Callable[[list[int]], None], seal: Seal) -> None:
        """`free` gets the blocks of every offer that is closed."""
        self._sender, self._free, self._seal = sender, free, seal
        self._open: dict[str, Offer] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Offer]:
        return iter(list(self._open.values()))

    def is_open(self, offer: Offer) -> bool:
        """Whether it has not been closed yet."""
        return offer.transfer_id in self._open

    def checksums(self, block_ids: list[int]) -> tuple[int, ...]:
        """Of filled blocks, for `put_checksums`; reads them all."""
        return self._sender.checksums(block_ids)

    async def put_checksums(self, offer: Offer, checksums: Awaitable[tuple[int, ...]]) -> None:
        """Say what the offer's blocks hold, once it is known; who pulls them waits for it."""
        self._sender.put_checksums(offer.transfer_id, await checksums)

    def open(
        self,
        request: GenerationRequest,
        choice: int,
        hop: int,
        block_ids: list[int],
        num_tokens: int,
    ) -> Offer:
        """Offer `block_ids`, which become the offer's to free, to whoever takes this job. `put_checksums` follows."""
        handle = self._sender.offer(uuid.uuid4().hex, block_ids, num_tokens, sums_follow=True)
        handle = self._seal.seal_handle(handle, request.request_id, choice, hop)
        offer = Offer(handle, request, choice, hop)
        self._open[offer.transfer_id] = offer
        return offer

    def close(self, transfer_id: str) -> bool:
        """Withdraw the offer and free its blocks. False when it is closed already (every repeat is harmless)."""
        offer = self._open.pop(transfer_id, None)
        if offer is None:
            return False
        self._sender.withdraw(transfer_id)  # first: a pull that is under way must see that the blocks may change
        self._free(offer.handle.block_ids)
        return True

    def close_all_of(self, key: tuple[str, int]) -> int:
        """Close every offer made for (request_id, choice); how many there were."""
        mine = [offer.transfer_id for offer in self._open.values() if offer.key == key]
        return sum(self.close(transfer_id) for transfer_id in mine)
