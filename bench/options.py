"""The options that the bench commands and `pdq plan` share, and what their values stand for."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer

from bench import lightllm_style
from bench.openai_style import OpenAIStyle
from bench.text_prompt import TextPrompt
from bench.wire_style import WireStyle
from errors import ConfigError


class StyleName(StrEnum):
    """Whose API the URL speaks."""

    LIGHTLLM = "lightllm"
    OPENAI = "openai"


class Preset(StrEnum):
    """Workloads that other servers were measured with."""

    W1 = "w1"  # single stream, 128/128
    W2 = "w2"  # 16 concurrent, 128/128
    W3 = "w3"  # 4 steady streams beside a 1500-token prompt every 2 s
    W4 = "w4"  # Poisson, 256/64


Url = Annotated[str, typer.Option(help="Where the server listens.")]
Style = Annotated[StyleName, typer.Option(help="The API it speaks.")]
ModelName = Annotated[str, typer.Option("--model", help="OpenAI style: the model's name, as GET /v1/models says it.")]
ExtraBody = Annotated[str, typer.Option(help="OpenAI style: JSON of more fields of the body; null takes one out.")]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="OpenAI style: send text, made with this tokenizer.json, not ids.")
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="PDQ_API_KEY",
        help="Where keys are asked for; prefer the variable, which other users cannot see.",
        show_default=False,
    ),
]
PromptSeed = Annotated[int | None, typer.Option(help="Seed of the prompts; default: a fresh one (caches).")]
MinTokenId = Annotated[int, typer.Option(min=0, help="Lowest token id in prompts (above the special tokens).")]
MaxTokenId = Annotated[int, typer.Option(min=1, help="Highest token id in prompts (inside the vocabulary).")]
IdleTimeout = Annotated[float, typer.Option(min=0.1, help="A request without a byte for so long has failed.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything to this file.", dir_okay=False)]
Label = Annotated[str, typer.Option(help="A name for the run, kept in the table and the JSON.")]

# What changes a preset, or makes a load without one.
InFlight = Annotated[int | None, typer.Option(min=1, help="Closed loop: requests in flight.")]
RequestRate = Annotated[float | None, typer.Option(min=1e-3, help="Open loop: Poisson arrivals per s.")]
NumRequests = Annotated[int | None, typer.Option(min=1, help="Stop after so many requests.")]
Duration = Annotated[float | None, typer.Option(min=0.1, help="Start no request after so long.")]
PromptTokens = Annotated[int | None, typer.Option(min=1, help="Length of each prompt.")]
OutputTokens = Annotated[int | None, typer.Option(min=1, help="Tokens asked of each request.")]
ArrivalSeed = Annotated[int, typer.Option(help="Seed of the arrivals.")]

DEFAULT_URL = "http://127.0.0.1:8080"


def wire_style(name: StyleName, model: str = "", extra_body: str = "", tokenizer: Path | None = None) -> WireStyle:
    """The style with its options. Raises ConfigError on options that do not fit."""
    if name is StyleName.LIGHTLLM:
        if model or extra_body or tokenizer:
            raise ConfigError("--model, --extra-body and --tokenizer are for --style openai")
        return lightllm_style
    if not model:
        raise ConfigError("--style openai needs --model; GET /v1/models lists the server's")
    try:
        extra = orjson.loads(extra_body or "{}")
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"--extra-body {extra_body!r}: {error}") from None
    if not isinstance(extra, dict):
        raise ConfigError(f"--extra-body {extra_body!r} must be a JSON object")
    return OpenAIStyle(model, extra, None if tokenizer is None else TextPrompt(tokenizer))
