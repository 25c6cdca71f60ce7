"""The options that both bench commands take, and the names behind them. No behaviour."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import lightllm_style
from bench.wire_style import WireStyle


class StyleName(StrEnum):
    """Whose API the URL speaks."""

    LIGHTLLM = "lightllm"


class Preset(StrEnum):
    """Workloads that other servers were measured with."""

    W1 = "w1"  # single stream, 128/128
    W2 = "w2"  # 16 concurrent, 128/128
    W3 = "w3"  # 4 steady streams beside a 1500-token prompt every 2 s
    W4 = "w4"  # Poisson, 256/64


Url = Annotated[str, typer.Option(help="Where the server listens.")]
Style = Annotated[StyleName, typer.Option(help="The API it speaks.")]
PromptSeed = Annotated[int | None, typer.Option(help="Seed of the prompts; default: a fresh one (caches).")]
MinTokenId = Annotated[int, typer.Option(min=0, help="Lowest token id in prompts (above the special tokens).")]
MaxTokenId = Annotated[int, typer.Option(min=1, help="Highest token id in prompts (inside the vocabulary).")]
IdleTimeout = Annotated[float, typer.Option(min=0.1, help="A request without a byte for so long has failed.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything to this file.", dir_okay=False)]
Label = Annotated[str, typer.Option(help="A name for the run, kept in the table and the JSON.")]

DEFAULT_URL = "http://127.0.0.1:8080"

# A second style is one more file and one more line here and in StyleName.
STYLES: dict[StyleName, WireStyle] = {StyleName.LIGHTLLM: lightllm_style}
