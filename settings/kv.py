"""KV: how much of it a worker keeps, and how it travels."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from settings.section import Count, Limit, Seconds, Section

TransportKind = Literal["shared_memory", "cuda_ipc", "nixl", "nccl", "gloo"]


class KVSettings(Section):
    """The paged KV pool of one worker."""

    # An int Literal does not parse the text of an environment variable by itself.
    block_size: Annotated[Literal[16, 32], BeforeValidator(int)] = Field(16, description="Tokens per block.")
    num_blocks: Count | None = Field(
        None, description="Blocks in the pool; empty: sized from pool_bytes or gpu_memory_fraction."
    )
    pool_bytes: Count = Field(1 << 30, description="Most bytes of KV pool per worker on a CPU.")
    first_bytes: Count = Field(
        128 << 20,
        description="Bytes of it that a CPU worker takes at its start; more when sequences need it.",
    )
    cache_bytes: Limit = Field(
        384 << 20,
        description="Bytes up to which it also takes more to keep cached prefixes, which beyond make room instead.",
    )
    gpu_memory_fraction: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Share of a GPU's memory that its workers take together: weights, working memory and pools.",
    )
    prefix_cache: bool = Field(True, description="Whether workers that prefill reuse blocks of equal prefixes.")


class TransferSettings(Section):
    """How KV blocks get from prefill to decode workers."""

    network: Literal["none", "nixl", "nccl"] = Field(
        "none",
        description="How KV travels between hosts: none keeps a cluster's workers on one; nixl is UCX's; nccl is "
        "torch's process groups, which on a CPU are Gloo's.",
    )
    address: str = Field(
        "",
        description="With nccl: this host's address that a prefill worker listens on and names to others; empty: that "
        "of the interface towards other networks, or 127.0.0.1 where there is none.",
    )
    require: TransportKind | None = Field(
        None, description="The only transport allowed; a worker that cannot start it does not start."
    )
    timeout_s: Seconds = Field(5.0, description="How long one read from another host may take; then prefill repeats.")
    staging_bytes: Count = Field(32 << 20, description="Size of the buffers that KV of another host arrives in.")
    release_check_s: Seconds = Field(1.0, description="How often a worker checks what became of its open offers.")
    max_offers: Count = Field(4096, description="Most offers one prefill worker keeps open.")
    checksum: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether pulled bytes are compared with a checksum of what was offered; auto: in host memory, "
        "where the C++ kernels take it while they copy; on: everywhere.",
    )
    secret_file: Path | None = Field(
        None,
        description="File of 16 bytes or more that every worker has alike and nobody else: handles are sealed with it. "
        "Empty: they are not, and whoever can write to Redis can name KV; `pdq serve` with its own Redis makes one.",
    )
