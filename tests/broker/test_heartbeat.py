"""The heartbeat's thread: leases stand while it beats, whatever the rest of the process does, and fall after."""

import asyncio
import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from broker.client import Broker, open_sync_redis
from broker.heartbeat import Heartbeat
from broker.job_queue import QueueEntry
from messages.job import PrefillJob
from messages.worker_status import Role, WorkerState, WorkerStatus
from settings.broker import QueueSettings, RedisSettings
from tests.broker.samples import eventually, make_request
from tests.conftest import OpenTestBroker, RedisServer

SETTINGS = QueueSettings(lease_s=0.5, heartbeat_s=0.02)


def make_status(worker_id: str = "w", num_running: int = 0) -> WorkerStatus:
    return WorkerStatus(worker_id, Role.PREFILL, WorkerState.READY, "host", 1, 0, num_running=num_running)


@contextmanager
def beating(redis: RedisSettings, worker_id: str = "w", settings: QueueSettings = SETTINGS) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(redis, settings, worker_id, Role.PREFILL, lambda: make_status(worker_id))
    heartbeat.start()
    try:
        yield heartbeat
    finally:
        heartbeat.stop()


async def live_ids(broker: Broker) -> list[str]:
    return [status.worker_id for status in await broker.registry.live()]


def test_leases_stand_while_the_main_thread_is_blocked(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        async with open_test_broker(queue=SETTINGS) as broker:
            await broker.requests.create(make_request(n=2), max_waiting=10)
            held, unheld = await broker.prefill_queue.take("w", 2)
            with beating(redis_settings) as heartbeat:
                heartbeat.hold(held)
                # Blocks the event loop and, but for the call itself, releases the GIL, as a matrix product does.
                ctypes.CDLL(None).usleep(int(SETTINGS.lease_s * 2.5 * 1e6))
                # The very next command: had nobody renewed, both would be reclaimed now.
                reclaimed = await broker.prefill_queue.reclaim("other", 5)
                assert [entry.entry_id for entry in reclaimed] == [unheld.entry_id]
                assert await live_ids(broker) == ["w"]
            assert await live_ids(broker) == []

    asyncio.run(main())


def test_renewing_does_not_count_as_delivering_and_a_dropped_entry_falls(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        settings = QueueSettings(lease_s=0.1, heartbeat_s=0.01)
        async with open_test_broker(queue=settings) as broker:
            await broker.requests.create(make_request(), max_waiting=10)
            (entry,) = await broker.prefill_queue.take("w", 1)
            beats = threading.Semaphore(0)
            with beating(redis_settings, settings=settings) as heartbeat:
                heartbeat.hold(entry)
                heartbeat.on_tick.append(beats.release)
                for _ in range(20):
                    assert beats.acquire(timeout=5)
                heartbeat.drop(entry)
                reclaimed = []

                async def is_reclaimed() -> bool:
                    reclaimed.extend(await broker.prefill_queue.reclaim("other", 5))
                    return bool(reclaimed)

                await eventually(is_reclaimed)
                assert reclaimed[0].deliveries == 2

    asyncio.run(main())


def test_a_worker_that_slept_through_its_lease_does_not_renew_anothers_entry(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        settings = QueueSettings(lease_s=0.1, heartbeat_s=0.01)
        async with open_test_broker(queue=settings) as broker:
            await broker.requests.create(make_request(), max_waiting=10)
            (entry,) = await broker.prefill_queue.take("w", 1)
            reclaimed = []

            async def is_reclaimed() -> bool:
                reclaimed.extend(await broker.prefill_queue.reclaim("other", 5))
                return bool(reclaimed)

            await eventually(is_reclaimed)
            with beating(redis_settings, settings=settings) as heartbeat:
                heartbeat.hold(entry)  # wakes up and goes on as before

                async def is_given_up() -> bool:
                    return not heartbeat.holds(entry)

                await eventually(is_given_up)
                reclaimed.clear()
                await eventually(is_reclaimed)  # "other" died as well: nothing keeps its entry
                assert reclaimed[0].deliveries == 3

    asyncio.run(main())


def test_a_dead_workers_registry_entry_is_pruned(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    async def main() -> None:
        settings = QueueSettings(lease_s=0.1, heartbeat_s=0.01)
        async with open_test_broker(queue=settings) as broker:
            with beating(redis_settings, "left", settings), beating(redis_settings, "live", settings):

                async def both_live() -> bool:
                    return await live_ids(broker) == ["left", "live"]

                await eventually(both_live)
                await broker.redis.zadd(broker.keys.worker_leases(), {"dead": 1})
                await broker.redis.hset(broker.keys.workers(), "dead", b"anything")
                assert await live_ids(broker) == ["left", "live"]
                assert sorted(await broker.redis.hkeys(broker.keys.workers())) == [b"left", b"live"]
            assert await live_ids(broker) == []
            await broker.redis.hset(broker.keys.workers(), "other-version", b"\x63...")
            assert await live_ids(broker) == []
            await broker.registry.leave("other-version")
            assert await broker.redis.exists(broker.keys.workers(), broker.keys.worker_leases()) == 0

    asyncio.run(main())


def test_the_thread_outlives_a_redis_outage(
    own_redis: RedisServer, key_prefix: str, open_test_broker: OpenTestBroker
) -> None:
    redis = RedisSettings(url=own_redis.url, key_prefix=key_prefix)

    async def main() -> None:
        async with open_test_broker(redis=redis, queue=SETTINGS) as broker:
            with beating(redis) as heartbeat:

                async def is_live() -> bool:
                    return await live_ids(broker) == ["w"]

                await eventually(is_live)
                ticked = threading.Event()
                own_redis.stop()
                heartbeat.on_tick.append(ticked.set)
                assert ticked.wait(5) and heartbeat.is_alive  # it beats on, in vain
                own_redis.start()
                await eventually(is_live)
            own_redis.stop()
            with beating(redis) as heartbeat:
                assert heartbeat.is_alive  # start and stop without a Redis
            own_redis.start()

    asyncio.run(main())


def test_wake_beats_at_once(open_test_broker: OpenTestBroker, redis_settings: RedisSettings) -> None:
    async def main() -> None:
        status = make_status()
        settings = QueueSettings(lease_s=100, heartbeat_s=50)
        heartbeat = Heartbeat(redis_settings, settings, "w", Role.PREFILL, lambda: status)
        async with open_test_broker() as broker:
            heartbeat.start()

            async def is_live() -> bool:
                return await broker.registry.live() == [status]

            await eventually(is_live)
            status = make_status(num_running=3)
            heartbeat.wake()
            await eventually(is_live)
            started_s = time.monotonic()
            heartbeat.stop()
            assert time.monotonic() - started_s < 10  # it does not wait for the next beat

    asyncio.run(main())


def test_the_sync_client_gives_up_soon(redis_settings: RedisSettings) -> None:
    with open_sync_redis(redis_settings, timeout_s=0.3) as client:
        assert client.connection_pool.connection_kwargs["socket_timeout"] == 0.3
        assert client.ping()


def test_leases_do_not_run_out_while_redis_is_away(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    settings = QueueSettings(lease_s=0.3)

    async def main() -> None:
        async with open_test_broker(queue=settings) as broker:
            await broker.requests.create(make_request(), max_waiting=10)
            await broker.prefill_queue.take("dead", 1)
            beat = Heartbeat(redis_settings, settings, "w", Role.PREFILL, lambda: make_status("w"))._beat
            assert beat()
            await asyncio.sleep(1.2 * settings.lease_s)  # in which nobody beats: as if Redis had been stopped
            assert await broker.prefill_queue.reclaim("w", 1) == []
            assert beat()
            resumed_at = asyncio.get_running_loop().time()

            async def is_reclaimed() -> bool:
                beat()
                return bool(await broker.prefill_queue.reclaim("w", 1))

            await eventually(is_reclaimed)
            assert asyncio.get_running_loop().time() - resumed_at > 0.9 * settings.lease_s

    asyncio.run(main())


def test_an_entry_that_was_lost_and_came_back_is_renewed(
    open_test_broker: OpenTestBroker, redis_settings: RedisSettings
) -> None:
    """The answer to a beat says what was lost when Redis looked; by the time it arrives it may be ours again."""
    settings = QueueSettings(lease_s=0.001)

    async def main() -> None:
        async with open_test_broker(queue=settings) as broker:
            await broker.requests.create(make_request(), max_waiting=10)
            (entry,) = await broker.prefill_queue.take("w", 1)
            heartbeat = Heartbeat(redis_settings, SETTINGS, "w", Role.PREFILL, lambda: make_status("w"))
            heartbeat.hold(entry)

            async def reclaim(worker_id: str) -> QueueEntry[PrefillJob]:
                while not (entries := await broker.prefill_queue.reclaim(worker_id, 1)):  # noqa: ASYNC110 - its lease
                    await asyncio.sleep(0.002)
                return entries[0]

            await reclaim("other")
            real, again = heartbeat._redis, await reclaim("other")  # whose lease is over at once, too

            class Late:
                """Answers only when the worker has taken the entry back."""

                def evalsha(self, *arguments: Any) -> Any:
                    lost = real.evalsha(*arguments)
                    heartbeat.hold(again)
                    return lost

                def eval(self, *arguments: Any) -> Any:
                    lost = real.eval(*arguments)
                    heartbeat.hold(again)
                    return lost

            heartbeat._redis = Late()  # type: ignore[assignment]
            assert heartbeat._beat()
            assert heartbeat.holds(again) and not heartbeat.holds(entry)
            heartbeat.drop(entry)  # by whoever still works on the first delivery, and hears that it is fenced
            assert heartbeat.holds(again)
            heartbeat._redis = real
            assert heartbeat._beat()  # and now it really is the other's
            assert not heartbeat.holds(again)

    asyncio.run(main())
