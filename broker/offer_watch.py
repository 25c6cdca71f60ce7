"""What becomes of the KV that a worker has on offer: it was pulled, or its sequence went on without it.

Both roles offer, so that this is here once. Knows inboxes, records and deadlines; of offers it knows no more than whom
they are for.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from broker.client import Broker
from broker.deadline import deadline_event, is_past, now_ms
from messages.request import GenerationRequest


class Offered(Protocol):
    """One offer."""

    @property
    def transfer_id(self) -> str:
        """Its name in a Release."""

    @property
    def request(self) -> GenerationRequest:
        """Whose KV it is."""

    @property
    def key(self) -> tuple[str, int]:
        """(request_id, choice)."""

    @property
    def hop(self) -> int:
        """Of the job that it was made for."""


class OpenOffers(Protocol):
    """Every open offer of a worker."""

    def __iter__(self) -> Iterator[Offered]: ...

    def close(self, transfer_id: str) -> bool:
        """Withdraw it; False when it is closed already."""


class OfferWatch:
    """Closes offers that nobody needs any more. `on_closed` is called after each."""

    def __init__(
        self,
        broker: Broker,
        worker_id: str,
        offers: OpenOffers,
        check_s: float,
        clock_tolerance_s: float,
        on_closed: Callable[[], None],
    ) -> None:
        self._broker, self._offers, self._on_closed = broker, offers, on_closed
        self._inbox = broker.inbox(worker_id)
        self._check_s, self._clock_tolerance_s = check_s, clock_tolerance_s

    async def collect_releases(self) -> None:
        """Decode workers say what they have pulled. Never ends."""
        while True:
            for release in await self._inbox.receive(block_ms=1000):
                self._close(release.transfer_id)

    async def follow_sequences(self) -> None:
        """Close offers whose sequence went on without them: a release can be lost, an owner can die. And end those
        that no decode worker took in time. Never ends."""
        while True:
            await asyncio.sleep(self._check_s)
            offers = list(self._offers)
            for offer in offers:
                if is_past(offer.request, now_ms(), self._clock_tolerance_s):
                    event = deadline_event(offer.request)
                    await self._broker.requests.finish(*offer.key, event, offer.request.api_id or None)
            states = await self._broker.request_reader.states([offer.key for offer in offers])
            for offer, state in zip(offers, states, strict=True):
                if state.finished or state.hop > offer.hop:
                    self._close(offer.transfer_id)

    def _close(self, transfer_id: str) -> None:
        if self._offers.close(transfer_id):
            self._on_closed()
