"""How many KV blocks a worker gets: what the settings say, or what is left of a GPU beside the model's largest step."""

from collections.abc import Callable

from engine.gpu_memory import MemoryMeter, MemoryShare, pool_blocks
from engine.kv_pool import KVLayout
from engine.served_model import ServedModel
from engine.worst_case import worst_decode, worst_prefill
from messages import ConfigError, Role
from settings import Settings


def num_blocks_of(
    settings: Settings,
    role: Role,
    model: ServedModel,
    layout: KVLayout,
    meter: MemoryMeter | None,
    report: Callable[[str], None],
    encode_largest: Callable[[], None] | None = None,
) -> int:
    """Blocks of a worker's pool; `meter` is the GPU's, None on a CPU. `encode_largest`: of a model that reads images.
    Raises ConfigError, DeviceError."""
    if settings.kv.num_blocks is not None:
        return settings.kv.num_blocks
    if meter is None:
        # The bytes are the worker's; every rank has its part of each block.
        block_bytes = layout.block_bytes * model.communicator.shard.num_ranks
        num_blocks = settings.kv.pool_bytes // block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"PDQ_KV__POOL_BYTES = {settings.kv.pool_bytes}: one block of this model takes {block_bytes} bytes"
            )
        return num_blocks
    report("measuring the largest step")

    def largest_step() -> None:
        if encode_largest is not None:
            encode_largest()
        if role is Role.PREFILL:
            worst_prefill(model, layout, settings.prefill.token_budget_on("cuda"), settings.prefill.max_running)
        else:
            worst_decode(model, layout, settings.decode.max_running)

    return pool_blocks(
        meter.measure(largest_step),
        MemoryShare(settings.kv.gpu_memory_fraction, settings.gpu.share),
        # The graphs keep as much as their largest step; batches beyond them are launched beside that.
        num_steps=2 if role is Role.DECODE and settings.decode.cuda_graphs else 1,
        block_bytes=layout.block_bytes,
        request_tokens=min(settings.model.max_total_tokens, model.config.max_position_embeddings),
        block_size=layout.block_size,
    )
