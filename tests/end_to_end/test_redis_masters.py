"""Redis Sentinel and Redis Cluster: real servers, workers with a scripted model, and a master that goes or moves."""

import asyncio
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from broker.client import open_broker
from broker.keys import Keys
from broker.relay import RelayReader
from messages.token_event import FinishReason, TokenEvent
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from tests.end_to_end.cluster import wait_until
from tests.scripted_cluster import ScriptedCluster, expected_output, scripted_cluster, tokens_of

QUEUE = QueueSettings(lease_s=1.0, heartbeat_s=0.1, drain_s=2.0)
PROMPT = list(range(1000, 1040))
NUM_TOKENS = 300


class Servers:
    """redis-server processes on ports of this machine."""

    def __init__(self, folder: Path, binary: str) -> None:
        self.folder, self.binary = folder, binary
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *options: str, config: str = "", **named: str) -> int:
        """Its port; `named` options are written with underscores."""
        port = free_port()
        folder = self.folder / str(port)
        folder.mkdir()
        (folder / "redis.conf").write_text(config)
        given = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": str(folder), "logfile": "log"} | named
        command = [self.binary, str(folder / "redis.conf"), *options]
        command += [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
        self.processes[port] = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        wait_until(lambda: self.answers(port), 10, "the server answers")
        return port

    def ask(self, port: int, *command: str | int) -> Any:
        with redis.Redis("127.0.0.1", port, decode_responses=True) as client:
            return client.execute_command(*command)

    def answers(self, port: int) -> bool:
        try:
            return bool(self.ask(port, "PING"))
        except redis.ConnectionError:
            return False

    def kill(self, port: int) -> None:
        process = self.processes.pop(port)
        process.kill()
        process.wait()


def free_port() -> int:
    while True:
        port = random.randrange(20000, 32000)  # a cluster node also listens 10000 above
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            return port


@pytest.fixture
def servers(redis_binary: str) -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="pdq-redis-") as folder:
        running = Servers(Path(folder), redis_binary)
        yield running
        for port in list(running.processes):
            running.kill(port)


def play(url: str, key_prefix: str, scenario: Callable[[ScriptedCluster, RelayReader], Awaitable[None]]) -> None:
    """Run a scenario with one worker of each role and an API's relay reader."""
    settings = RedisSettings(url=url, key_prefix=key_prefix, command_timeout_s=2.0, connect_timeout_s=1.0)

    async def main() -> None:
        async with open_broker(settings, QUEUE, StreamSettings(recheck_s=0.2), is_patient=True) as broker:
            async with scripted_cluster(broker, settings, QUEUE) as cluster:
                cluster.start_prefill()
                cluster.start_decode()
                reader = RelayReader(broker, "api")
                reading = asyncio.create_task(reader.run())
                try:
                    await scenario(cluster, reader)
                finally:
                    reading.cancel()

    asyncio.run(main())


async def check_stream(cluster: ScriptedCluster, reader: RelayReader, disturb: Callable[[], None]) -> None:
    """A stream that is disturbed in the middle reaches its reader whole and once; a cancel is heard afterwards."""
    subscription = reader.open("request-1", 0)
    await cluster.send(PROMPT, NUM_TOKENS, api_id="api")
    received: list[TokenEvent] = []
    is_disturbed = False
    async with asyncio.timeout(30):
        while not received or received[-1].finish_reason is None:
            received += await subscription.take()
            if len(received) >= 20 and not is_disturbed:
                is_disturbed = True
                await asyncio.to_thread(disturb)
    assert is_disturbed
    assert tokens_of(received) == expected_output(PROMPT, NUM_TOKENS)
    await cluster.until_clean()
    cancelled = await cluster.send(PROMPT, 10_000)
    await cluster.until(lambda: any(member.worker.running for member in cluster.members), "it is worked on")
    assert await cluster.broker.requests.finish(cancelled, 0, TokenEvent(finish_reason=FinishReason.ABORT))
    await cluster.until_clean()


def test_a_sentinel_promotes_another_master_in_the_middle_of_a_stream(servers: Servers, key_prefix: str) -> None:
    master = servers.start()
    replica = servers.start(replicaof=f"127.0.0.1 {master}")
    watch = f"sentinel monitor it 127.0.0.1 {master} 1\nsentinel down-after-milliseconds it 300\n"
    sentinel = servers.start("--sentinel", config=watch + "sentinel failover-timeout it 3000\n")
    wait_until(lambda: servers.ask(sentinel, "INFO", "sentinel")["master0"]["slaves"] == 1, 15, "it knows the replica")
    wait_until(lambda: servers.ask(master, "INFO", "replication")["slave0"]["state"] == "online", 15, "it follows")
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/it/0"  # nobody listens on the first

    def disturb() -> None:
        servers.kill(master)
        wait_until(lambda: servers.ask(replica, "ROLE")[0] == "master", 20, "the replica is promoted")

    play(url, key_prefix, lambda cluster, reader: check_stream(cluster, reader, disturb))


def test_a_cluster_keeps_all_keys_in_one_slot_and_may_move_it(servers: Servers, key_prefix: str) -> None:
    nodes = [servers.start(cluster_enabled="yes", cluster_node_timeout="1000") for _ in range(3)]
    for number, port in enumerate(nodes):
        first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
        servers.ask(port, "CLUSTER", "ADDSLOTSRANGE", first, last)
        servers.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for port in nodes[1:]:
        servers.ask(nodes[0], "CLUSTER", "MEET", "127.0.0.1", port)
    wait_until(lambda: all("cluster_state:ok" in str(servers.ask(port, "CLUSTER", "INFO")) for port in nodes), 15, "ok")
    slot = key_slot(Keys(key_prefix).prefix.encode())
    source = nodes[slot * 3 // 16384]
    target = nodes[nodes.index(source) - 1]

    def disturb() -> None:
        source_id, target_id = servers.ask(source, "CLUSTER", "MYID"), servers.ask(target, "CLUSTER", "MYID")
        servers.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        servers.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := servers.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            servers.ask(source, "MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
            time.sleep(0.05)  # meanwhile some are here and some there
        for port in (target, source, *nodes):
            servers.ask(port, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in nodes)
    play(url, key_prefix, lambda cluster, reader: check_stream(cluster, reader, disturb))
    assert [servers.ask(port, "DBSIZE") > 0 for port in nodes] == [port == target for port in nodes]
