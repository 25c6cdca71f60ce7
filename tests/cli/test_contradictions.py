"""Settings that do not go together, each with a value that would."""

from pathlib import Path
from typing import Any

import pytest

from cli.contradictions import contradictions
from settings.loading import load_settings


def found(**sections: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(one.text, one.is_fatal) for one in contradictions(load_settings(sections))]


def test_the_defaults_go_together() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("sections", "said", "is_fatal"),
    [
        ({"queue": {"lease_s": 0.2, "heartbeat_s": 0.25}}, "LEASE_S of 0.75 or more, or HEARTBEAT_S of 0.0667", True),
        ({"queue": {"lease_s": 0.5}}, "lives counts as dead after one late beat", False),
        ({"queue": {"low_share": 0.95}}, "low requests would be let in where normal ones are refused", True),
        ({"queue": {"drain_s": 30.0}}, "raise EXIT_S above 30", False),
        ({"queue": {"heartbeat_s": 0.5}, "api": {"no_progress_s": 0.5}}, "of every worker that it stands still", True),
        ({"api": {"request_timeout_s": 9e4}}, "PDQ_API__MAX_REQUEST_TIMEOUT_S = 86400", True),
        ({"prefill": {"tensor_parallel": 2}, "queue": {"stall_s": 60.0}}, "which of its ranks hangs", False),
        ({"kv": {"num_blocks": 64}}, "raise NUM_BLOCKS to 1024, or lower MAX_TOTAL_TOKENS", False),
        ({"model": {"device": "cuda", "weights": "int4"}}, "is for CPUs", True),
        ({"model": {"dtype": "float32", "weights": "int8"}}, "computes in bfloat16", True),
        ({"model": {"device": "cpu"}, "gpu": {"lease": "always"}}, "wait for GPUs", True),
        ({"kv_transfer": {"require": "nixl"}}, "PDQ_KV_TRANSFER__NETWORK is none: set it to nixl", True),
        ({"kv_transfer": {"require": "gloo", "network": "nixl"}}, "NETWORK is nixl: set it to nccl", True),
        ({"kv_transfer": {"require": "cuda_ipc"}, "model": {"device": "cpu"}}, "cannot be had with", True),
        ({"api": {"port": 9000}, "metrics": {"port": 9000}}, "are both 9000", True),
        ({"api": {"host": "0.0.0.0"}}, "no key is asked for", False),
        ({"batch": {"webhook_allow": "https://example.org/"}}, "PDQ_BATCH__WEBHOOK_SECRET_FILE", True),
        ({"security": {"keys_file": Path("/does/not/exist")}}, "PDQ_SECURITY__KEYS_FILE = /does/not/exist: the", True),
    ],
)
def test_what_contradicts_is_named(sections: dict[str, dict[str, Any]], said: str, is_fatal: bool) -> None:
    assert any(said in text and fatal is is_fatal for text, fatal in found(**sections)), found(**sections)
