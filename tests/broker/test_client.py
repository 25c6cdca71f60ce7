"""Connecting: what is said when it fails, and that a short outage is not seen at all."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import fakeredis
import pytest

from broker.client import REDIS_AWAY, assemble_broker, display_url, open_broker
from broker.connection_pool import MAX_CONNECTIONS
from broker.keys import Keys
from errors import BrokerError
from messages.job import Phase
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from tests.broker.samples import STOP, begin, make_append, make_decode_job
from tests.conftest import OpenTestBroker, RedisServer


def test_an_unreachable_redis_is_named_without_its_password(open_test_broker: OpenTestBroker) -> None:
    async def main() -> None:
        redis = RedisSettings(url="redis://user:secret@127.0.0.1:1/0")
        with pytest.raises(BrokerError, match=r"Redis at redis://user:\*\*\*@127\.0\.0\.1:1/0 ") as caught:
            async with open_test_broker(redis=redis):
                pass
        assert "secret" not in str(caught.value)
        missing = RedisSettings(url="redis://127.0.0.1:1/0", password_file=Path("/nowhere/password"))
        with pytest.raises(BrokerError, match="password file /nowhere/password: No such file"):
            async with open_test_broker(redis=missing):
                pass

    asyncio.run(main())


def test_urls_are_shown_without_passwords() -> None:
    assert display_url("redis://:secret@host:6379/0") == "redis://:***@host:6379/0"
    assert display_url("redis://host/0") == "redis://host/0"
    assert display_url("unix:///run/redis.sock?password=secret&db=1") == "unix:///run/redis.sock?password=***&db=1"


def test_the_password_comes_from_the_file(
    own_redis: RedisServer, tmp_path: Path, open_test_broker: OpenTestBroker
) -> None:
    async def main() -> None:
        async with open_test_broker(redis=RedisSettings(url=own_redis.url)) as broker:
            await broker.redis.config_set("requirepass", "p4ss")
            file = tmp_path / "password"
            file.write_text("p4ss\n")
            async with open_test_broker(redis=RedisSettings(url=own_redis.url, password_file=file)) as allowed:
                assert await allowed.redis.ping()
            with pytest.raises(BrokerError, match=own_redis.url):
                async with open_test_broker(redis=RedisSettings(url=own_redis.url)):
                    pass

    asyncio.run(main())


def test_commands_wait_through_a_restart(
    own_redis: RedisServer, key_prefix: str, open_test_broker: OpenTestBroker
) -> None:
    redis = RedisSettings(url=own_redis.url, key_prefix=key_prefix)

    async def main() -> None:
        async with open_test_broker(redis=redis) as broker:
            _, taken = await begin(broker)
            own_redis.stop()
            appending = asyncio.create_task(broker.requests.append([make_append(taken, 0)]))
            await asyncio.to_thread(own_redis.start)
            assert await appending == [False]  # it came back empty
            assert await broker.prefill_queue.take("w", 1) == []
            await begin(broker)
            own_redis.stop()
            with pytest.raises(REDIS_AWAY):
                await broker.prefill_queue.depth()

    asyncio.run(main())


def test_keys_of_two_prefixes_and_of_requests_never_meet() -> None:
    keys, other = Keys("a"), Keys("a.b")
    ids = ["r", "r}:tokens:0", "prefill_queue", "{r}"]
    made = [
        *(
            key
            for each in (keys, other)
            for key in (each.prefill_queue(), each.decode_queue(), each.active_sizes(), each.active_phases())
        ),
        *(keys.record(request_id) for request_id in ids),
        *(keys.tokens(request_id, choice) for request_id in ids for choice in (0, 1)),
    ]
    assert len(set(made)) == len(made)


def test_the_broker_runs_on_fakeredis() -> None:

    async def main() -> None:
        client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        broker = assemble_broker(client, client, "fake", QueueSettings(lease_s=0.01), StreamSettings())
        await broker.prefill_queue.ensure()
        await broker.decode_queue.ensure()
        entry, taken = await begin(broker, n=2)
        assert await broker.requests.append([make_append(taken, 0)]) == [True]
        assert await broker.requests.hand_over(entry, taken.epoch, make_decode_job(), Phase.DECODE_QUEUED)
        (decode_entry,) = await broker.decode_queue.take("d", 1)
        retaken = await broker.requests.take(decode_entry.job, Phase.DECODING)
        assert retaken is not None and len(retaken.events) == 1
        assert await broker.requests.append([make_append(retaken, 1, STOP)]) == [True]
        assert [load.choice for load in await broker.request_reader.loads()] == [1]
        assert await broker.registry.live() == []
        await client.aclose()

    asyncio.run(main())


def test_the_broker_does_not_import_torch() -> None:
    code = "import broker.client, broker.relay, broker.heartbeat, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_who_is_patient_waits_for_any_length_and_who_is_not_says_so_in_time(
    own_redis: RedisServer, key_prefix: str, open_test_broker: OpenTestBroker
) -> None:
    settings = RedisSettings(url=own_redis.url, key_prefix=key_prefix, command_timeout_s=0.4)

    async def main() -> None:
        patience = open_broker(settings, QueueSettings(), StreamSettings(), is_patient=True)
        async with open_test_broker(redis=settings) as hasty, patience as patient:
            for go, come in ((own_redis.stop, own_redis.start), (own_redis.freeze, own_redis.thaw)):
                assert await hasty.prefill_queue.depth() == await patient.prefill_queue.depth() == 0
                go()
                waiting = asyncio.create_task(patient.prefill_queue.depth())
                began = time.monotonic()
                with pytest.raises(REDIS_AWAY):
                    await hasty.prefill_queue.depth()
                assert time.monotonic() - began < 3 * settings.command_timeout_s
                await asyncio.sleep(3 * settings.command_timeout_s)
                assert not waiting.done()
                await asyncio.to_thread(come)
                assert await asyncio.wait_for(waiting, 5) == 0

    asyncio.run(main())


def test_a_burst_waits_for_its_turn(open_test_broker: OpenTestBroker) -> None:
    """A thousand clients at once: none of their commands is refused for want of a connection."""

    async def main() -> None:
        async with open_test_broker() as broker:
            assert all(await asyncio.gather(*(broker.redis.ping() for _ in range(1000))))
            clients = await broker.redis.info("clients")
            assert clients["connected_clients"] <= MAX_CONNECTIONS + 10  # other tests' clients

    asyncio.run(main())
