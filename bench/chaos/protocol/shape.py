"""How large a simulated cluster is, and the settings that follow.

Everything is small, so that pools run dry and leases run out within a few events.
"""

from dataclasses import dataclass
from typing import Literal

from settings.broker import QueueSettings, RedisSettings, StreamSettings
from settings.kv import KVSettings, TransferSettings
from settings.loading import Settings
from settings.workers import DecodeSettings, PrefillSettings

LEASE_S = 2.0
HEARTBEAT_S = 0.4
MAX_PROMPT_TOKENS = 5
MAX_NEW_TOKENS = 10
MAX_ATTEMPTS = 1000  # so many that no error is allowed


@dataclass(frozen=True)
class Shape:
    """What differs between worlds."""

    prefill_blocks: int = 8  # at least what one sequence takes: 8
    decode_blocks: int = 9
    block_size: int = 2
    token_budget: int = 4
    prefill_running: int = 3
    decode_running: int = 3
    max_offers: int = 8
    max_deliveries: int = MAX_ATTEMPTS
    prefix_cache: bool = True
    checksums: bool = False
    decode_exports: bool = True  # so that a stopping decode worker offers what it has
    local_prefill: Literal["auto", "always", "never"] = "never"  # by decode workers
    secret: bytes = b""  # that handles are sealed with


def settings_of(shape: Shape) -> Settings:
    """The cluster's settings."""
    return Settings(
        redis=RedisSettings(key_prefix="t"),
        queue=QueueSettings(
            lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S, max_deliveries=shape.max_deliveries, max_waiting=64
        ),
        stream=StreamSettings(keep_s=100_000),
        prefill=PrefillSettings(token_budget=shape.token_budget, max_running=shape.prefill_running),
        decode=DecodeSettings(max_running=shape.decode_running, local_prefill=shape.local_prefill),
        kv_transfer=TransferSettings(max_offers=shape.max_offers),
    ).model_copy(
        # Production's blocks are larger than all that is said here.
        update={
            "kv": KVSettings.model_construct(
                block_size=shape.block_size,  # type: ignore[arg-type]
                prefix_cache=shape.prefix_cache,
            )
        }
    )
