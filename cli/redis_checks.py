"""What `pdq doctor` looks at in a Redis: version, what survives a restart, memory policy, latency, clock.

`judge` is pure; `redis_findings` asks.
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoPermissionError

from bench.doctor.check import Finding, Verdict
from broker.client import Broker, display_url, open_broker
from settings.loading import Settings

LEAST_VERSION = (6, 2)
NUM_PINGS = 25
SLOW_MS = 2.0  # a decode step waits for up to two round trips


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a Redis."""

    info: Mapping[str, Any] | None  # what INFO says; None: our user may not ask
    latency_ms: float  # median of a PING
    clock_ahead_s: float  # of Redis' clock over this host's
    clock_error_s: float  # half of the round trip: it may be so much more or less


async def redis_findings(settings: Settings) -> list[Finding]:
    """Of the Redis that the settings name. Raises BrokerError when it cannot be used at all."""
    async with open_broker(settings.redis, settings.queue, settings.stream) as broker:
        asked = await _ask(broker)
    return list(judge(asked, display_url(settings.redis.url), settings))


async def _ask(broker: Broker) -> Asked:
    took_ms = []
    for _ in range(NUM_PINGS):
        began = time.perf_counter()
        await broker.redis.ping()
        took_ms.append((time.perf_counter() - began) * 1000)
    before = time.time()
    seconds, microseconds = await broker.redis.time()
    after = time.time()
    try:
        info = await broker.redis.info()
    except NoPermissionError:
        info = None
    ahead_s = seconds + microseconds / 1e6 - (before + after) / 2
    return Asked(info, statistics.median(took_ms), ahead_s, (after - before) / 2)


def judge(asked: Asked, url: str, settings: Settings) -> Iterator[Finding]:
    """What is thought of it."""
    if asked.info is None:
        yield Finding("Redis", Verdict.OK, f"{url} answers; user {settings.redis.username} may not ask it for more")
    else:
        yield from _judge_info(asked.info, url)
    figures = {"latency_ms": asked.latency_ms}
    said = f"a PING takes {asked.latency_ms:.2f} ms"
    if asked.latency_ms > SLOW_MS:
        remedy = "every decode step waits for one or two of them: run Redis nearer, or on a host with an idle core"
        yield Finding("Redis latency", Verdict.WARN, said, remedy, figures)
    else:
        yield Finding("Redis latency", Verdict.OK, said, figures=figures)
    yield _judge_clock(asked, settings.queue.clock_tolerance_s)


def _judge_info(info: Mapping[str, Any], url: str) -> Iterator[Finding]:
    version = str(info.get("redis_version", "?"))
    said = f"{url} answers, version {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < LEAST_VERSION:
        yield Finding("Redis", Verdict.FAIL, said, "it lacks commands that the queues need: 6.2 or newer")
    elif info.get("role") == "slave":
        remedy = "a replica takes no writes: name the master, or the sentinels (redis+sentinel://...)"
        yield Finding("Redis", Verdict.FAIL, f"{said}, a replica of {info.get('master_host', '?')}", remedy)
    else:
        yield Finding("Redis", Verdict.OK, said)
    if not int(info.get("aof_enabled", 0)):
        remedy = "start it with --appendonly yes, else every request in flight ends with an error when it restarts"
        yield Finding("Redis persistence", Verdict.WARN, "no append-only file", remedy)
    elif str(info.get("aof_last_write_status", "ok")) != "ok":
        yield Finding(
            "Redis persistence", Verdict.FAIL, "its append-only file cannot be written", "its disk is full, most likely"
        )
    else:
        yield Finding("Redis persistence", Verdict.OK, "append-only file")
    policy, limit = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    said = f"{used / 2**20:,.0f} MiB used of {f'{limit / 2**20:,.0f} MiB' if limit else 'all there is'}, {policy}"
    if limit and policy != "noeviction":
        remedy = "it may throw queues away when it is full: CONFIG SET maxmemory-policy noeviction"
        yield Finding("Redis memory", Verdict.FAIL, said, remedy)
    elif limit and used > 0.9 * limit:
        remedy = f"writes fail when it is full: CONFIG SET maxmemory {2 * limit}, or lower PDQ_STREAM__KEEP_S"
        yield Finding("Redis memory", Verdict.WARN, said, remedy)
    else:
        yield Finding("Redis memory", Verdict.OK, said)


def _judge_clock(asked: Asked, tolerance_s: float) -> Finding:
    apart_s = abs(asked.clock_ahead_s)
    figures = {"clock_ahead_s": asked.clock_ahead_s}
    way = "ahead of" if asked.clock_ahead_s > 0 else "behind"
    if apart_s - asked.clock_error_s > tolerance_s:
        said = f"Redis' clock is {apart_s:.2f} s {way} this host's; PDQ_QUEUE__CLOCK_TOLERANCE_S is {tolerance_s:g}"
        remedy = (
            "deadlines end too early or too late: run chrony (or ntpd) on both hosts, or set "
            f"PDQ_QUEUE__CLOCK_TOLERANCE_S={math.ceil(apart_s * 2)}"
        )
        return Finding("clock", Verdict.WARN, said, remedy, figures)
    said = f"Redis' clock is {apart_s * 1000:.1f} ms {way} this host's (tolerance {tolerance_s:g} s)"
    return Finding("clock", Verdict.OK, said, figures=figures)
