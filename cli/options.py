"""The flags that commands share, and what they mean as settings. Knows typer and the names of settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from settings.loading import Settings, load_settings

ModelFlag = Annotated[
    str | None,
    typer.Option("--model", help="Hugging Face directory, GGUF file, hub name, or `demo`.", show_default="demo"),
]
HostFlag = Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")]
PortFlag = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.", show_default="8080"),
]
RedisUrlFlag = Annotated[
    str | None,
    typer.Option("--redis-url", help="redis://, rediss:// or unix:// address of the queues.", show_default=False),
]
DtypeFlag = Annotated[
    str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.", show_default="auto")
]

ApiKeyFlag = Annotated[
    str,
    typer.Option("--api-key", envvar="PDQ_API_KEY", help="Where keys are asked for.", show_default=False),
]

Overrides = dict[str, dict[str, Any]]


def overrides(
    *,
    model: str | None = None,
    dtype: str | None = None,
    host: str | None = None,
    port: int | None = None,
    redis_url: str | None = None,
    log_level: str | None = None,
) -> Overrides:
    """The flags that were given, as `load_settings` wants them."""
    flags: Overrides = {
        "model": {"path": model, "dtype": dtype},
        "api": {"host": host, "port": port},
        "redis": {"url": redis_url},
        "log": {"level": log_level},
    }
    given = {
        section: {knob: value for knob, value in knobs.items() if value is not None} for section, knobs in flags.items()
    }
    return {section: knobs for section, knobs in given.items() if knobs}


def settings_from(**flags: Any) -> Settings:
    """The environment's settings with these flags on top. Raises ConfigError."""
    return load_settings(overrides(**flags))


def environment(knobs: Overrides) -> dict[str, str]:
    """The `PDQ_<SECTION>__<KNOB>` variables that say `knobs`."""
    return {
        f"PDQ_{section}__{knob}".upper(): str(value)
        for section, values in knobs.items()
        for knob, value in values.items()
    }


def absolute_model(path: str) -> str:
    """A model that is a file or directory here by its absolute path, so that a child means the same; else the name."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path
