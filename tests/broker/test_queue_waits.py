"""What waits in the queues, and for how long."""

import asyncio

from broker.queue_waits import read_waits
from messages.job import Phase
from messages.request import Priority
from messages.worker_status import Role
from tests.broker.samples import make_request
from tests.conftest import OpenTestBroker


def test_jobs_that_nobody_has_taken_and_the_age_of_the_oldest(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        async with open_test_broker() as broker:
            empty = await read_waits(broker.redis, broker.keys)
            assert len(empty) == 9 and all((one.num_jobs, one.oldest_s) == (0, 0) for one in empty)
            await broker.prefill_queue.ensure()
            for number in range(3):
                await broker.requests.create(make_request(f"r{number}", priority=Priority.LOW))
                await asyncio.sleep(0.03)

            async def low() -> tuple[int, float]:
                waits = await read_waits(broker.redis, broker.keys)
                (found,) = [one for one in waits if (one.queue, one.priority) == (Role.PREFILL, Priority.LOW)]
                assert all(one.num_jobs == 0 for one in waits if one is not found)
                return found.num_jobs, found.oldest_s

            num_jobs, all_s = await low()
            assert num_jobs == 3 and all_s >= 0.08
            (entry,) = await broker.prefill_queue.take("p", 1)
            num_jobs, two_s = await low()
            assert num_jobs == 2 and 0.05 <= two_s < all_s + 1
            taken = await broker.requests.take(entry.job, Phase.PREFILLING)
            assert taken is not None and taken.taken_ms >= int(entry.entry_id.partition(b"-")[0]) + 80
            await broker.prefill_queue.ack([entry])
            assert (await low())[0] == 2
            await broker.prefill_queue.take("p", 2)
            assert await low() == (0, 0)

    asyncio.run(main())
