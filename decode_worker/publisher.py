"""What a step gave, on its way to the streams; who has ended by it is acknowledged.

Knows the broker; knows no model, nor when a step still writes into blocks: whoever is refused is dropped by who calls.
"""

import time

from broker.client import Broker
from broker.intake import Intake
from decode_worker.batch import Batch
from decode_worker.departures import Departures
from decode_worker.output import Output
from decode_worker.running import Running
from messages.job import DecodeJob
from observability.catalogue import FENCED
from observability.worker_meters import WorkerMeters


class Publisher:
    """One per worker."""

    def __init__(
        self, broker: Broker, intake: Intake[DecodeJob], batch: Batch, departures: Departures, meters: WorkerMeters
    ) -> None:
        self.broker, self.intake, self.batch = broker, intake, batch
        self.departures, self.meters = departures, meters
        self.unpublished: list[Output] = []  # of the last step

    async def publish(self) -> list[Running]:
        """What the last step gave, in one round trip, and one more for those who have ended. Who was refused: the
        sequence is no longer ours."""
        outputs = self.unpublished
        if not outputs:
            return []
        began_s = time.perf_counter()
        accepted = await self.broker.requests.append([output.append for output in outputs])
        published_s = time.perf_counter()
        self.meters.publish.observe(published_s - began_s)
        refused = [output.one for output, ok in zip(outputs, accepted, strict=True) if not ok]
        if refused:
            self.meters.count(FENCED, len(refused))
        for one in refused:
            self.departures.note_departure(one, "lost")
            await self.intake.lost(one.claim)
        ended = [output.one for output, ok in zip(outputs, accepted, strict=True) if ok and output.is_last]
        if ended:
            for one in ended:
                self.note_end(one, published_s)
            await self.intake.done(*(one.claim for one in ended))
        for output in outputs:
            if output.one.is_suspect and output.one not in refused:
                output.one.is_suspect = False
                self.batch.room_came.set()
        self.unpublished = []
        return refused

    def note_end(self, one: Running, now_s: float) -> None:
        """Its last token is published."""
        facts = {"choice": one.claim.job.choice, "tokens": one.sequence.num_output_tokens + 1}
        self.meters.phase(self.meters.decode, now_s - one.since_s, "decode", one.claim.taken.request, **facts)
