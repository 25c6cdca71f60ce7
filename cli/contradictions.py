"""Settings that are good each by itself and do not go together. Pure but for a look whether named files are there.

Knows what settings mean; what a value may be by itself is the room settings'.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from settings.loading import ENV_PREFIX, Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LEAST_BEATS = 3  # of a lease: with fewer, one that is late ends it


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What does not go together, and a value with which it would."""

    text: str
    is_fatal: bool = True  # else it works, but hardly as it was meant


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """Each that these settings have."""
    yield from _files(settings)
    yield from _queue(settings)
    yield from _memory(settings)
    yield from _devices(settings)
    yield from _network(settings)


def variable_of(section: str, knob: str) -> str:
    """The variable that sets the knob."""
    return f"{ENV_PREFIX}{section}__{knob}".upper()


def _files(settings: Settings) -> Iterator[Contradiction]:
    for section, knob in (
        ("redis", "password_file"),
        ("kv_transfer", "secret_file"),
        ("security", "keys_file"),
        ("batch", "api_key_file"),
        ("batch", "webhook_secret_file"),
    ):
        path: Path | None = getattr(getattr(settings, section), knob)
        if path is not None and not os.access(path.expanduser(), os.R_OK):
            why = "may not be read" if path.expanduser().exists() else "does not exist"
            yield Contradiction(f"{variable_of(section, knob)} = {path}: the file {why} here")
    if settings.batch.webhook_allow and settings.batch.webhook_secret_file is None:
        yield Contradiction(
            "PDQ_BATCH__WEBHOOK_ALLOW names who may be told, and without PDQ_BATCH__WEBHOOK_SECRET_FILE nobody is: "
            "name a file of 16 bytes or more"
        )


def _queue(settings: Settings) -> Iterator[Contradiction]:
    queue, api = settings.queue, settings.api
    if queue.lease_s < LEAST_BEATS * queue.heartbeat_s:
        yield Contradiction(
            f"PDQ_QUEUE__LEASE_S = {queue.lease_s:g} with PDQ_QUEUE__HEARTBEAT_S = {queue.heartbeat_s:g}: a worker "
            f"that lives counts as dead after one late beat; wanted LEASE_S of {LEAST_BEATS * queue.heartbeat_s:g} or "
            f"more, or HEARTBEAT_S of {queue.lease_s / LEAST_BEATS:.3g} or less",
            is_fatal=queue.lease_s <= queue.heartbeat_s,
        )
    if queue.low_share > queue.normal_share:
        yield Contradiction(
            f"PDQ_QUEUE__LOW_SHARE = {queue.low_share:g} is above PDQ_QUEUE__NORMAL_SHARE = {queue.normal_share:g}: "
            "low requests would be let in where normal ones are refused"
        )
    if queue.drain_s > queue.exit_s:
        yield Contradiction(
            f"PDQ_QUEUE__DRAIN_S = {queue.drain_s:g} is above PDQ_QUEUE__EXIT_S = {queue.exit_s:g}: a stopping worker "
            f"is ended before it may end; raise EXIT_S above {queue.drain_s:g}",
            is_fatal=False,
        )
    if api.no_progress_s <= queue.heartbeat_s:
        yield Contradiction(
            f"PDQ_API__NO_PROGRESS_S = {api.no_progress_s:g} is not above PDQ_QUEUE__HEARTBEAT_S = "
            f"{queue.heartbeat_s:g}: /health would say of every worker that it stands still"
        )
    if api.request_timeout_s > api.max_request_timeout_s:
        yield Contradiction(
            f"PDQ_API__REQUEST_TIMEOUT_S = {api.request_timeout_s:g} is above PDQ_API__MAX_REQUEST_TIMEOUT_S = "
            f"{api.max_request_timeout_s:g}"
        )
    num_ranks = max(settings.prefill.tensor_parallel, settings.decode.tensor_parallel)
    if num_ranks > 1 and queue.stall_s <= settings.model.rank_timeout_s:
        yield Contradiction(
            f"PDQ_QUEUE__STALL_S = {queue.stall_s:g} is not above PDQ_MODEL__RANK_TIMEOUT_S = "
            f"{settings.model.rank_timeout_s:g}: a worker gives up before it can tell which of its ranks hangs",
            is_fatal=False,
        )


