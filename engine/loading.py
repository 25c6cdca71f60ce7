"""From settings to a model in memory and the shape of its KV pool. Knows files and devices; knows no queue."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.kv_pool import KVLayout
from engine.model import Model
from engine.model_files import resolve_model
from engine.weights import load_model
from kernels import cpu_build
from messages import ConfigError, DeviceError
from settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and the pool that it wants."""

    model: Model
    layout: KVLayout
    num_blocks: int


def load(settings: Settings, num_threads: int, report: Callable[[str], None]) -> LoadedModel:
    """Load the model and size its pool. `report` is told what goes on. Raises ModelError, DeviceError, ConfigError."""
    torch.set_num_threads(num_threads or os.cpu_count() or 1)
    device = _device(settings)
    model_dir = resolve_model(settings.model, report)
    if device.type == "cpu":
        cpu_build.load(settings.model.cache_dir, report)
    dtype = None if settings.model.dtype == "auto" else DTYPES[settings.model.dtype]
    model = load_model(model_dir, dtype, device, lambda share: report(f"loading weights {share:.0%}"))
    layout = KVLayout(
        num_layers=model.config.num_layers,
        num_kv_heads=model.config.num_kv_heads,
        block_size=settings.kv.block_size,
        head_dim=model.config.head_dim,
        dtype=model.dtype,
    )
    return LoadedModel(model, layout, _num_blocks(settings, layout))


def _device(settings: Settings) -> torch.device:
    wanted = settings.model.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("PDQ_MODEL__DEVICE is cuda, but torch sees no CUDA device here; set it to cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _num_blocks(settings: Settings, layout: KVLayout) -> int:
    num_blocks = settings.kv.num_blocks or settings.kv.pool_bytes // layout.block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"PDQ_KV__POOL_BYTES = {settings.kv.pool_bytes}: one block of this model takes {layout.block_bytes} bytes"
        )
    return num_blocks
