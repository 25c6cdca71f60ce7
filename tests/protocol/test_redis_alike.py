"""What the simulated cluster asks of fakeredis, a real redis-server answers alike."""

import random
import re
from typing import Any

import redis

from bench.chaos.protocol.kinds import KINDS, pick
from bench.chaos.protocol.redis_server import Command, Link
from bench.chaos.protocol.shape import LEASE_S
from bench.chaos.protocol.world import World
from broker.keys import GROUP
from broker.scripts import load_script
from tests.conftest import RedisServer

MAX_S = 50.0  # of the cluster's time; nothing may expire, as the real server's clock stands still
ENTRY_ID = re.compile(rb"\d{10,}-\d+")
MAX_ID_WORD = 40
RECLAIM = load_script("reclaim").sha1.encode()
NOT_ASKED = {b"SUBSCRIBE", b"UNSUBSCRIBE"}
LIVE = load_script("live_workers")


class Twin:
    """Repeats every command on a real server. Ids that Redis chose differ, so each is known by what it was here."""

    def __init__(self, client: "redis.Redis[bytes]", world: World) -> None:  # type: ignore[type-arg]
        self.client, self.world = client, world
        self.ids: dict[bytes, bytes] = {}
        self.num_commands = self.num_reclaimed = 0
        self.transaction: list[Command] | None = None
        self.heard = world.redis.on_served
        world.redis.on_served = self.on_served

    def on_served(self, link: Link, command: Command, answer: Any) -> None:
        self.heard(link, command, answer)
        self.world.clock.now_s += 0.002  # so that no two streams ever give the same id
        word = command[0].upper()
        if word in NOT_ASKED:
            return
        self.num_commands += 1
        if word == b"MULTI":
            self.transaction = []
        elif word == b"EXEC":
            assert self.transaction is not None
            real = [self.ask(queued) for queued in self.transaction]
            self.transaction = None
            self.compare(command, answer, real)
        elif self.transaction is not None:
            self.transaction.append(command)
        elif command[1:2] in ([LIVE.sha1.encode()], [LIVE.source.encode()]):
            self.forget_all_but(answer)
        else:
            if command[1:2] == [RECLAIM]:
                self.num_reclaimed += len(answer) if isinstance(answer, list) else 0
            self.compare(command, answer, self.ask(command))

    def ask(self, command: Command) -> Any:
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command(*map(self.translated, command))  # type: ignore[no-untyped-call]
            return connection.read_response()
        except redis.ResponseError as error:
            return error
        finally:
            self.client.connection_pool.release(connection)

    def forget_all_but(self, live: Any) -> None:
        """Who is alive is for the clock to say, which the servers do not share: whoever is not here is not there."""
        if not isinstance(live, list):
            return  # the server does not know the script yet
        keys = self.world.keys
        for gone in set(self.client.hkeys(keys.workers())) - set(live[::2]):
            self.client.hdel(keys.workers(), gone)
            self.client.zrem(keys.worker_leases(), gone)

    def translated(self, word: bytes) -> bytes:
        """With the ids that the real server knows; some are part of a longer word."""
        return word if len(word) > MAX_ID_WORD else ENTRY_ID.sub(lambda found: self.ids.get(found[0], found[0]), word)

    def compare(self, command: Command, here: Any, real: Any) -> None:
        if isinstance(here, list) and isinstance(real, list):
            assert len(here) == len(real), (command, here, real)
            for one, other in zip(here, real, strict=True):
                self.compare(command, one, other)
        elif isinstance(here, redis.ResponseError):
            assert isinstance(real, redis.ResponseError), (command, here, real)
        elif isinstance(here, bytes) and ENTRY_ID.fullmatch(here):
            assert self.ids.setdefault(here, real) == real, (command, here, real)
        else:
            assert (here or None) == (real or None), (command, here, real)

    def age(self, queues: list[str]) -> None:
        """Entries there have been idle for as long as here, and as many workers beat."""
        now_ms = int(self.world.clock.time() * 1000)
        for queue in queues:
            for entry_id, pending in self.world.redis.pending(queue, GROUP).items():
                idle_ms = now_ms - pending.time_read
                claim = [queue.encode(), GROUP.encode(), pending.consumer_name, b"0", entry_id.encode()]
                self.ask([b"XCLAIM", *claim, b"IDLE", str(idle_ms).encode(), b"JUSTID"])
        pulse = self.world.keys.pulse()
        seconds, micros = self.client.time()
        for field, value in self.world.redis.fields(pulse).items():
            self.client.hset(pulse, field, seconds * 1000 + micros // 1000 + int(value) - now_ms)


def test_a_real_server_answers_alike(own_redis: RedisServer) -> None:
    twins = [live(seed, own_redis) for seed in range(6)]
    assert min(twin.num_commands for twin in twins) > 250
    assert sum(twin.num_reclaimed for twin in twins) > 10  # what time decides was compared too


def live(seed: int, server: RedisServer) -> Twin:
    """A cluster whose every command is asked twice."""
    source = random.Random(seed)
    kinds = list(KINDS.values())
    weights = [0.0 if kind.name == "restart" else kind.weight for kind in kinds]
    with redis.Redis.from_url(server.url, protocol=2) as client, World() as world:
        client.flushall()
        client.script_flush()
        for queue in world.queues:
            client.xgroup_create(queue, GROUP, id="0", mkstream=True)
        twin = Twin(client, world)
        while world.num_events < 1300 and world.clock.now_s < MAX_S - 3 * LEASE_S:
            kind = source.choices(kinds, weights)[0]
            if kind.name == "serve" and reclaims(world):
                twin.age(world.queues)
            pick(world, kind, source.getrandbits(32))
    return twin


def reclaims(world: World) -> bool:
    """Whether a reclaim is on its way."""
    links = (*world.redis.links, *world.redis.orphans)
    return any(command[1:2] == [RECLAIM] for link in links for unit in link.sent for command in unit)