def _memory(settings: Settings) -> Iterator[Contradiction]:
    kv, longest = settings.kv, settings.model.max_total_tokens
    given = kv.model_fields_set
    if kv.num_blocks is not None and kv.num_blocks * kv.block_size < longest:
        yield Contradiction(
            f"PDQ_KV__NUM_BLOCKS = {kv.num_blocks} of {kv.block_size} tokens hold {kv.num_blocks * kv.block_size:,}, "
            f"and PDQ_MODEL__MAX_TOTAL_TOKENS is {longest:,}: longer requests are refused; raise NUM_BLOCKS to "
            f"{-(-longest // kv.block_size)}, or lower MAX_TOTAL_TOKENS",
            is_fatal=False,
        )
    if kv.num_blocks is not None and given & {"pool_bytes", "gpu_memory_fraction"}:
        yield Contradiction(
            "PDQ_KV__NUM_BLOCKS says how large the pool is: PDQ_KV__POOL_BYTES and PDQ_KV__GPU_MEMORY_FRACTION change "
            "nothing beside it",
            is_fatal=False,
        )
    for knob in ("first_bytes", "cache_bytes"):
        if knob in given and getattr(kv, knob) > kv.pool_bytes:
            yield Contradiction(
                f"{variable_of('kv', knob)} = {getattr(kv, knob):,} is above PDQ_KV__POOL_BYTES = {kv.pool_bytes:,},"
                " which is all there is",
                is_fatal=False,
            )


def _devices(settings: Settings) -> Iterator[Contradiction]:
    device, weights, dtype = settings.model.device, settings.model.weights, settings.model.dtype
    if device == "cuda" and weights in ("int8", "int4"):
        yield Contradiction(
            f"PDQ_MODEL__WEIGHTS = {weights} is for CPUs, and PDQ_MODEL__DEVICE is cuda: set one to auto"
        )
    if weights in ("int8", "int4") and dtype in ("float32", "float16"):
        yield Contradiction(f"PDQ_MODEL__WEIGHTS = {weights} computes in bfloat16, and PDQ_MODEL__DTYPE is {dtype}")
    if device == "cpu" and settings.gpu.lease == "always":
        yield Contradiction(
            "PDQ_GPU__LEASE = always has workers wait for GPUs that PDQ_MODEL__DEVICE = cpu does not use"
        )
    if device == "cuda" and settings.decode.local_prefill == "always":
        yield Contradiction(
            "PDQ_DECODE__LOCAL_PREFILL = always is for CPUs: with PDQ_MODEL__DEVICE = cuda prefill workers do it all",
            is_fatal=False,
        )
    required, network = settings.kv_transfer.require, settings.kv_transfer.network
    wanted = {"nixl": "nixl", "nccl": "nccl", "gloo": "nccl"}.get(required or "", network)
    if network != wanted:
        yield Contradiction(
            f"PDQ_KV_TRANSFER__REQUIRE = {required}, and PDQ_KV_TRANSFER__NETWORK is {network}: set it to {wanted}"
        )
    if (required, device) in (("shared_memory", "cuda"), ("cuda_ipc", "cpu"), ("gloo", "cuda"), ("nccl", "cpu")):
        yield Contradiction(f"PDQ_KV_TRANSFER__REQUIRE = {required} cannot be had with PDQ_MODEL__DEVICE = {device}")


def _network(settings: Settings) -> Iterator[Contradiction]:
    api, metrics = settings.api, settings.metrics
    if api.port and api.port == metrics.port:
        yield Contradiction(
            f"PDQ_API__PORT and PDQ_METRICS__PORT are both {api.port}: on one host the second to start finds it taken"
        )
    if api.host not in LOOPBACK and settings.security.keys_file is None:
        yield Contradiction(
            f"PDQ_API__HOST = {api.host} opens the API to whoever reaches this host, and no key is asked for: `pdq key "
            "new` and PDQ_SECURITY__KEYS_FILE change that (docs/security.md)",
            is_fatal=False,
        )
