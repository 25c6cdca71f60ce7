"""Where a decode worker's pool lies, and what it does without room in shared memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decode_worker import pool as decode_pool
from decode_worker.pool import open_pool
from engine.kv_pool import KVLayout
from engine.loading import LoadedModel
from errors import DeviceError
from settings.kv import TransferSettings
from settings.loading import Settings
from settings.workers import DecodeSettings

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, block_size=16, head_dim=4, dtype=torch.float32)


def loaded(ranks: Any = None) -> LoadedModel:
    model: Any = SimpleNamespace(device=torch.device("cpu"), model_hash="m")
    return LoadedModel(model, LAYOUT, num_blocks=6, ranks=ranks)


def test_it_is_the_memory_that_others_pull_from() -> None:
    pool, exported = open_pool(Settings(), "decode-test", loaded())
    assert exported is not None
    with exported:
        assert pool.tensor.data_ptr() == exported.sender.buffer.data_ptr()
        assert (pool.num_blocks, exported.export.num_blocks) == (6, 6)
        assert exported.sender.num_free_offers == Settings().decode.max_running


@pytest.mark.parametrize("why", ["off", "cut into ranks", "another way is required", "no room"])
def test_without_an_export_it_serves_from_memory_of_its_own(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise DeviceError("no room")

    if why == "no room":
        monkeypatch.setattr(decode_pool, "ExportedPool", full)
    by_network = TransferSettings(network="nccl", require="gloo" if why == "another way is required" else None)
    settings = Settings(decode=DecodeSettings(export_pool=why != "off"), kv_transfer=by_network)
    pool, exported = open_pool(settings, "decode-test", loaded(object() if why == "cut into ranks" else None))
    assert exported is None and pool.num_blocks == 6
