"""From settings to a model in memory and the shape of its KV pool. Knows files and devices; knows no queue."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import freed_memory
from engine.cuda_device import CudaDevice
from engine.decode_graphs import DecodeGraphs
from engine.grammars import Grammars
from engine.image_encoder import ImageEncoder, load_image_encoder
from engine.kv_pool import KVLayout, KVPool
from engine.model_config import ModelConfig
from engine.model_files import resolve_model
from engine.packed_weights import PackedWeights
from engine.pool_size import num_blocks_of
from engine.ranks import Ranks
from engine.served_model import ServedModel
from engine.tensor_parallel import WHOLE, Communicator, ModelSlice, Shard, SingleRank
from engine.weights import load_model
from kernels import cpu_build
from kernels.cores import open_ledger, use_cores
from kernels.panels import Kind
from messages import ConfigError, DeviceError, Role
from settings import Settings
from telemetry import get_logger

log = get_logger()

KINDS = {"int8": Kind.INT8, "int4": Kind.INT4}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and the pool that it wants."""

    model: ServedModel
    layout: KVLayout  # of this process's pool
    num_blocks: int
    ranks: Ranks | None = None  # the other parts of the model, where it is cut
    grammars: Grammars | None = None
    images: ImageEncoder | None = None  # of a model that reads images, where prompts are computed


def load(
    settings: Settings, role: Role, num_threads: int, report: Callable[[str], None], ranks: Ranks | None = None
) -> LoadedModel:
    """Load the model, or rank 0's part of it, and size the pool of a worker of `role`. `report` is told what goes on.

    Raises ModelError, DeviceError, ConfigError.
    """
    if ranks is None:
        return load_part(settings, role, num_threads, report)
    loaded = load_part(settings, role, num_threads, report, Shard(0, ranks.num_ranks), ranks.join)
    return replace(loaded, num_blocks=min(loaded.num_blocks, ranks.num_blocks()), ranks=ranks)


def load_part(
    settings: Settings,
    role: Role,
    num_threads: int,
    report: Callable[[str], None],
    shard: Shard = WHOLE,
    join: Callable[[torch.device], Communicator] = lambda device: SingleRank(),
) -> LoadedModel:
    """What `load` does, in any rank. `join` is told where this one computes."""
    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // shard.num_ranks))
    device = _device(settings, shard)
    model_dir = resolve_model(settings.model, report)
    if device.type == "cpu":
        library = cpu_build.load(settings.model.cache_dir, report)
        if library is not None:
            use_cores(library, torch.get_num_threads(), open_ledger())
    dtype = None if settings.model.dtype == "auto" else DTYPES[settings.model.dtype]
    config = ModelConfig.from_dir(model_dir)
    ModelSlice.of(config, shard)  # before anybody waits for anybody
    if config.is_foreign:
        model: ServedModel = _foreign(settings, shard, model_dir, config, dtype, device, report)
        return _with_pool(settings, role, model, model_dir, device, report)
    communicator = join(device)
    packed = None
    if device.type == "cpu" and settings.model.share_weights:
        directory = settings.model.weights_dir or settings.model.cache_dir / "weights"
        packed = PackedWeights(directory.expanduser(), report)

    def progress(share: float) -> None:
        report(f"loading weights {share:.0%}")

    model = load_model(model_dir, dtype, device, progress, communicator, KINDS.get(settings.model.weights), packed)
    freed_memory.give_back()  # what packing needed: half a gigabyte for a model of 135 million floats
    quantization = model.config.quantization
    if quantization is not None and device.type == "cpu":
        report(
            f"the {quantization.format} weights are dequantized to {str(model.dtype).removeprefix('torch.')} on a CPU"
        )
    images = None
    if config.reads_images and role is Role.PREFILL:
        bounds = settings.images
        images = load_image_encoder(
            model_dir, model.dtype, device, bounds.max_pixels, bounds.feature_cache_bytes, report
        )
    return _with_pool(settings, role, model, model_dir, device, report, images)


def _foreign(
    settings: Settings,
    shard: Shard,
    model_dir: Path,
    config: ModelConfig,
    dtype: torch.dtype | None,
    device: torch.device,
    report: Callable[[str], None],
) -> ServedModel:
    """A model that transformers' own code computes."""
    if shard != WHOLE:
        raise ConfigError(
            f"TENSOR_PARALLEL = {shard.num_ranks}: {config.architecture} runs through transformers, which is not cut "
            "into ranks; set it to 1"
        )
    if settings.model.weights in KINDS:
        raise ConfigError(
            f"PDQ_MODEL__WEIGHTS={settings.model.weights}: {config.architecture} runs through transformers, whose "
            "weights are not quantized; set it to auto"
        )
    report("loading weights through transformers")
    log.info(
        "model_runs_through_transformers", architecture=config.architecture, but="slower than a family of pdq's own"
    )
    from engine.transformers_model import load_transformers_model  # seconds to import, and only these models pay

    return load_transformers_model(model_dir, config, dtype, device)


def _with_pool(
    settings: Settings,
    role: Role,
    model: ServedModel,
    model_dir: Path,
    device: torch.device,
    report: Callable[[str], None],
    images: ImageEncoder | None = None,
) -> LoadedModel:
    layout = KVLayout(
        num_layers=model.config.num_layers,
        num_kv_heads=model.num_kv_heads,
        block_size=settings.kv.block_size,
        head_dim=model.config.head_dim,
        dtype=model.dtype,
    )
    meter = CudaDevice(device) if device.type == "cuda" else None
    return LoadedModel(
        model,
        layout,
        num_blocks_of(settings, role, model, layout, meter, report, None if images is None else images.encode_largest),
        grammars=Grammars(model_dir, model.config.vocab_size, model.config.eos_token_ids),
        images=images,
    )


def decode_graphs(
    settings: Settings, model: ServedModel, pool: KVPool, report: Callable[[str], None]
) -> DecodeGraphs | None:
    """The decode steps of `model` on `pool` as CUDA graphs; None on a CPU, and where they are switched off.

    All ranks of a model must come here together, as recording runs what is recorded.
    """
    if model.device.type != "cuda" or not settings.decode.cuda_graphs:
        return None
    if not model.can_be_recorded:
        report("decode steps of this model are not recorded: what they launch depends on their tokens")
        return None
    longest = min(settings.model.max_total_tokens, model.config.max_position_embeddings)
    return DecodeGraphs(model, pool, settings.decode.max_running, longest, CudaDevice(model.device), report)


def _device(settings: Settings, shard: Shard) -> torch.device:
    wanted = settings.model.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceError("PDQ_MODEL__DEVICE is cuda, but torch sees no CUDA device here; set it to cpu or auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu" or shard == WHOLE:
        return torch.device(wanted)
    if shard.num_ranks > torch.cuda.device_count():
        raise DeviceError(f"TENSOR_PARALLEL = {shard.num_ranks}, but torch sees {torch.cuda.device_count()} GPUs")
    device = torch.device("cuda", shard.rank)  # the leased ones are the first
    torch.cuda.set_device(device)  # Triton launches on the current one
    return device
