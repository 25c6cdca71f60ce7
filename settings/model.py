"""Which model is served."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from settings.section import Count, Seconds, Section

Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["auto", "bf16", "int8", "int4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelSettings(Section):
    """Which model is served and how it is loaded."""

    path: str = Field("demo", description="Hugging Face directory, GGUF file, hub name, or `demo`.")
    name: str = Field("", description="The name clients see; empty: the last part of the path.")
    dtype: Dtype = Field("auto", description="Type of weights and KV; auto: what the checkpoint says.")
    weights: Weights = Field(
        "auto",
        description="How a CPU keeps the weights of linears: auto and bf16 as dtype says (a GGUF's dequantized), int8 "
        "in 8.5 bits, int4 in 5, a Q4_0, Q4_1 or Q8_0 GGUF's without loss where the bits are the same. With int4 the "
        "language head is int8, unless a GGUF has it in 4 bits.",
    )
    device: Device = Field("auto", description="auto: cuda where there is one, else cpu.")
    rank_timeout_s: Seconds = Field(
        60.0, description="How long a step of a tensor-parallel worker may take; then a rank counts as hung."
    )
    max_total_tokens: Count = Field(16384, description="Most tokens, prompt and output together, of one request.")
    cache_dir: Path = Field(
        Path("~/.cache/pdq"), description="Where fetched and converted models are kept.", validate_default=True
    )
    weights_dir: Path | None = Field(
        None, description="Where packed weights are kept, each model's in one file; empty: `weights` in cache_dir."
    )
    share_weights: bool = Field(
        True,
        description="Whether workers on a CPU map their packed weights from that file, so that a host has them in "
        "memory once; else each has a copy.",
    )
