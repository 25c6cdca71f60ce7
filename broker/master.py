"""Where the master is that has our keys: asked of sentinels or of a cluster's nodes, each time a connection is made.

All keys of one pdq lie in one hash slot (broker/keys.py), so even in a Redis Cluster one node has them all, and plain
connections to that node can do everything: scripts, blocking reads, pub/sub. This file asks; it keeps nothing.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisError
from redis.retry import Retry

from broker.address import MasterAddress

Locate = Callable[[], tuple[str, int]]


def locator(address: MasterAddress, key: str, timeout_s: float, credentials: Mapping[str, str]) -> Locate:
    """A blocking function that says (host, port) of the master of `key`. It raises ConnectionError.

    `credentials` are the master's, which a cluster's nodes take too.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
        **(address.sentinel_credentials if address.service else credentials),
    }
    slot = key_slot(key.encode())

    def locate() -> tuple[str, int]:
        reasons = []
        # In any order: one that is cut off from the others may go on naming the old master.
        for host, port in random.sample(address.nodes, len(address.nodes)):
            try:
                with Redis(host, port, **options) as node:
                    found = _ask_sentinel(node, address.service) if address.service else _ask_node(node, slot, host)
            except (RedisError, OSError) as error:
                reasons.append(f"{host}:{port}: {error}")
                continue
            if found is not None:
                return found
            reasons.append(f"{host}:{port} knows no master of {address.service or f'slot {slot}'}")
        raise ConnectionError("; ".join(reasons))

    return locate


def _ask_sentinel(node: Any, service: str) -> tuple[str, int] | None:
    answer: Any = node.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    return None if answer is None else (answer[0].decode(), int(answer[1]))


def _ask_node(node: Any, slot: int, asked_host: str) -> tuple[str, int] | None:
    ranges: Any = node.execute_command("CLUSTER", "SLOTS")
    for first, last, (host, port, *_), *_ in ranges:
        if first <= slot <= last:
            return (host or b"").decode() or asked_host, int(port)  # a node that does not know its own name says none
    return None
