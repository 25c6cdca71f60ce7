"""What is tuned: every knob of pdq, with its unit, its default and a sentence. The room's other files are the sections.

Built once in a process's entry point by `load_settings()` and handed down by section; nothing else reads
`os.environ`. An environment variable is `PDQ_<SECTION>__<KNOB>` (`PDQ_KV__BLOCK_SIZE=32`). An unknown name or a
value out of bounds stops the start. This room knows no other.
"""

import os
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from errors import ConfigError
from settings.api import ApiSettings, SecuritySettings
from settings.batch import BatchSettings
from settings.broker import QueueSettings, RedisSettings, StreamSettings
from settings.kv import KVSettings, TransferSettings
from settings.model import ModelSettings
from settings.observability import LogSettings, MetricsSettings, TracingSettings
from settings.workers import DecodeSettings, GpuSettings, PrefillSettings

ENV_PREFIX = "PDQ_"


class Settings(BaseSettings):
    """Every section. See `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    redis: RedisSettings = RedisSettings()
    model: ModelSettings = ModelSettings()
    kv: KVSettings = KVSettings()
    kv_transfer: TransferSettings = TransferSettings()
    prefill: PrefillSettings = PrefillSettings()
    decode: DecodeSettings = DecodeSettings()
    gpu: GpuSettings = GpuSettings()
    queue: QueueSettings = QueueSettings()
    stream: StreamSettings = StreamSettings()
    api: ApiSettings = ApiSettings()
    batch: BatchSettings = BatchSettings()
    security: SecuritySettings = SecuritySettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    log: LogSettings = LogSettings()


def load_settings(overrides: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Settings from the environment, with command-line `overrides` ({section: {knob: value}}) on top.

    Raises ConfigError that names the variable, its value and what was wanted.
    """
    known = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        # pydantic-settings ignores a variable whose section does not exist; a misspelt one must stop the start.
        if variable.startswith(ENV_PREFIX):
            section = variable.removeprefix(ENV_PREFIX).split("__")[0].upper()
            if section not in known:
                raise ConfigError(f"{variable} is no setting of pdq; sections are {', '.join(sorted(known))}")
    try:
        settings = Settings()
        for section, knobs in (overrides or {}).items():
            merged = getattr(settings, section).model_dump() | knobs
            checked = type(getattr(settings, section)).model_validate(merged)
            settings = settings.model_copy(update={section: checked})
    except ValidationError as error:
        first = error.errors()[0]
        where = "__".join(str(part).upper() for part in first["loc"])
        raise ConfigError(f"{ENV_PREFIX}{where} = {first['input']!r}: {first['msg']}") from None
    return settings
