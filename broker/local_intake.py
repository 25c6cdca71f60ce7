"""How a decode worker comes by prompts that it prefills itself: an Intake that takes by a bid. Knows no policy."""

from broker.bid import Bid
from broker.client import Broker
from broker.heartbeat import Heartbeat
from broker.intake import Claim, Intake
from broker.job_queue import EVERY_CLASS
from messages.job import Phase, PrefillJob
from observability.worker_meters import WorkerMeters
from settings.broker import QueueSettings

MOST_STRAYS = 16  # that are taken at once from those who are gone


class LocalIntake(Intake[PrefillJob]):
    """One per decode worker."""

    def __init__(
        self,
        broker: Broker,
        heartbeat: Heartbeat,
        worker_id: str,
        settings: QueueSettings,
        meters: WorkerMeters | None = None,
    ) -> None:
        # A decode worker has it and holds blocks for it, so that it counts as decoding from the beginning.
        super().__init__(broker, broker.local_queue, heartbeat, worker_id, Phase.DECODING, settings, meters)
        self._local_queue = broker.local_queue
        self.has_bid = False  # one may stand

    async def seek(self, bid: Bid, block_ms: int) -> list[Claim[PrefillJob]]:
        """Prompts that fit the bid, those of the dead first, whatever their length; waits at most `block_ms`."""
        entries = await self._reclaim_if_due(1, EVERY_CLASS)
        if not entries:
            self.has_bid = True
            entries = await self._local_queue.seek(self._worker_id, bid, block_ms)
        return await self._claims(self._hold(entries))

    async def strays(self) -> list[Claim[PrefillJob]]:
        """What lies in the local queue though who bid for it is gone, or bids no more, as we do from now on."""
        if self.has_bid:
            await self._local_queue.withdraw(self._worker_id)
            self.has_bid = False
        return await self.next_claims(MOST_STRAYS, 0)
