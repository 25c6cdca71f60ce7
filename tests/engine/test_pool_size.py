"""The pool's size by the settings, and by what the largest step of a role leaves on a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.gpu_memory import MemoryReading
from engine.kv_pool import KVLayout
from engine.model import Model
from engine.pool_size import num_blocks_of
from engine.weights import load_model
from errors import ConfigError
from messages.worker_status import Role
from settings.loading import Settings, load_settings
from tests.tiny_models import tiny_model

MIB = 1 << 20


class Meter:
    """A device of 100 MiB whose steps take 10 MiB; notes how many tokens each forward pass had."""

    def __init__(self, model: Model) -> None:
        self.num_tokens: list[int] = []
        self.num_rows: list[int] = []
        forward, logits = model.forward, model.logits

        def spying_forward(token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.num_tokens.append(len(token_ids))
            return forward(token_ids, *rest)

        def spying_logits(hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            self.num_rows.append(len(hidden))
            return logits(hidden, out)

        model.forward = spying_forward  # type: ignore[assignment, method-assign]
        model.logits = spying_logits  # type: ignore[method-assign]

    def measure(self, run: Callable[[], None]) -> MemoryReading:
        run()
        return MemoryReading(total=100 * MIB, used=20 * MIB, own=20 * MIB, step=10 * MIB)


def model_and_layout(name: str = "llama") -> tuple[Model, KVLayout]:
    model = load_model(tiny_model(name).path, None, torch.device("cpu"))
    config = model.config
    return model, KVLayout(config.num_layers, config.num_kv_heads, 16, config.head_dim, model.dtype)


def sized(role: Role, **kv: Any) -> tuple[int, Meter, KVLayout]:
    model, layout = model_and_layout()
    meter = Meter(model)
    return num_blocks_of(settings_of(**kv), role, model, layout, meter, lambda text: None), meter, layout


def settings_of(**kv: Any) -> Settings:
    return load_settings({"kv": kv, "prefill": {"token_budget": 70, "max_running": 8}, "decode": {"max_running": 5}})


def test_prefill_fills_its_budget_and_ends_as_many_sequences_as_it_can() -> None:
    num_blocks, meter, layout = sized(Role.PREFILL, gpu_memory_fraction=0.5)
    assert num_blocks == 20 * MIB // layout.block_bytes
    assert meter.num_tokens == [70] and meter.num_rows == [8]


def test_decode_runs_every_row_and_leaves_room_for_the_graphs() -> None:
    num_blocks, meter, layout = sized(Role.DECODE, gpu_memory_fraction=0.5)
    assert num_blocks == 10 * MIB // layout.block_bytes
    assert meter.num_tokens == [5] and meter.num_rows == [5]


def test_a_reward_model_scores() -> None:
    model, layout = model_and_layout("llama_reward")
    meter = Meter(model)
    num_blocks_of(settings_of(), Role.PREFILL, model, layout, meter, lambda text: None)
    assert meter.num_tokens == [512]


def test_a_number_of_blocks_is_taken_as_it_is() -> None:
    num_blocks, meter, _ = sized(Role.DECODE, num_blocks=7)
    assert num_blocks == 7 and not meter.num_tokens


def test_on_a_cpu_the_bytes_count() -> None:
    model, layout = model_and_layout()
    settings = settings_of(pool_bytes=3 * layout.block_bytes + 1)
    assert num_blocks_of(settings, Role.DECODE, model, layout, None, lambda text: None) == 3
    too_small = settings_of(pool_bytes=layout.block_bytes - 1)
    with pytest.raises(ConfigError, match="PDQ_KV__POOL_BYTES"):
        num_blocks_of(too_small, Role.DECODE, model, layout, None, lambda text: None)
