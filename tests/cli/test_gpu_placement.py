"""A worker's way to its GPUs: the first visible ones, or a board that says why it waits."""

import asyncio
import os
from pathlib import Path

import pytest

from broker.status_board import StatusBoard
from cli import gpu_placement
from cli.gpu_inventory import Gpu
from cli.gpu_lease import lease_gpus
from errors import ConfigError
from messages.worker_status import Role
from settings.model import ModelSettings
from settings.workers import GpuSettings

GPUS = [Gpu(f"GPU-{index}", "") for index in range(3)]


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_placement, "list_gpus", lambda: GPUS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")


def placed(gpu: GpuSettings, model: ModelSettings | None = None) -> list[str] | None:
    board = StatusBoard(Role.DECODE)
    lease = asyncio.run(gpu_placement.place(gpu, model or ModelSettings(), 1, board))
    return None if lease is None else lease.uuids


def visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_own_gpus_come_first_and_peers_stay_visible(tmp_path: Path) -> None:
    lease_gpus(GPUS, 1, 1, tmp_path, "other")
    assert placed(GpuSettings(lease_dir=tmp_path)) == ["GPU-1"]
    assert visible() == "GPU-1,GPU-0,GPU-2"


def test_only_the_named_ones(tmp_path: Path) -> None:
    assert placed(GpuSettings(lease_dir=tmp_path, uuids="GPU-2")) == ["GPU-2"]
    with pytest.raises(ConfigError, match="PDQ_GPU__UUIDS: GPU-9 is none of GPU-0, GPU-1, GPU-2"):
        placed(GpuSettings(uuids="GPU-9"))


def test_one_too_many_says_so_and_waits_for_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(one_too_many(tmp_path, monkeypatch))


async def one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [lease_gpus(GPUS, 1, 1, tmp_path, f"worker-{index}") for index in range(3)]
    board = StatusBoard(Role.DECODE)
    settings = GpuSettings(lease_dir=tmp_path, lease_retry_s=0.01)
    said = asyncio.Event()

    def say(detail: str) -> None:
        board.detail = detail
        said.set()

    monkeypatch.setattr(board, "say", say)
    waiting = asyncio.create_task(gpu_placement.place(settings, ModelSettings(), 1, board))
    await asyncio.wait_for(said.wait(), 10)
    assert board.detail == "waiting: no free GPU (3/3 leased by worker-0, worker-1, worker-2)"
    assert board.read().state == "loading" and visible() == "before"
    held[1].release()
    lease = await asyncio.wait_for(waiting, 10)
    assert lease is not None and lease.uuids == ["GPU-1"]


@pytest.mark.parametrize(
    ("gpu", "model"),
    [(GpuSettings(lease="never"), ModelSettings()), (GpuSettings(), ModelSettings(device="cpu"))],
    ids=["never", "cpu"],
)
def test_who_wants_none(gpu: GpuSettings, model: ModelSettings) -> None:
    assert placed(gpu, model) is None
    assert visible() == "before"


def test_no_gpus_are_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_placement, "list_gpus", list)
    assert placed(GpuSettings(lease="always")) is None
    assert visible() == "before"
